"""nf4 on a CUDA device by bitsandbytes' kernel, where that is installed (`pip install 'swarm-peer[gpu]'`); else torch
decodes.

The same bits either way: a level times a scale in float32, rounded to the type that is wanted.
"""

import logging
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from .engine import native_wanted, values_of

BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Elements of a block that the kernel knows."""

logger = logging.getLogger(__name__)


@cache
def available(device: torch.device) -> bool:
    """Whether bitsandbytes is here and decodes on this device, to torch's bits: tried once. With
    `SWARM_PEER_KERNELS=torch` it is left alone."""
    if not native_wanted():
        return False
    codes, scales = torch.arange(256, dtype=torch.uint8), torch.linspace(-1, 1, 512 // BLOCKS[0])
    try:
        import_module("bitsandbytes")  # which registers its kernels with torch
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            ours = values_of("nf4", codes, scales, 512, BLOCKS[0]).view(8, 64).to(dtype)
            theirs = _decoded(codes.to(device), scales.to(device), (8, 64), BLOCKS[0], dtype)
            if not torch.equal(theirs.cpu(), ours):
                raise RuntimeError(f"what it decodes to {dtype} differs")
    except ImportError:
        return False
    except (AttributeError, OSError, RuntimeError) as error:
        logger.warning("bitsandbytes cannot be used on %s, and torch decodes nf4: %s", device, error)
        return False
    return True


def decoded_nf4(codes: Tensor, scales: Tensor, shape: tuple[int, int], block: int, dtype: torch.dtype) -> Tensor | None:
    """A weight [out, in] of `dtype` (float32, bfloat16, float16); `codes` uint8 [out * in / 2], `scales` float32 by
    block. None where the kernel cannot."""
    if block not in BLOCKS or not available(codes.device):
        return None
    return _decoded(codes, scales, shape, block, dtype)


def _decoded(codes: Tensor, scales: Tensor, shape: tuple[int, int], block: int, dtype: torch.dtype) -> Tensor:
    made: Tensor = torch.ops.bitsandbytes.dequantize_4bit(codes.view(-1, 1), scales, block, "nf4", list(shape), dtype)
    return made
