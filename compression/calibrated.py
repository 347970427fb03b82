"""nf4 codes and scales chosen for what a layer is given, instead of each weight rounded for itself.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) on the grid of nf4: input feature by input feature, those that matter most
first, each is rounded, and what that costs in the output is made up for by those still to come, as the gram matrix of
the layer's inputs says. Before that the scale of each block is chosen among some shares of its largest magnitude, of
either sign (the levels of nf4 are not symmetric), by the squared error that is weighted as GPTQ weights it. Afterwards
each code once more, the others given; then all scales of a row, the codes given; then the codes again. What a layer is
given is off already where those before it are quantized: half of that is made up for too (as GPTAQ does with all of it,
Li et al. 2025, arXiv 2504.02692; with a text of some ten thousand tokens half was best). The result is an `Nf4Linear`
like any other: the same bits, the same kernels.

Errors: `ModelError` for shapes that do not fit, and for inputs that are not finite.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ModelError
from ..kernels import blockwise, engine
from .linear import Nf4Linear

BLOCK = 64
DAMPING = 0.01
"""Of the mean of the gram matrix's diagonal, which is added to it; ten times as much where that is not enough, and so
on."""

MOST_DAMPINGS = 8

SHARES = (0.78, 0.83, 0.87, 0.9, 0.93, 0.96, 0.98, 1.0, 1.03)
"""Of a block's largest magnitude: the scales that are tried."""

TILE_ELEMENTS = 1 << 22
"""Scales are chosen for so many weights at a time."""

MADE_UP_FOR = 0.5
"""Of what inputs are off by."""

RIDGE = 1e-4
"""Holds the scales of a row to what they were, where the inputs say little about them."""

_LEVELS = torch.tensor(blockwise.NF4_LEVELS)
_MIDDLES = (_LEVELS[1:] + _LEVELS[:-1]) / 2
_SCALE_LEVELS = torch.tensor(blockwise.dynamic_levels())


class Gram:
    """Sums up over a layer's inputs X, float32 [in, in]: `matrix`, their gram matrix X^T X; where W are the inputs as
    they would be were nothing quantized, `drift`, (W - X)^T X, and `whole`, W^T W."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.matrix = torch.zeros(features, features, device=device)
        self.drift = torch.zeros(features, features, device=device)
        self.whole = torch.zeros(features, features, device=device)

    def add(self, inputs: Tensor, whole: Tensor) -> None:
        """[..., in] each"""
        flat, other = (part.reshape(-1, part.shape[-1]).float() for part in (inputs, whole))
        self.matrix.addmm_(flat.T, flat)
        self.drift.addmm_((other - flat).T, flat)
        self.whole.addmm_(other.T, other)

    @property
    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(part).all()) for part in (self.matrix, self.drift, self.whole))


def aimed_at(weight: Tensor, gram: Gram) -> Tensor:
    """What a weight [out, in] is to be where its inputs are off: float32."""
    wide = weight.detach().to(torch.float32)
    if not gram.drift.any():
        return wide
    damped, _, _ = _factored(gram.matrix)
    missing: Tensor = torch.linalg.solve(damped, (wide @ gram.drift).T).T
    return wide + MADE_UP_FOR * missing


def calibrated(weight: Tensor, gram: Tensor) -> Nf4Linear:
    """Of a weight [out, in] and the gram matrix [in, in] of its inputs, on their device. Where a block of 64 would go
    on into the next row, or nothing was given, each weight is rounded for itself."""
    outputs, inputs = weight.shape
    if gram.shape != (inputs, inputs):
        raise ModelError(f"a gram matrix of shape {tuple(gram.shape)} for {inputs} inputs")
    wide = weight.detach().to(torch.float32).contiguous()
    if inputs % BLOCK or not gram.any():
        return Nf4Linear.quantize(wide, block=BLOCK)
    gram, upper, order = _factored(gram)
    importance = torch.empty(inputs, device=wide.device)
    importance[order] = 1.0 / upper.diagonal().square()
    scales = _Scales.of(_best_scales(wide, importance))
    codes = _swept(_rounded(wide, upper, order, scales.decoded), wide, gram, scales.decoded)
    others = _Scales.of(_refitted(codes, wide, gram, scales.decoded))
    moved = _swept(codes, wide, gram, others.decoded)
    if _loss(moved, wide, gram, others.decoded) < _loss(codes, wide, gram, scales.decoded):
        codes, scales = moved, others
    layer = Nf4Linear(inputs, outputs, block=BLOCK, device=wide.device)
    layer.codes = blockwise.pack_nibbles(codes.T.to(torch.uint8).reshape(-1))
    layer.scale_codes, layer.scale_scales = scales.codes, scales.shared
    return layer


def output_error(weight: Tensor, held: Tensor, gram: Gram) -> float:
    """How far the outputs of a layer that holds `held` are from those of `weight`, were nothing quantized, beside the
    latter: both root mean squares."""
    wide, error = weight.float(), held.float() - weight.float()

    def product(one: Tensor, matrix: Tensor, other: Tensor) -> float:
        return float(((one @ matrix) * other).sum(dtype=torch.float64))

    whole = product(wide, gram.whole, wide)
    # Of the inputs: (W - X)^T (W - X).
    apart = gram.whole - gram.matrix - gram.drift - gram.drift.T
    off = product(error, gram.matrix, error) - 2 * product(wide, gram.drift, error) + product(wide, apart, wide)
    return (max(0.0, off) / whole) ** 0.5 if whole else 0.0


@dataclass(frozen=True, slots=True)
class _Scales:
    """Doubly quantized: `codes` uint8 [B] and `shared` float32 [B / 256, rounded up]; as they decode, [out, blocks]."""

    codes: Tensor
    shared: Tensor
    decoded: Tensor

    @classmethod
    def of(cls, scales: Tensor) -> "_Scales":
        levels = _SCALE_LEVELS.to(scales.device)
        groups = functional.pad(scales.reshape(-1), (0, -scales.numel() % engine.SCALE_BLOCK))
        groups = groups.view(-1, engine.SCALE_BLOCK)
        # The code has 1 but not -1: where the largest is negative, its lowest level has to reach that one.
        shared = torch.maximum(groups.amax(dim=1), groups.amin(dim=1) / levels[0])
        codes = torch.bucketize(groups * _reciprocal(shared)[:, None], (levels[1:] + levels[:-1]) / 2)
        decoded = (levels[codes] * shared[:, None]).view(-1)[: scales.numel()].view_as(scales)
        return cls(codes.to(torch.uint8).view(-1)[: scales.numel()].contiguous(), shared, decoded)


def _factored(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The damped gram matrix, the upper Cholesky factor of its inverse in the order of importance, and that order."""
    damping = DAMPING * gram.diagonal().mean()
    order = torch.argsort(gram.diagonal(), descending=True)
    for _ in range(MOST_DAMPINGS):
        damped = gram + torch.diag(damping.expand(len(gram)))
        lower, failed = torch.linalg.cholesky_ex(damped[order][:, order])
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return damped, upper, order
        damping = damping * 10
    raise ModelError("the gram matrix of its inputs cannot be inverted: they are not finite, or beyond all measure")


def _reciprocal(scales: Tensor) -> Tensor:
    """0 of 0: what such a block holds is coded as 0."""
    return torch.where(scales == 0, scales, 1.0 / scales)


def _best_scales(weight: Tensor, importance: Tensor) -> Tensor:
    """[out, blocks]: of each block the scale of least weighted squared error."""
    levels, middles = _LEVELS.to(weight.device), _MIDDLES.to(weight.device)
    found = []
    for rows in torch.split(weight, max(1, TILE_ELEMENTS // weight.shape[1])):
        blocks, weights = rows.view(len(rows), -1, BLOCK), importance.view(1, -1, BLOCK)
        largest = blocks.abs().amax(dim=-1)
        best, least = largest, torch.full_like(largest, float("inf"))
        for share in (*SHARES, *(-share for share in SHARES)):
            scales = largest * share
            values = levels[torch.bucketize(blocks * _reciprocal(scales)[..., None], middles)] * scales[..., None]
            error = ((values - blocks).square() * weights).sum(dim=-1)
            best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
        found.append(best)
    return torch.cat(found)


# In what follows rows are inputs: they are gone through one after the other, for all outputs at once.


def _each(scales: Tensor) -> Tensor:
    """Of every weight, [in, out]."""
    return scales.T.repeat_interleave(BLOCK, dim=0).contiguous()


def _rounded(weight: Tensor, upper: Tensor, order: Tensor, scales: Tensor) -> Tensor:
    """GPTQ: codes, int64 [in, out]. Of a block of inputs what is left is made up for at once within the block, and in
    the rest when it is done."""
    levels, middles = _LEVELS.to(weight.device), _MIDDLES.to(weight.device)
    left, each = weight.T[order].contiguous(), _each(scales)[order]
    inverse, codes = _reciprocal(each), torch.empty(left.shape, dtype=torch.int64, device=weight.device)
    for first in range(0, len(left), BLOCK):
        last = first + BLOCK
        errors = torch.empty(BLOCK, left.shape[1], device=weight.device)
        for at in range(first, last):
            codes[at] = torch.bucketize(left[at] * inverse[at], middles)
            error = (left[at] - levels[codes[at]] * each[at]) / upper[at, at]
            errors[at - first] = error
            left[at + 1 : last].addr_(upper[at, at + 1 : last], error, alpha=-1)
        left[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
    found = torch.empty_like(codes)
    found[order] = codes
    return found


def _swept(codes: Tensor, weight: Tensor, gram: Tensor, scales: Tensor) -> Tensor:
    """Each code in its turn the best one, the others given."""
    levels, middles = _LEVELS.to(weight.device), _MIDDLES.to(weight.device)
    each, codes, diagonal = _each(scales), codes.clone(), gram.diagonal()
    inverse, values = _reciprocal(each), levels[codes] * each
    errors = values - weight.T
    for first in range(0, len(codes), BLOCK):
        slope = gram[first : first + BLOCK] @ errors
        for row, at in enumerate(range(first, first + BLOCK)):
            codes[at] = torch.bucketize((values[at] - slope[row] / diagonal[at]) * inverse[at], middles)
            change = levels[codes[at]] * each[at] - values[at]
            values[at] += change
            errors[at] += change
            slope[row + 1 :].addr_(gram[at, at + 1 : first + BLOCK], change)
    return codes


def _refitted(codes: Tensor, weight: Tensor, gram: Tensor, scales: Tensor) -> Tensor:
    """The scales [out, blocks] of least squared error of the outputs, the codes given."""
    count = scales.shape[1]
    levels, found = _LEVELS.to(weight.device), []
    height = max(1, TILE_ELEMENTS // max(count * count, weight.shape[1]))
    for first in range(0, len(weight), height):
        rows, before = weight[first : first + height], scales[first : first + height]
        spread = levels[codes[:, first : first + height]].T.reshape(len(rows), count, BLOCK)
        normal = torch.stack(
            [
                ((spread[:, at] @ gram[at * BLOCK : (at + 1) * BLOCK]).view_as(spread) * spread).sum(dim=-1)
                for at in range(count)
            ],
            dim=1,
        )
        held = RIDGE * normal.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True) + 1e-12
        normal.diagonal(dim1=1, dim2=2).add_(held)
        wanted = ((rows @ gram).view_as(spread) * spread).sum(dim=-1) + held * before
        found.append(torch.linalg.solve(normal, wanted))
    return torch.cat(found)


def _loss(codes: Tensor, weight: Tensor, gram: Tensor, scales: Tensor) -> float:
    errors = _LEVELS.to(weight.device)[codes] * _each(scales) - weight.T
    return float(((gram @ errors) * errors).sum())
