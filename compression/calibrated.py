"""nf4 codes and scales chosen for what a layer is given, instead of each weight rounded for itself.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) on the grid of nf4: input feature by input feature, those that matter most
first, each is rounded, and what that costs in the output is made up for by those still to come, as the gram matrix of
the layer's inputs says. Before that the scale of each block is chosen among some shares of its largest magnitude, of
either sign (the levels of nf4 are not symmetric), by the squared error that is weighted as GPTQ weights it. The result
is an `Nf4Linear` like any other: the same bits, the same kernels.

Errors: `ModelError` for shapes that do not fit.
"""

import torch
from torch import Tensor

from ..errors import ModelError
from ..kernels import blockwise, engine
from .linear import Nf4Linear

BLOCK = 64
DAMPING = 0.01
"""Of the mean of the gram matrix's diagonal, which is added to it; ten times as much where that is not enough."""

SHARES = (0.78, 0.83, 0.87, 0.9, 0.93, 0.96, 0.98, 1.0, 1.03)
"""Of a block's largest magnitude: the scales that are tried."""

TILE_ELEMENTS = 1 << 22
"""Scales are chosen for so many weights at a time."""


class Gram:
    """Sums up the gram matrix X^T X of a layer's inputs, float32 [in, in]."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.matrix = torch.zeros(features, features, device=device)

    def add(self, inputs: Tensor) -> None:
        """[..., in]"""
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        self.matrix.addmm_(flat.T, flat)


def calibrated(weight: Tensor, gram: Tensor) -> Nf4Linear:
    """Of a weight [out, in] and the gram matrix [in, in] of its inputs, on their device. Where a block of 64 would go
    on into the next row, or nothing was given, each weight is rounded for itself."""
    outputs, inputs = weight.shape
    if gram.shape != (inputs, inputs):
        raise ModelError(f"a gram matrix of shape {tuple(gram.shape)} for {inputs} inputs")
    wide = weight.detach().to(torch.float32)
    if inputs % BLOCK or not gram.any():
        return Nf4Linear.quantize(wide, block=BLOCK)
    order = torch.argsort(gram.diagonal(), descending=True)
    upper = _inverse_factor(gram[order][:, order])
    importance = torch.empty(inputs, device=wide.device)
    importance[order] = 1.0 / upper.diagonal().square()
    layer = Nf4Linear(inputs, outputs, block=BLOCK, device=wide.device)
    scales = _best_scales(wide, importance).reshape(-1)
    layer.scale_codes, layer.scale_scales = engine.codes_of("dynamic", scales, engine.SCALE_BLOCK)
    chosen = _rounded(wide, upper, order, layer.decoded_scales().view(outputs, -1))
    layer.codes = blockwise.pack_nibbles(chosen.reshape(-1))
    return layer


def output_error(weight: Tensor, held: Tensor, gram: Tensor) -> float:
    """The error of a layer's outputs beside the outputs, both root mean squares: of the weight that is `held`."""

    def power(matrix: Tensor) -> float:
        return max(0.0, float(((matrix @ gram) * matrix).sum()))

    wide = weight.float()
    whole = power(wide)
    return (power(held.float() - wide) / whole) ** 0.5 if whole else 0.0


def _inverse_factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped gram matrix."""
    damping = DAMPING * gram.diagonal().mean()
    while True:
        damped = gram + torch.diag(damping.expand(len(gram)))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping = damping * 10


def _levels(like: Tensor) -> tuple[Tensor, Tensor]:
    """The levels of nf4, and the middles between them."""
    levels = torch.tensor(blockwise.NF4_LEVELS, device=like.device)
    return levels, (levels[1:] + levels[:-1]) / 2


def _reciprocal(scales: Tensor) -> Tensor:
    """0 of 0: what such a block holds is coded as 0."""
    return torch.where(scales == 0, scales, 1.0 / scales)


def _best_scales(weight: Tensor, importance: Tensor) -> Tensor:
    """[out, in / BLOCK]: of each block the scale of least weighted squared error."""
    levels, middles = _levels(weight)
    height = max(1, TILE_ELEMENTS // weight.shape[1])
    found = []
    for rows in torch.split(weight, height):
        blocks = rows.view(len(rows), -1, BLOCK)
        weights = importance.view(1, -1, BLOCK)
        largest = blocks.abs().amax(dim=-1)
        best, least = largest, torch.full_like(largest, float("inf"))
        for share in (*SHARES, *(-share for share in SHARES)):
            scales = largest * share
            values = levels[torch.bucketize(blocks * _reciprocal(scales)[..., None], middles)] * scales[..., None]
            error = ((values - blocks).square() * weights).sum(dim=-1)
            best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
        found.append(best)
    return torch.cat(found)


def _rounded(weight: Tensor, upper: Tensor, order: Tensor, scales: Tensor) -> Tensor:
    """The codes, uint8 [out, in]. Column by column in `order`; within a block of columns at once, of the rest when it
    is done."""
    levels, middles = _levels(weight)
    left = weight.T[order].contiguous()
    spread = scales.repeat_interleave(BLOCK, dim=1).T[order].contiguous()
    inverse = _reciprocal(spread)
    codes = torch.empty(left.shape, dtype=torch.uint8, device=weight.device)
    for first in range(0, len(left), BLOCK):
        last = min(first + BLOCK, len(left))
        errors = torch.empty(last - first, left.shape[1], device=weight.device)
        for at in range(first, last):
            code = torch.bucketize(left[at] * inverse[at], middles)
            codes[at] = code
            error = (left[at] - levels[code] * spread[at]) / upper[at, at]
            errors[at - first] = error
            left[at + 1 : last].addr_(upper[at, at + 1 : last], error, alpha=-1)
        left[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
    whole = torch.empty_like(codes)
    whole[order] = codes
    return whole.T.contiguous()
