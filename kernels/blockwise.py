"""Blockwise quantization in torch: the reference that says which codes a tensor has.

A flat tensor is cut into blocks of `block` elements (the last may be shorter); each block has one scale. The codes:

- linear: `top` steps to either side of zero (127 for int8, 7 for int4). scale = absmax / top as bfloat16, rounded up so
  that nothing clips; code = x times the float32 reciprocal of the scale, rounded half to even, or at random (below).
- dynamic: 256 levels in [-1, 1] whose resolution follows their magnitude (Dettmers 2015, "8-Bit Approximations for
  Parallelism in Deep Learning", arXiv 1511.04561); scale = absmax as float32; the level nearest to the exact quotient
  of x and the scale, the smaller one in magnitude on ties.
- nf4: the 16 levels of QLoRA's NormalFloat (Dettmers et al. 2023, arXiv 2305.14314, appendix E); scale = absmax as
  float32; x times the float32 reciprocal of the scale, and the level nearest to that: by the float32 midpoints, the
  lower level on ties. So bitsandbytes 0.50 has it, whose codes these are.

Zero decodes to zero, and a block of zeros has scale 0. Device-neutral: tensors stay where they are. Each element
depends on its block alone, so the number of threads changes nothing. Errors: `NonFiniteError`, saying how many
elements it found.
"""

from functools import cache

import torch
from torch import Tensor

from ..errors import NonFiniteError

INT8, INT4 = 127, 7
"""The `top` of the linear codes."""

SMALL, UP = 2.0**-100, 2.0**64
"""The reciprocal of a scale below `SMALL` could be infinite: scale and values are multiplied by `UP` first, exactly."""

DYNAMIC_ZERO = 127
"""The dynamic code of zero."""

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""As the paper gives them, in float32."""


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
    """(levels [256] float32, midpoints [128] float64 between the magnitudes from 0 to 1) of the signed dynamic code."""
    levels = torch.tensor(dynamic_levels(), dtype=torch.float32)
    magnitudes = levels[DYNAMIC_ZERO:].double()
    return levels.to(device), ((magnitudes[:-1] + magnitudes[1:]) / 2).to(device)


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


def quantize_linear(flat: Tensor, block: int, top: int = INT8, dither: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """float32 [n] -> (int8 codes [n] from -top to top, bfloat16 scales [ceil(n / block)]).

    With `dither`, float32 [n] in [0, 1), a quotient is rounded up where its fraction is larger than that.

    Why blocks: a type with three levels for what is not negative (`top` 2) and two vectors, each with a scale of its
    own, and then with one for both. The 3 of the first spoils the second, which could be exact:

    >>> values = torch.tensor([3.0, 1.0, 2.0, 3.0, 0.0, 2.0, 2.0, 0.0])
    >>> codes, scales = quantize_linear(values, block=4, top=2)
    >>> codes.tolist(), scales.tolist()
    ([2, 1, 1, 2, 0, 2, 2, 0], [1.5, 1.0])
    >>> dequantize_linear(codes, scales, block=4).tolist()
    [3.0, 1.5, 1.5, 3.0, 0.0, 2.0, 2.0, 0.0]
    >>> codes, scales = quantize_linear(values, block=8, top=2)
    >>> dequantize_linear(codes, scales, block=8).tolist()
    [3.0, 1.5, 1.5, 3.0, 0.0, 1.5, 1.5, 0.0]
    """
    if not flat.numel():
        return flat.to(torch.int8), flat.to(torch.bfloat16)
    blocks = _blocks(flat, block)
    largest = absmax(blocks)
    # By tensors: CUDA multiplies by the reciprocal of a plain number, which rounds otherwise than the CPU's division.
    scales = _round_up_bfloat16(largest / torch.full_like(largest, top))
    quotients = _quotients(blocks, scales.float()).view(-1)[: flat.numel()]
    if dither is None:
        return torch.round(quotients).to(torch.int8), scales
    below = torch.floor(quotients)
    codes = below + (quotients - below > dither)
    return codes.clamp(-top, top).to(torch.int8), scales


def _quotients(blocks: Tensor, scales: Tensor) -> Tensor:
    """float32 [b, n] times the float32 reciprocals of scales [b]; zeros where the scale is 0."""
    up = torch.where(scales < SMALL, torch.full_like(scales, UP), torch.ones_like(scales))
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales * up)
    return blocks * up[:, None] * (torch.ones_like(scales) / divisors)[:, None]


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
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales).double()
    _, middles = _dynamic_tables(flat.device)
    # A quotient of two floats that is not a midpoint differs from it by more than a double rounds.
    index = torch.bucketize(blocks.abs().double() / divisors[:, None], middles)
    top = len(middles) - 1  # there is no -1
    codes = torch.where(blocks < 0, DYNAMIC_ZERO - index.clamp_max(top), DYNAMIC_ZERO + index).to(torch.uint8)
    return codes.view(-1)[: flat.numel()].contiguous(), scales


def dequantize_dynamic(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    """(uint8 codes [n], float32 scales) -> float32 [n]."""
    if not codes.numel():
        return codes.float()
    levels, _ = _dynamic_tables(codes.device)
    values = levels[codes.int()]
    return (_blocks(values, block) * scales[:, None]).view(-1)[: codes.numel()]


@cache
def _nf4_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """(levels [16], midpoints [15]), float32."""
    levels = torch.tensor(NF4_LEVELS, dtype=torch.float32)
    return levels.to(device), ((levels[:-1] + levels[1:]) / 2).to(device)


def quantize_nf4(flat: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """float32 [n] -> (uint8 codes [n] from 0 to 15, float32 scales [ceil(n / block)])."""
    if not flat.numel():
        return flat.to(torch.uint8), flat
    blocks = _blocks(flat, block)
    scales = absmax(blocks)
    _, middles = _nf4_tables(flat.device)
    codes = torch.bucketize(_quotients(blocks, scales), middles).to(torch.uint8)
    return codes.view(-1)[: flat.numel()].contiguous(), scales


def dequantize_nf4(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    """(uint8 codes [n], float32 scales) -> float32 [n]."""
    if not codes.numel():
        return codes.float()
    levels, _ = _nf4_tables(codes.device)
    return (_blocks(levels[codes.int()], block) * scales[:, None]).view(-1)[: codes.numel()]


@cache
def _nf4_pairs(device: torch.device) -> Tensor:
    """int64 [256]: the two levels of every byte, as the bits of two float32."""
    levels, _ = _nf4_tables(device)
    return torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=1).view(torch.int64).view(-1)


def dequantize_nf4_bytes(packed: Tensor, scales: Tensor, elements: int, block: int) -> Tensor:
    """(uint8 bytes [n / 2, rounded up], float32 scales) -> float32 [n]: what `dequantize_nf4` makes of the unpacked
    codes, with one look-up for two of them."""
    if not elements:
        return torch.empty(0, device=packed.device)
    values = _nf4_pairs(packed.device).index_select(0, packed.int()).view(torch.float32)[:elements]
    return (_blocks(values, block) * scales[:, None]).view(-1)[:elements]


def pack_nibbles(codes: Tensor) -> Tensor:
    """uint8 [n] from 0 to 15 -> uint8 [ceil(n / 2)]: the first of two in the high nibble, 0 behind an odd last one."""
    pairs = torch.nn.functional.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1]


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """uint8 [ceil(count / 2)] -> uint8 [count]."""
    return torch.stack((packed >> 4, packed & 15), dim=1).view(-1)[:count]


def _round_up_bfloat16(values: Tensor) -> Tensor:
    """Non-negative float32 -> the smallest bfloat16 that is not below."""
    bits = values.view(torch.int32)
    return ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
