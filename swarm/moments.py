"""Adam's moments as they are kept: float32, or 8 bits an element in blocks of 256, each with a float32 scale.

The 8-bit form is Dettmers' dynamic code ("8-bit Optimizers via Block-wise Quantization", 2022, arXiv 2110.02861), exact
nearest. Of the second moment the square root is coded, whose range is half as wide in digits, and what is positive is
never coded as zero: an element whose scale is lost would be moved by the whole learning rate. Tensors of fewer than
`SMALLEST` elements stay whole. The same bits on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels import engine
from ..kernels.blockwise import DYNAMIC_ZERO

BLOCK = 256
SMALLEST = 4096

Form = Literal["fp32", "8bit"]

_TINIEST = 2.0**-149


@dataclass(frozen=True, slots=True)
class Coded:
    """A moment in 8 bits: `codes` uint8 [n], `scales` float32 [n / 256, rounded up]."""

    codes: Tensor
    scales: Tensor


Moment = Tensor | Coded


def is_coded(elements: int, form: Form) -> bool:
    return form == "8bit" and elements >= SMALLEST


def pieces(moment: Moment) -> Sequence[Tensor]:
    """The tensors that it consists of."""
    return (moment,) if isinstance(moment, Tensor) else (moment.scales, moment.codes)


def keep_first(values: Tensor, form: Form) -> Moment:
    """float32 of any shape -> as it is kept."""
    return _code(values) if is_coded(values.numel(), form) else values


def keep_second(values: Tensor, form: Form) -> Moment:
    """The same for what is not negative."""
    if not is_coded(values.numel(), form):
        return values
    roots = sqrt(values)
    coded = _code(roots)
    lost = (coded.codes == DYNAMIC_ZERO).logical_and(roots.view(-1) > 0)
    return Coded(torch.where(lost, DYNAMIC_ZERO + 1, coded.codes).to(torch.uint8), coded.scales)


def first(moment: Moment, shape: tuple[int, ...]) -> Tensor:
    """float32 of this shape."""
    return moment if isinstance(moment, Tensor) else _values(moment, shape)


def second(moment: Moment, shape: tuple[int, ...]) -> Tensor:
    """float32 of this shape; positive where what was kept was."""
    if isinstance(moment, Tensor):
        return moment
    roots = _values(moment, shape)
    squares = torch.mul(roots, roots)
    return torch.where((squares == 0).logical_and(roots > 0), torch.full_like(squares, _TINIEST), squares)


def sqrt(values: Tensor) -> Tensor:
    """The correctly rounded fp32 square root. torch's own is not on every CPU (on AMD's, one in five is off by a bit).

    A double that is off by one bit rounds right all the same: no square root of a 24-bit number lies so near the middle
    of two others.
    """
    return torch.sqrt(values.double()).float()


def _code(values: Tensor) -> Coded:
    return Coded(*engine.codes_of("dynamic", values.contiguous().view(-1), BLOCK))


def _values(coded: Coded, shape: tuple[int, ...]) -> Tensor:
    return engine.values_of("dynamic", coded.codes, coded.scales, coded.codes.numel(), BLOCK, check=False).view(shape)
