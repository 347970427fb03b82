"""Blockwise 8-bit quantization in torch: the reference that says which codes a tensor has.

A flat tensor is cut into blocks of `block` elements (the last may be shorter); each block has one scale. Two codes:

- linear int8: scale = absmax / 127 as bfloat16, rounded up so that nothing clips; code = x / scale, rounded half to
  even.
- dynamic: 256 levels in [-1, 1] whose resolution follows their magnitude (Dettmers 2015, "8-Bit Approximations for
  Parallelism in Deep Learning", arXiv 1511.04561); scale = absmax as float32; the nearest level, the smaller one in
  magnitude on ties.

Zero decodes to zero, and a block of zeros has scale 0. Device-neutral: tensors stay where they are. Each element
depends on its block alone, so the number of threads changes nothing. Errors: `NonFiniteError`, saying how many
elements it found.
"""

from functools import cache

import torch
from torch import Tensor

from ..errors import NonFiniteError

LINEAR_MAX = 127
_KEY_SHIFT, _KEY_MASK = 17, (1 << 15) - 1
_CHUNK = 1 << 18
"""Elements looked up at once, so that what the lookup makes on the way stays in cache."""


def dynamic_levels() -> list[float]:
    """The 256 levels of the signed dynamic code, ascending.

    One sign bit, then a run of zeros that sets the decade, an indicator bit, and a linear fraction in what is left:
    with n zeros the magnitude is 10^-n times one of 2^(6-n) means of equal intervals of [0.1, 1]. Zero and one are
    added.
    """
    magnitudes: list[float] = []
    for zeros in range(7):
        intervals = 2 ** (6 - zeros)
        for interval in range(intervals):
            low = 0.1 + 0.9 * interval / intervals
            high = 0.1 + 0.9 * (interval + 1) / intervals
            magnitudes.append((low + high) / 2 * 10.0**-zeros)
    return sorted([*(-value for value in magnitudes), 0.0, *magnitudes, 1.0])


@cache
def _dynamic_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """(levels [256], thresholds [255]): the code of x is how many thresholds lie below it.

    A threshold is the largest float32 that still belongs to the lower level, so that one comparison decides exactly
    what the nearest level is; thresholds of negative levels leave the tie to the upper level, which is the smaller
    magnitude.
    """
    levels = torch.tensor(dynamic_levels(), dtype=torch.float64).float().double()
    middles = (levels[:-1] + levels[1:]) / 2
    rounded = middles.float()
    below = torch.where(rounded.double() > middles, torch.nextafter(rounded, torch.full_like(rounded, -2.0)), rounded)
    # Negative side: a value at the middle itself goes up, so the threshold must lie strictly below the middle.
    strictly = torch.where(below.double() == middles, torch.nextafter(below, torch.full_like(below, -2.0)), below)
    thresholds = torch.where(middles < 0, strictly, below)
    return levels.float().to(device), thresholds.to(device)


@cache
def _dynamic_buckets(device: torch.device) -> tuple[Tensor, Tensor]:
    """By the top 15 bits of a float32 (sign, exponent, 6 of the mantissa): its lowest code, and the threshold inside.

    Numbers that share those bits lie closer together than two thresholds, so one comparison decides what a search
    among all would, five times as fast. Where no threshold lies among them it is infinite.
    """
    _, thresholds = _dynamic_tables(torch.device("cpu"))
    first = torch.arange(_KEY_MASK + 1, dtype=torch.int32) << _KEY_SHIFT
    ends = first.view(torch.float32), (first | ((1 << _KEY_SHIFT) - 1)).view(torch.float32)
    lowest = torch.bucketize(torch.minimum(*ends), thresholds)
    highest = torch.bucketize(torch.maximum(*ends), thresholds)
    inside = torch.where(highest > lowest, thresholds[lowest.clamp_max(254)], torch.tensor(torch.inf))
    return lowest.to(torch.uint8).to(device), inside.to(device)


def _blocks(flat: Tensor, block: int) -> Tensor:
    """The flat tensor as [blocks, block], zeros behind a ragged tail."""
    tail = -flat.numel() % block
    padded = torch.nn.functional.pad(flat, (0, tail)) if tail else flat
    return padded.view(-1, block)


def absmax(blocks: Tensor) -> Tensor:
    """Largest magnitude of each block [blocks]. Raises `NonFiniteError`."""
    largest = blocks.abs().amax(dim=1)
    if not bool(torch.isfinite(largest).all()):
        count = int((~torch.isfinite(blocks)).sum())
        raise NonFiniteError(f"{count} of the tensor's elements are NaN or infinite")
    return largest


def quantize_linear(flat: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """float32 [n] -> (int8 codes [n], bfloat16 scales [ceil(n / block)])."""
    if not flat.numel():
        return flat.to(torch.int8), flat.to(torch.bfloat16)
    blocks = _blocks(flat, block)
    largest = absmax(blocks)
    # By a tensor: CUDA multiplies by the reciprocal of a plain number, which rounds otherwise than the CPU's division.
    scales = _round_up_bfloat16(largest / torch.full_like(largest, LINEAR_MAX))
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales).float()
    codes = torch.round(blocks / divisors[:, None]).clamp_(-LINEAR_MAX, LINEAR_MAX).to(torch.int8)
    return codes.view(-1)[: flat.numel()].contiguous(), scales


def dequantize_linear(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    """(int8 codes [n], bfloat16 scales) -> float32 [n]."""
    if not codes.numel():
        return codes.float()
    return (_blocks(codes, block).float() * scales.float()[:, None]).view(-1)[: codes.numel()]


def quantize_dynamic(flat: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """float32 [n] -> (uint8 codes [n], float32 scales [ceil(n / block)])."""
    if not flat.numel():
        return flat.to(torch.uint8), flat
    blocks = _blocks(flat, block)
    scales = absmax(blocks)
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales)
    lowest, inside = _dynamic_buckets(flat.device)
    codes = torch.empty(flat.numel(), dtype=torch.uint8, device=flat.device)
    values = (blocks / divisors[:, None]).view(-1)[: flat.numel()]
    for part, target in zip(torch.split(values, _CHUNK), torch.split(codes, _CHUNK), strict=True):
        keys = (part.view(torch.int32) >> _KEY_SHIFT) & _KEY_MASK
        torch.add(lowest[keys], part > inside[keys], out=target)
    return codes, scales


def dequantize_dynamic(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    """(uint8 codes [n], float32 scales) -> float32 [n]."""
    if not codes.numel():
        return codes.float()
    levels, _ = _dynamic_tables(codes.device)
    values = levels[codes.int()]
    return (_blocks(values, block) * scales[:, None]).view(-1)[: codes.numel()]


def _round_up_bfloat16(values: Tensor) -> Tensor:
    """Non-negative float32 -> the smallest bfloat16 that is not below."""
    bits = values.view(torch.int32)
    return ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
