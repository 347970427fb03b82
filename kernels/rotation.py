"""A random rotation of each block: an outlier is spread over its whole block, so that few bits suffice for it.

y = H D x, with the signs D of a seed and the Walsh-Hadamard matrix H, not normalized: H H = block * I, and dividing by
a power of two is exact. Additions and subtractions in a fixed order, so every machine gets the same bits. (Chee et
al. 2023, "QuIP", arXiv 2307.13304; Ashkboos et al. 2024, "QuaRot", arXiv 2404.00456.)
"""

import torch
from torch import Tensor

from . import random_bits


def largest(block: int) -> float:
    """Up to which magnitude elements can be rotated there and back: each way adds up a whole block."""
    return float(torch.finfo(torch.float32).max) / (2 * block * block)


def rotate(flat: Tensor, block: int, seed: int) -> Tensor:
    """float32 [n], a multiple of `block`, a power of two -> float32 [n]."""
    return _hadamard(flat.view(-1, block) * random_bits.signs(block, seed, flat.device)).view(-1)


def rotate_back(flat: Tensor, block: int, seed: int) -> Tensor:
    """The inverse, but for rounding."""
    return (_hadamard(flat.view(-1, block)) * (random_bits.signs(block, seed, flat.device) / block)).view(-1)


def _hadamard(rows: Tensor) -> Tensor:
    """float32 [r, block] times the Hadamard matrix in Sylvester's order, butterfly by butterfly."""
    width, half = rows.shape[1], 1
    while half < width:
        pairs = rows.reshape(-1, width // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        rows = torch.stack((torch.add(first, second), torch.sub(first, second)), dim=2).view(-1, width)
        half *= 2
    return rows
