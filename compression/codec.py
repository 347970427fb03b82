"""Tensors as bytes: a self-describing header, the scales, the codes.

Deterministic: the same values give the same bytes on every machine. Nothing in a buffer is trusted: the receiver says
which codec and shape are due, every length follows from those, and a header that says otherwise is refused before
anything is allocated. Errors: `CodecError` for a buffer that is not what is due, `NonFiniteError` for NaN or infinity
in either direction.
"""

import math
import struct

import torch
from torch import Tensor

from ..errors import CodecError, NonFiniteError
from ..kernels import engine
from .spec import NAMES, CodecSpec

MAGIC = b"SPT"
FORMAT_VERSION = 2
MAX_DIMENSIONS = 8
MAX_SIZE = (1 << 32) - 1

_FIXED = struct.Struct("<3sBBBxxIQI")
"""Magic, format version, codec id, number of dimensions, block, payload bytes, crc32 of the payload."""

_FIELDS = ("magic", "format version", "codec id", "number of dimensions", "block", "payload length", "payload crc32")

_CHECKSUM_AT = _FIXED.size - 4

_CODES: dict[str, engine.Code] = {"int8": "linear", "dynamic8": "dynamic"}
_SCALE_BYTES = {"fp32": 0, "int8": 2, "dynamic8": 4}
_ELEMENT_BYTES = {"fp32": 4, "int8": 1, "dynamic8": 1}


def encoded_bytes(shape: tuple[int, ...], spec: CodecSpec) -> int:
    """The exact size of an encoded tensor of this shape, in bytes. Raises `CodecError` for one that has no encoding."""
    if len(shape) > MAX_DIMENSIONS or not all(0 <= size <= MAX_SIZE for size in shape):
        raise CodecError(f"shape {shape} cannot be encoded: up to {MAX_DIMENSIONS} sizes of 0 to {MAX_SIZE} can")
    return _FIXED.size + 4 * len(shape) + _payload_bytes(math.prod(shape), spec)


def _payload_bytes(elements: int, spec: CodecSpec) -> int:
    blocks = -(-elements // spec.block)
    return elements * _ELEMENT_BYTES[spec.name] + blocks * _SCALE_BYTES[spec.name]


def encode(tensor: Tensor, spec: CodecSpec, *, threads: int = 1) -> bytes:
    """A floating-point tensor of any layout as bytes, made on `threads` threads. Raises `CodecError`,
    `NonFiniteError`."""
    shape = tuple(tensor.shape)
    encoded_bytes(shape, spec)  # refuses shapes
    if not tensor.is_floating_point():
        raise CodecError(f"a tensor of {tensor.dtype} cannot be encoded; wanted floating point")
    flat = tensor.detach().to(torch.float32).contiguous().view(-1)
    if spec.name == "fp32":
        _require_finite(flat)
        payload = engine.to_bytes(flat)
        return _header(shape, spec, engine.crc32(payload)) + payload
    return engine.pack(_CODES[spec.name], _header(shape, spec, 0), _CHECKSUM_AT, flat, spec.block, threads)


def decode(
    buffer: bytes | memoryview,
    spec: CodecSpec,
    *,
    shape: tuple[int, ...],
    device: str | torch.device = "cpu",
    threads: int = 1,
) -> Tensor:
    """The tensor of this shape, float32 on `device`. Raises `CodecError`, `NonFiniteError`."""
    view = memoryview(buffer)
    wanted = encoded_bytes(shape, spec)
    if len(view) != wanted:
        raise CodecError(f"expected {wanted} bytes for {spec.name} of shape {shape}, got {len(view)}")
    start = wanted - _payload_bytes(math.prod(shape), spec)
    payload = view[start:]
    header = _header(shape, spec, engine.crc32(payload))
    if view[:start] != header:
        raise CodecError(_difference(bytes(view[:start]), header, spec, shape))
    where = torch.device(device)
    if spec.name == "fp32":
        flat = engine.from_bytes(payload, torch.float32, where)
        _require_finite(flat)
    else:
        flat = engine.unpack(_CODES[spec.name], payload, math.prod(shape), spec.block, where, threads)
    return flat.reshape(shape)


def _header(shape: tuple[int, ...], spec: CodecSpec, checksum: int) -> bytes:
    fixed = _FIXED.pack(
        MAGIC,
        FORMAT_VERSION,
        NAMES.index(spec.name),
        len(shape),
        spec.block if _SCALE_BYTES[spec.name] else 0,
        _payload_bytes(math.prod(shape), spec),
        checksum,
    )
    return fixed + struct.pack(f"<{len(shape)}I", *shape)


def _difference(came: bytes, wanted: bytes, spec: CodecSpec, shape: tuple[int, ...]) -> str:
    """What a header says otherwise than the one that is due, by the name of its first field that differs."""
    due = f"{spec.name} of shape {shape}"
    for name, said, meant in zip(_FIELDS, _FIXED.unpack_from(came), _FIXED.unpack_from(wanted), strict=True):
        if said != meant:
            return f"{name} is {said!r}; expected {meant!r} for {due}"
    sizes = struct.unpack_from(f"<{len(shape)}I", came, _FIXED.size)
    return f"shape is {sizes}; expected {due}" if sizes != shape else f"padding is not zero; expected {due}"


def _require_finite(flat: Tensor) -> None:
    finite = torch.isfinite(flat)
    if not bool(finite.all()):
        raise NonFiniteError(f"{int((~finite).sum())} of {flat.numel()} elements are NaN or infinite")
