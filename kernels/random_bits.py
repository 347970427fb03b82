"""Numbers that look random and are the same on every machine: a hash of a seed and an index.

The hash is a multiply-xorshift of 32 bits (the constants are Chris Wellons's "lowbias32", hash-prospector, 2018).
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def bits(count: int, seed: int, device: torch.device) -> Tensor:
    """int64 [count], each from 0 to 2^32 - 1. `seed`: from 0 to 2^32 - 1."""
    mixed = (torch.arange(count, dtype=torch.int64, device=device) * 0x9E3779B9 + seed) & _MASK
    mixed = ((mixed ^ mixed >> 16) * 0x7FEB352D) & _MASK
    mixed = ((mixed ^ mixed >> 15) * 0x846CA68B) & _MASK
    return mixed ^ mixed >> 16


def uniform(count: int, seed: int, device: torch.device) -> Tensor:
    """float32 [count] in [0, 1), multiples of 2^-24."""
    return (bits(count, seed, device) >> 8).float() * 2.0**-24


def signs(count: int, seed: int, device: torch.device) -> Tensor:
    """float32 [count], each -1 or 1."""
    return 1.0 - 2.0 * (bits(count, seed, device) >> 31).float()
