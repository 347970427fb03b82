"""nf4 on a CUDA device by bitsandbytes' kernel, where that is installed (`pip install 'swarm-peer[gpu]'`); else torch
decodes.

The same bits either way: a level times a scale in float32, rounded to the type that is wanted.
"""

import logging
from functools import cache

import torch
from torch import Tensor

from .engine import native_wanted

BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Elements of a block that the kernel knows."""

logger = logging.getLogger(__name__)


@cache
def available() -> bool:
    """Whether bitsandbytes is here and can decode; `SWARM_PEER_KERNELS=torch` has it left alone."""
    if not native_wanted():
        return False
    try:
        import bitsandbytes  # noqa: F401

        torch.ops.bitsandbytes.dequantize_4bit  # noqa: B018
    except ImportError:
        return False
    except (AttributeError, OSError, RuntimeError) as error:
        logger.warning("bitsandbytes cannot be used, and torch decodes nf4: %s", error)
        return False
    return True


def decoded_nf4(codes: Tensor, scales: Tensor, shape: tuple[int, int], block: int, dtype: torch.dtype) -> Tensor | None:
    """A weight [out, in] of `dtype` (float32, bfloat16, float16); `codes` uint8 [out * in / 2], `scales` float32 by
    block. None where the kernel cannot."""
    if block not in BLOCKS or not available():
        return None
    made: Tensor = torch.ops.bitsandbytes.dequantize_4bit(codes.view(-1, 1), scales, block, "nf4", list(shape), dtype)
    return made
