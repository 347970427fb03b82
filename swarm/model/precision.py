"""Which number format a stage computes in: resolves `compute_dtype = "auto"` once, when a manifest is written.

Measures instead of asking the processor for its name: bf16 is four times slower than fp32 on some CPUs that accept it,
and several times faster on others. Cannot fail; takes about a tenth of a second on a CPU.
"""

import time
from typing import Literal

import torch

_SIZE = 512
_ROUNDS = 5
_MARGIN = 0.95
"""bf16 must take less than this share of fp32's time: its rounding costs accuracy, so a tie goes to fp32."""


def _matmul_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The best of a few rounds of a square product, in seconds; the first round warms up and does not count."""
    matrix = torch.full((_SIZE, _SIZE), 1.0 / _SIZE, dtype=dtype, device=device)
    best = float("inf")
    for turn in range(_ROUNDS + 1):
        started = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()
        if turn:
            best = min(best, time.perf_counter() - started)
    return best


def resolve_compute_dtype(device: str = "cpu") -> Literal["fp32", "bf16"]:
    """`fp32` or `bf16`, whichever multiplies matrices faster on this machine's `device`; `fp32` on a tie."""
    where = torch.device(device)
    wide = _matmul_seconds(torch.float32, where)
    narrow = _matmul_seconds(torch.bfloat16, where)
    return "bf16" if narrow < _MARGIN * wide else "fp32"
