"""The header of a coded tensor: what it says, and what is refused before anything is allocated.

Layout in `README.md`. Errors: `CodecError`.
"""

import math
import struct
from dataclasses import dataclass

import torch

from ..errors import CodecError
from .spec import MAX_BLOCK, NAMES, OPTIONS, PLAIN, CodecSpec

MAGIC = b"SPT"
FORMAT_VERSION = 3
MAX_DIMENSIONS = 8
MAX_SIZE = (1 << 32) - 1
MAX_EXTENT = 1 << 62

_FIXED = struct.Struct("<3sBBBBBBxHIIQI")
"""Magic, format version, codec id, element type, number of dimensions, scale type, flags, zero, zero, block, seed,
payload bytes, checksum."""

CHECKSUM_AT = _FIXED.size - 4

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""By the header's number: what the tensor was, and is again."""

SCALES = {"fp32": 0, "fp16": 0, "bf16": 0, "int8": 1, "int4": 1, "dynamic8": 2, "nf4": 3}
"""Scale types: none, bfloat16, float32, float32 coded as dynamic8 in blocks of 256."""


@dataclass(frozen=True, slots=True)
class Header:
    """`seed`: of the random signs or roundings, else 0. `payload`: bytes that follow the header."""

    spec: CodecSpec
    shape: tuple[int, ...]
    dtype: torch.dtype
    seed: int = 0
    payload: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def to_bytes(self) -> bytes:
        """With a checksum of 0. Raises `CodecError` for a shape that has no header."""
        check_shape(self.shape)
        spec = self.spec
        fixed = _FIXED.pack(
            MAGIC,
            FORMAT_VERSION,
            NAMES.index(spec.name),
            DTYPES.index(self.dtype),
            len(self.shape),
            SCALES[spec.name],
            sum(1 << bit for bit, option in enumerate(OPTIONS) if getattr(spec, option)),
            0,
            0 if spec.name in PLAIN else spec.block,
            self.seed,
            self.payload,
            0,
        )
        return fixed + struct.pack(f"<{len(self.shape)}I", *self.shape)


def check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) > MAX_DIMENSIONS or not all(0 <= size <= MAX_SIZE for size in shape):
        raise CodecError(f"shape {shape} cannot be encoded: up to {MAX_DIMENSIONS} sizes of 0 to {MAX_SIZE} can")


def parse_header(view: memoryview, max_elements: int) -> tuple[Header, int]:
    """The header of a message, and where its payload begins. Every field is held to what it may be, and the payload is
    as long as it says; the payload and its checksum are not looked at. Raises `CodecError`."""
    if len(view) < _FIXED.size:
        raise CodecError(f"{len(view)} bytes are no coded tensor: its header alone has {_FIXED.size}")
    magic, version, codec, dtype, dimensions, scales, flags, zero, block, seed, payload, _ = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise CodecError(f"magic is {magic!r}; a coded tensor begins with {MAGIC!r}")
    if version != FORMAT_VERSION:
        raise CodecError(f"format version is {version}; this side speaks {FORMAT_VERSION}")
    if codec >= len(NAMES):
        raise CodecError(f"codec id is {codec}; there are {len(NAMES)}")
    if dtype >= len(DTYPES):
        raise CodecError(f"element type is {dtype}; there are {len(DTYPES)}")
    if dimensions > MAX_DIMENSIONS:
        raise CodecError(f"number of dimensions is {dimensions}; at most {MAX_DIMENSIONS}")
    name = NAMES[codec]
    if scales != SCALES[name]:
        raise CodecError(f"scale type is {scales}; {name} has {SCALES[name]}")
    if flags >> len(OPTIONS) or zero or view[9]:
        raise CodecError("flags or padding: bits are set that this version does not know")
    if (block != 0) if name in PLAIN else not 1 <= block <= MAX_BLOCK:
        raise CodecError(f"block is {block}; wanted {0 if name in PLAIN else f'1 to {MAX_BLOCK}'} for {name}")
    options = {option: bool(flags >> bit & 1) for bit, option in enumerate(OPTIONS)}
    spec = CodecSpec(name, block or CodecSpec(name).block, **options)
    if seed and not (spec.rotation or spec.stochastic):
        raise CodecError(f"seed is {seed}; {spec} has none")
    start = _FIXED.size + 4 * dimensions
    if len(view) < start:
        raise CodecError(f"{len(view)} bytes; a header of {dimensions} dimensions has {start}")
    shape = struct.unpack_from(f"<{dimensions}I", view, _FIXED.size)
    header = Header(spec, shape, DTYPES[dtype], seed, payload)
    extent = math.prod(max(1, size) for size in shape)  # an empty tensor's strides must be numbers too
    if header.elements > max_elements or extent >= MAX_EXTENT:
        raise CodecError(f"shape is {shape}: {header.elements} elements; at most {max_elements} are accepted")
    if payload != len(view) - start:
        raise CodecError(f"payload length is {payload}; {len(view) - start} bytes follow the header")
    return header, start
