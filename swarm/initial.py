"""Initial values: the same bits for the same (seed, tensor name) on every machine, whatever the CPU or library version.

Library normals differ between CPUs of different capability, so values come from numpy's counter-based Philox, keyed by
sha256 of seed and name. The top 24 bits of each draw are a multiple of 2^-24, which fp32 holds exactly; one correctly
rounded multiplication and one addition place it in the interval. Two stages that share a tensor share its name and so
its values. Talks to nobody; cannot fail on valid shapes.

Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 20
"""Draws held at once: 8 MiB of 64-bit words, however large the tensor."""


def uniform(seed: int, name: str, shape: Sequence[int], low: float, high: float) -> Tensor:
    """An fp32 CPU tensor of `shape`, uniform in [low, high), filled in row-major order.

    `low` and `high - low` are rounded to fp32 first; `high` itself can come out by rounding.
    """
    key = np.frombuffer(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], dtype="<u8")
    generator = np.random.Philox(key=key)
    width, start = np.float32(high - low), np.float32(low)
    values = np.empty(math.prod(shape), dtype=np.float32)
    for first in range(0, values.size, _CHUNK):
        part = values[first : first + _CHUNK]
        part[:] = generator.random_raw(part.size) >> np.uint64(40)
        part *= np.float32(2.0**-24)
        part *= width
        part += start
    return torch.from_numpy(values.reshape(tuple(shape)))


def base_tensor(seed: int, name: str, shape: Sequence[int], initializer_range: float) -> Tensor:
    """A tensor of a random base, fp32: norms (one dimension) are 1, matrices uniform with that standard deviation."""
    if len(shape) == 1:
        return torch.ones(tuple(shape))
    bound = initializer_range * math.sqrt(3.0)
    return uniform(seed, name, shape, -bound, bound)


def lora_tensor(seed: int, name: str, shape: Sequence[int]) -> Tensor:
    """A LoRA factor, fp32: `*.lora_A` [rank, in] uniform in +-1/sqrt(in), `*.lora_B` [out, rank] zero.

    Hu et al., "LoRA: low-rank adaptation of large language models", 2021.
    """
    if name.endswith(".lora_B"):
        return torch.zeros(tuple(shape))
    bound = 1.0 / math.sqrt(shape[-1])
    return uniform(seed, name, shape, -bound, bound)
