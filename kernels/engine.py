"""The blockwise codes by the fastest means: the native module for tensors on the CPU if it was built, else torch.

Whoever computes, the same bytes (`kernels/README.md`). `SWARM_PEER_KERNELS` chooses: `torch`, or an instruction set of
the native module (`plain`, `avx2`, `avx512`); unset, the best one that the machine has.
"""

import logging
import os
import zlib
from functools import cache
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import NonFiniteError, UsageError
from . import blockwise

CHOICE = "SWARM_PEER_KERNELS"

Code = Literal["linear", "dynamic"]

ALIGNMENT = 4
"""Bytes; what the native module asks of scales."""

_REFERENCE = {
    "linear": (blockwise.quantize_linear, blockwise.dequantize_linear, torch.int8, torch.bfloat16),
    "dynamic": (blockwise.quantize_dynamic, blockwise.dequantize_dynamic, torch.uint8, torch.float32),
}

logger = logging.getLogger(__name__)


@cache
def native() -> ModuleType | None:
    """The native module, set to the instruction set that was chosen; None where torch computes."""
    wanted = os.environ.get(CHOICE, "")
    if wanted == "torch":
        return None
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
    _native.set_levels(torch.tensor(blockwise.dynamic_levels(), dtype=torch.float32).numpy())
    _native.use(wanted or sets[-1])
    return _native


def name() -> str:
    """What computes: `torch`, or `native` and its instruction set."""
    module = native()
    return "torch" if module is None else f"native ({module.used()})"


def crc32(data: memoryview | bytes) -> int:
    """As zlib's."""
    module = native()
    return zlib.crc32(data) if module is None else int(module.crc32(data))


def pack(code: Code, header: bytes, checksum_at: int, flat: Tensor, block: int, threads: int = 1) -> bytes:
    """float32 [n] -> header, scales and codes, with the CRC-32 of the last two put into the header.

    Raises `NonFiniteError`, saying how many elements are.
    """
    module = native() if flat.device.type == "cpu" else None
    if module is None:
        codes, scales = _REFERENCE[code][0](flat, block)
        payload = to_bytes(scales) + to_bytes(codes)
        sealed = bytearray(header)
        sealed[checksum_at : checksum_at + 4] = crc32(payload).to_bytes(4, "little")
        return bytes(sealed) + payload
    made = module.pack(code, header, checksum_at, _memory(flat), flat.numel(), block, threads)
    if isinstance(made, int):
        raise NonFiniteError(f"{made} of {flat.numel()} elements are NaN or infinite")
    return bytes(made)


def unpack(
    code: Code, payload: memoryview, elements: int, block: int, device: torch.device, threads: int = 1
) -> Tensor:
    """Scales and codes -> float32 [elements] on `device`. Raises `NonFiniteError` if that is beyond float32."""
    module = native() if device.type == "cpu" else None
    if module is None:
        _, dequantize, codes_as, scales_as = _REFERENCE[code]
        split = -(-elements // block) * scales_as.itemsize
        scales = from_bytes(payload[:split], scales_as, device)
        flat = dequantize(from_bytes(payload[split:], codes_as, device), scales, block)
        count = int((~torch.isfinite(flat)).sum())
    else:
        flat = torch.empty(elements, dtype=torch.float32)
        aligned = np.frombuffer(payload, np.uint8)
        if aligned.ctypes.data % ALIGNMENT:
            aligned = aligned.copy()
        count = module.unpack(code, aligned, _memory(flat), elements, block, threads)
    if count:
        raise NonFiniteError(f"{count} of {elements} elements are NaN or beyond float32")
    return flat


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
