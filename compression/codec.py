"""Tensors as bytes: a self-describing header, the scales, the codes.

Deterministic: the same values give the same bytes on every machine (but for `entropy`). Nothing in a buffer is trusted:
every length follows from the header, the header is held to the caller's limits, and both before anything is allocated.
Errors: `CodecError` for a buffer that is not what is due, `NonFiniteError` for NaN or infinity in either direction.
"""

import math

import torch
from torch import Tensor

from ..errors import CodecError, NonFiniteError
from ..kernels import engine, rotation
from . import columns, entropy
from .format import CHECKSUM_AT, DTYPES, Header, check_shape, parse_header
from .spec import PLAIN, CodecSpec

MAX_ELEMENTS = 1 << 28
"""What `decode` accepts unless it is told otherwise: 1 GiB of float32."""

_CODES: dict[str, engine.Code] = {"int8": "linear", "dynamic8": "dynamic", "nf4": "nf4", "int4": "linear4"}
_PLAIN_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def encoded_bytes(shape: tuple[int, ...], spec: CodecSpec) -> int:
    """The size of an encoded tensor of this shape, in bytes; with outlier columns or entropy coding the largest that it
    can have. Raises `CodecError` for a shape that has no encoding."""
    check_shape(shape)
    header = len(Header(spec, shape, torch.float32).to_bytes())
    elements = math.prod(shape)
    if spec.name in PLAIN:
        return header + elements * _PLAIN_TYPES[spec.name].itemsize
    scales, codes = _payload_bytes(elements, spec)
    if spec.entropy:
        codes = entropy.most_bytes(codes)
    apart = columns.most_bytes(*_rows_and_columns(shape)) if spec.columns else 0
    return header + scales + codes + apart


def _payload_bytes(elements: int, spec: CodecSpec) -> tuple[int, int]:
    """(bytes of scales, bytes of codes) of a quantized tensor."""
    coded = _padded(elements, spec.block) if spec.rotation else elements
    return engine.scale_bytes(_CODES[spec.name], elements, spec.block), engine.code_bytes(_CODES[spec.name], coded)


def _padded(elements: int, block: int) -> int:
    return -(-elements // block) * block


def _rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    width = shape[-1] if shape else 1
    return (math.prod(shape[:-1]), width)


# ---- to bytes


def encode(tensor: Tensor, spec: CodecSpec, *, seed: int = 0, threads: int = 1) -> bytes:
    """A float32, float16 or bfloat16 tensor of any layout and device as bytes, made on `threads` threads.

    `seed` (from 0 to 2^32 - 1) chooses the random signs and roundings of a spec that has them. Raises `CodecError`,
    `NonFiniteError`.
    """
    if tensor.dtype not in DTYPES:
        raise CodecError(f"a tensor of {tensor.dtype} cannot be encoded; wanted one of {', '.join(map(str, DTYPES))}")
    if not 0 <= seed < 1 << 32:
        raise CodecError(f"seed is {seed}; wanted 0 to 2^32 - 1")
    shape = tuple(tensor.shape)
    check_shape(shape)
    if spec.name in PLAIN:
        return _seal(Header(spec, shape, tensor.dtype), _plain_payload(tensor, spec))
    flat = tensor.detach().to(torch.float32).contiguous().view(-1)
    if spec.columns or spec.rotation or spec.stochastic or spec.entropy:
        used = seed if spec.rotation or spec.stochastic else 0
        return _seal(Header(spec, shape, tensor.dtype, used), _payload(flat, spec, shape, used, threads))
    header = Header(spec, shape, tensor.dtype, payload=sum(_payload_bytes(flat.numel(), spec)))
    return engine.pack(_CODES[spec.name], header.to_bytes(), CHECKSUM_AT, flat, spec.block, threads)


def _plain_payload(tensor: Tensor, spec: CodecSpec) -> bytes:
    flat = tensor.detach().to(_PLAIN_TYPES[spec.name]).contiguous().view(-1)
    _require_finite(flat)
    return engine.to_bytes(flat)


def _payload(flat: Tensor, spec: CodecSpec, shape: tuple[int, ...], seed: int, threads: int) -> bytes:
    """Scales, codes and outlier columns of a spec with options."""
    _require_finite(flat)
    apart = b""
    if spec.columns:
        rest, apart = columns.split(flat.view(-1, shape[-1])) if flat.numel() and shape else (flat, bytes(4))
        flat = rest.view(-1)
    if spec.rotation:
        most = rotation.largest(spec.block)
        came = float(flat.abs().max()) if flat.numel() else 0.0
        if came > most:
            raise CodecError(f"the largest element is {came:.3g}; rotated blocks of {spec.block} hold up to {most:.3g}")
        padding = _padded(flat.numel(), spec.block) - flat.numel()
        flat = rotation.rotate(torch.nn.functional.pad(flat, (0, padding)), spec.block, seed)
    scales, codes = engine.quantize(
        _CODES[spec.name], flat, spec.block, seed=seed if spec.stochastic else None, threads=threads
    )
    return b"".join((scales, entropy.squeeze(codes) if spec.entropy else codes, apart))


def _seal(header: Header, payload: bytes) -> bytes:
    message = bytearray(Header(header.spec, header.shape, header.dtype, header.seed, len(payload)).to_bytes())
    message += payload
    message[CHECKSUM_AT : CHECKSUM_AT + 4] = engine.crc32(message).to_bytes(4, "little")
    return bytes(message)


def _require_finite(flat: Tensor) -> None:
    finite = torch.isfinite(flat)
    if not bool(finite.all()):
        raise NonFiniteError(f"{int((~finite).sum())} of {flat.numel()} elements are NaN or infinite")


# ---- and back


def decode(
    buffer: bytes | bytearray | memoryview,
    out: Tensor | None = None,
    *,
    spec: CodecSpec | None = None,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
    max_elements: int = MAX_ELEMENTS,
    device: str | torch.device = "cpu",
    threads: int = 1,
) -> Tensor:
    """The tensor of a message: in `out` if that is given (any floating type and device), else a new one of the type
    that was encoded, on `device`.

    A message of more than `max_elements`, or of another `spec`, `shape` or `dtype` than those that are given, is
    refused before anything is allocated. Raises `CodecError`, `NonFiniteError`.
    """
    view = memoryview(buffer).cast("B")
    header, start = parse_header(view, max_elements)
    for what, came, due in (
        ("codec", _described(header.spec), None if spec is None else _described(spec)),
        ("shape", header.shape, shape if out is None or shape is not None else tuple(out.shape)),
        ("element type", header.dtype, dtype),
    ):
        if due is not None and came != due:
            raise CodecError(f"{what} is {came}; expected {due}")
    payload = view[start:]
    _check_length(header, len(payload))
    _check_sum(view, start)
    where = torch.device(device) if out is None else out.device
    values = _values(header, payload, where, out, threads)
    if out is None:
        return _fitted(values, header.dtype).view(header.shape)
    if values.data_ptr() != out.data_ptr() or not values.numel():
        out.copy_(_fitted(values, out.dtype).view(header.shape))
    return out


def _described(spec: CodecSpec) -> str:
    return str(spec) if spec.name in PLAIN else f"{spec} of block {spec.block}"


def _check_length(header: Header, payload: int) -> None:
    """Whether a payload can be that of its header, by its length. Raises `CodecError`."""
    spec = header.spec
    most = encoded_bytes(header.shape, spec) - len(header.to_bytes())
    variable = spec.columns or spec.entropy
    if payload > most or (payload < most and not variable):
        raise CodecError(f"payload length is {payload}; {_described(spec)} of shape {header.shape} has {most}")


def _check_sum(view: memoryview, start: int) -> None:
    said = int.from_bytes(view[CHECKSUM_AT : CHECKSUM_AT + 4], "little")
    head = bytearray(view[:start])
    head[CHECKSUM_AT : CHECKSUM_AT + 4] = bytes(4)
    found = engine.crc32(view[start:], engine.crc32(head))
    if said != found:
        raise CodecError(f"checksum is {said:#010x}; the bytes have {found:#010x}")


def _values(header: Header, payload: memoryview, device: torch.device, out: Tensor | None, threads: int) -> Tensor:
    """float32 [n], or a plain format's own type; `out` itself where it could be written directly."""
    spec, elements = header.spec, header.elements
    if spec.name in PLAIN:
        flat = engine.from_bytes(payload, _PLAIN_TYPES[spec.name], device)
        _require_finite(flat)
        return flat
    code = _CODES[spec.name]
    scales, codes = _payload_bytes(elements, spec)
    if len(payload) < scales:
        raise CodecError(f"payload length is {len(payload)}; the scales alone have {scales}")
    if spec.entropy:
        coded, end = entropy.expand(payload[scales:], codes)
        end += scales
    else:
        coded, end = payload[scales : scales + codes], scales + codes
    if len(coded) != codes or (not spec.columns and end != len(payload)):
        raise CodecError(f"payload length is {len(payload)}; scales and codes have {end}")
    direct = out is not None and _is_direct(out) and not spec.rotation
    flat = engine.dequantize(
        code,
        payload[:scales],
        coded,
        _padded(elements, spec.block) if spec.rotation else elements,
        spec.block,
        device,
        out.view(-1) if direct and out is not None else None,
        threads,
    )
    if spec.rotation:
        flat = rotation.rotate_back(flat, spec.block, header.seed)[:elements]
        _require_finite(flat)
    if spec.columns:
        rows = flat.view(-1, header.shape[-1]) if elements and header.shape else flat.view(elements, 1)
        columns.put_back(rows, payload[end:])
        _require_finite(flat)
    return flat


def _is_direct(out: Tensor) -> bool:
    return out.dtype == torch.float32 and out.device.type == "cpu" and out.is_contiguous() and not out.requires_grad


def _fitted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """As another floating type; what a rounded-up scale has carried beyond its largest number is brought back."""
    if values.dtype == dtype:
        return values
    wide = values if values.dtype == torch.float32 else values.float()
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    return wide.clamp(-largest, largest).to(dtype)
