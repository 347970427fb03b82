"""The blockwise codes by the fastest means: the native module for tensors on the CPU if it was built, else torch.

Whoever computes, the same bytes (`kernels/README.md`). `SWARM_PEER_KERNELS` chooses: `torch`, or an instruction set of
the native module (`plain`, `avx2`, `avx512`); unset, the best one that the machine has. What the native module does not
know (int4, rounding at random, other devices) torch computes.
"""

import logging
import os
import zlib
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import NonFiniteError, UsageError
from . import blockwise, random_bits

CHOICE = "SWARM_PEER_KERNELS"

Code = Literal["linear", "dynamic", "nf4", "linear4"]

SCALE_BLOCK = 256
"""So many scales of nf4 share one scale of their own: they are coded as dynamic8 themselves (double quantization)."""

_NATIVE = frozenset({"linear", "dynamic", "nf4"})
_FOUR_BITS = frozenset({"nf4", "linear4"})
_INT4_ZERO = 8
_LARGEST = torch.finfo(torch.float32).max

_SCALES_AS = {"linear": torch.bfloat16, "linear4": torch.bfloat16, "dynamic": torch.float32, "nf4": torch.float32}

logger = logging.getLogger(__name__)


def native_wanted() -> bool:
    """Whether anything but torch may compute."""
    return os.environ.get(CHOICE, "") != "torch"


@cache
def native() -> ModuleType | None:
    """The native module, set to the instruction set that was chosen; None where torch computes."""
    if not native_wanted():
        return None
    wanted = os.environ.get(CHOICE, "")
    try:
        from . import _native
    except ImportError:
        if wanted:
            raise UsageError(f"{CHOICE} is {wanted}, but the native kernels were not built") from None
        logger.warning("the native kernels were not built (no C++ compiler?); torch does their work, slower")
        return None
    sets = _native.sets()
    if wanted and wanted not in sets:
        raise UsageError(f"{CHOICE} is {wanted}; this machine has torch, {', '.join(sets)}")
    _native.set_levels(np.array(blockwise.dynamic_levels(), np.float32), np.array(blockwise.NF4_LEVELS, np.float32))
    _native.use(wanted or sets[-1])
    return _native


def name() -> str:
    """What computes: `torch`, or `native` and its instruction set."""
    module = native()
    return "torch" if module is None else f"native ({module.used()})"


def crc32(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """As zlib's, going on from the checksum of what stands before."""
    module = native()
    return zlib.crc32(data, before) if module is None else int(module.crc32(data, before))


def code_bytes(code: Code, elements: int) -> int:
    return (elements + 1) // 2 if code in _FOUR_BITS else elements


def scale_bytes(code: Code, elements: int, block: int) -> int:
    blocks = -(-elements // block)
    if code == "nf4":
        return code_bytes("dynamic", blocks) + scale_bytes("dynamic", blocks, SCALE_BLOCK)
    return blocks * _SCALES_AS[code].itemsize


# ---- values to bytes


def pack(code: Code, header: bytes, checksum_at: int, flat: Tensor, block: int, threads: int = 1) -> bytes:
    """float32 [n] -> header, scales and codes, with the CRC-32 of all of it put into the header, where zeros stand.

    Raises `NonFiniteError`, saying how many elements are.
    """
    module = _module_for(code, flat.device)
    if module is None or code == "nf4":
        message = bytearray(b"".join((header, *quantize(code, flat, block, threads=threads))))
        message[checksum_at : checksum_at + 4] = crc32(message).to_bytes(4, "little")
        return bytes(message)
    made = module.pack(code, header, checksum_at, _memory(flat), flat.numel(), block, threads)
    if isinstance(made, int):
        raise _non_finite(made, flat.numel())
    return bytes(made)


def quantize(
    code: Code, flat: Tensor, block: int, *, seed: int | None = None, threads: int = 1
) -> tuple[bytes | bytearray, bytes | bytearray]:
    """float32 [n] -> (scales, codes). With `seed`, the linear codes are rounded at random. Raises `NonFiniteError`."""
    module = _module_for(code, flat.device) if seed is None else None
    if module is not None:
        return _quantize_natively(module, code, flat, block, threads)
    if code in ("linear", "linear4"):
        dither = None if seed is None else random_bits.uniform(flat.numel(), seed, flat.device)
        top = blockwise.INT8 if code == "linear" else blockwise.INT4
        codes, scales = blockwise.quantize_linear(flat, block, top, dither)
        if code == "linear4":
            codes = blockwise.pack_nibbles((codes + _INT4_ZERO).to(torch.uint8))
        return to_bytes(scales), to_bytes(codes)
    codes, scales = codes_of("nf4" if code == "nf4" else "dynamic", flat, block)
    return (_coded_scales(scales, threads) if code == "nf4" else to_bytes(scales)), to_bytes(codes)


def _quantize_natively(
    module: ModuleType, code: Code, flat: Tensor, block: int, threads: int
) -> tuple[bytes | bytearray, bytearray]:
    elements = flat.numel()
    codes = bytearray(code_bytes(code, elements))
    scales = torch.empty(-(-elements // block), dtype=_SCALES_AS[code])
    _fill_natively(module, code, flat, codes, scales, block, threads)
    return _coded_scales(scales, threads) if code == "nf4" else to_bytes(scales), codes


def _fill_natively(
    module: ModuleType, code: Code, flat: Tensor, codes: Any, scales: Tensor, block: int, threads: int
) -> None:
    bad = module.quantize(code, _memory(flat), codes, _memory(scales), flat.numel(), block, threads)
    if bad:
        raise _non_finite(bad, flat.numel())


def _coded_scales(scales: Tensor, threads: int) -> bytes:
    return b"".join(quantize("dynamic", scales, SCALE_BLOCK, threads=threads))


def codes_of(code: Literal["dynamic", "nf4"], flat: Tensor, block: int, threads: int = 1) -> tuple[Tensor, Tensor]:
    """float32 [n] -> (uint8 codes, of nf4 two a byte; float32 scales [n / block, rounded up]), which do not leave its
    device. Raises `NonFiniteError`."""
    module = _module_for(code, flat.device)
    if module is not None:
        codes = torch.empty(code_bytes(code, flat.numel()), dtype=torch.uint8)
        scales = torch.empty(-(-flat.numel() // block))
        _fill_natively(module, code, flat, _memory(codes), scales, block, threads)
        return codes, scales
    if code == "dynamic":
        return blockwise.quantize_dynamic(flat, block)
    codes, scales = blockwise.quantize_nf4(flat, block)
    return blockwise.pack_nibbles(codes), scales


# ---- and back


def dequantize(
    code: Code,
    scales: memoryview,
    codes: memoryview,
    elements: int,
    block: int,
    device: torch.device,
    out: Tensor | None = None,
    threads: int = 1,
) -> Tensor:
    """Scales and codes of the lengths that are due -> float32 [elements] on `device`; in `out`, contiguous and on the
    CPU, if that is given. Raises `NonFiniteError` if a value is beyond float32."""
    if code == "nf4":
        blocks = -(-elements // block)
        split = scale_bytes("dynamic", blocks, SCALE_BLOCK)
        decoded = dequantize("dynamic", scales[:split], scales[split:], blocks, SCALE_BLOCK, device, threads=threads)
    else:
        decoded = from_bytes(scales, _SCALES_AS[code], device)
    return values_of(code, codes, decoded, elements, block, out, threads)


def values_of(
    code: Code,
    codes: memoryview | Tensor,
    scales: Tensor,
    elements: int,
    block: int,
    out: Tensor | None = None,
    threads: int = 1,
    check: bool = True,
) -> Tensor:
    """Codes, as bytes or as a uint8 tensor, and decoded scales -> float32 [elements] on the scales' device. As
    `dequantize` otherwise. Without `check` torch may give what is not finite: to look for it is to wait for a GPU."""
    module = _module_for(code, scales.device)
    if module is not None:
        values = torch.empty(elements, dtype=torch.float32) if out is None else out
        held = _memory(codes) if isinstance(codes, Tensor) else codes
        count = module.dequantize(code, held, _memory(scales), _memory(values), elements, block, threads)
    else:
        packed = codes if isinstance(codes, Tensor) else from_bytes(codes, torch.uint8, scales.device)
        values = _TORCH[code](packed, scales, elements, block)
        count = int((~torch.isfinite(values)).sum()) if check else 0
        if out is not None and not count:
            values = out.copy_(values)
    if count:
        raise _non_finite(count, elements)
    return values


def _from_linear(codes: Tensor, scales: Tensor, elements: int, block: int) -> Tensor:
    return blockwise.dequantize_linear(codes.view(torch.int8), scales, block)


def _from_dynamic(codes: Tensor, scales: Tensor, elements: int, block: int) -> Tensor:
    return blockwise.dequantize_dynamic(codes, scales, block)


def _from_nf4(codes: Tensor, scales: Tensor, elements: int, block: int) -> Tensor:
    return blockwise.dequantize_nf4_bytes(codes, scales, elements, block)


def _from_linear4(codes: Tensor, scales: Tensor, elements: int, block: int) -> Tensor:
    steps = blockwise.unpack_nibbles(codes, elements).to(torch.int8) - _INT4_ZERO
    values = blockwise.dequantize_linear(steps, scales, block)
    # Seven times a scale that was rounded up may be beyond the largest number. A scale that is infinite is found later.
    return values.clamp_(-_LARGEST, _LARGEST) if bool(torch.isfinite(scales).all()) else values


_TORCH: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "linear": _from_linear,
    "dynamic": _from_dynamic,
    "nf4": _from_nf4,
    "linear4": _from_linear4,
}


# ---- weights


FUSED_ROWS, FUSED_STEP = 8, 64
"""The native product with an nf4 weight takes at most so many rows, and blocks of a multiple of so many elements."""


def has_fused(device: torch.device) -> bool:
    return _module_for("nf4", device) is not None


def nf4_matmul(inputs: Tensor, codes: Tensor, scales: Tensor, outputs: int, block: int, threads: int = 1) -> Tensor:
    """float32 [n, in] times an nf4 weight [outputs, in], transposed -> float32 [n, outputs], nothing decoded in memory.

    `codes` uint8 [outputs * in / 2], `scales` float32 by block; n at most `FUSED_ROWS`; only where `has_fused`.
    """
    module = native()
    assert module is not None
    rows, width = inputs.shape
    made = torch.empty(rows, outputs)
    memories = (_memory(inputs.contiguous().view(-1)), _memory(codes), _memory(scales), _memory(made.view(-1)))
    module.nf4_matmul(*memories, rows, width, outputs, block, threads)
    return made


# ---- memory


def to_bytes(flat: Tensor) -> bytes:
    """The elements of a contiguous tensor, little-endian."""
    return _memory(flat.cpu()).tobytes()


def from_bytes(data: memoryview, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The contrary; what is made does not share the buffer."""
    if not len(data):
        return torch.empty(0, dtype=dtype, device=device)
    return torch.frombuffer(bytearray(data), dtype=dtype).to(device)


def _memory(flat: Tensor) -> np.ndarray[Any, Any]:
    """The bytes of a contiguous tensor on the CPU."""
    if not flat.numel():  # it may have strides that no view of bytes accepts
        return np.empty(0, np.uint8)
    return flat.view(torch.uint8).numpy()


def _module_for(code: Code, device: torch.device) -> ModuleType | None:
    return native() if code in _NATIVE and device.type == "cpu" else None


def _non_finite(count: int, elements: int) -> NonFiniteError:
    return NonFiniteError(f"{count} of {elements} elements are NaN or infinite")
