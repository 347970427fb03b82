"""AdamW whose results are the same bits on every machine.

Built of correctly rounded elementary operations (multiply, add, subtract, divide, square root) applied one at a time in
a fixed order: no fused multiply-add, no `addcmul`, `lerp` or `alpha=`, no fused or foreach kernels; torch's own AdamW
gives different bits at different CPU capabilities. Pure: a state that is passed in is never changed. What is not
correctly rounded (`pow`, `cos`) is computed once by the trainer and comes with the update.

Loshchilov and Hutter, "Decoupled weight decay regularization", 2019. Decay applies to tensors of two or more dimensions
(matrices, embeddings, LoRA factors), not to norms. Moments may be kept in 8 bits, updates may be clipped.
"""

import hashlib
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import WireError
from . import moments
from .backend import Update
from .manifest import OptimizerSettings
from .moments import Coded, Form, Moment

UPDATE_STEPS, UPDATE_BOUND = 2.0**16, 2.0**12
"""The mean of squares that clips an update is taken over whole numbers of 2^-16, each at most 2^12: their sum is the
same in any order."""


@dataclass(frozen=True, slots=True)
class StageState:
    """One version of one stage: trainable parameters, fp32, and both Adam moments (`moments.py`), by tensor name."""

    parameters: Mapping[str, Tensor]
    first_moment: Mapping[str, Moment]
    second_moment: Mapping[str, Moment]

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """All that it consists of, in the one order that digest and bytes have."""
        for name in sorted(self.parameters):
            yield name, self.parameters[name]
            for table in (self.first_moment, self.second_moment):
                for piece in moments.pieces(table[name]):
                    yield name, piece


def fresh_state(parameters: Mapping[str, Tensor], form: Form = "fp32") -> StageState:
    """Version 0: these parameters, moments of zero."""
    zeros = {name: moments.keep_first(torch.zeros_like(tensor), form) for name, tensor in parameters.items()}
    return StageState(dict(parameters), zeros, zeros)


def state_digest(state: StageState) -> bytes:
    """sha256 over names, shapes and little-endian bytes of parameters and both moments, in sorted name order."""
    digest = hashlib.sha256()
    for name, piece in state.pieces():
        digest.update(f"{name}{list(piece.shape)}\n".encode())
        digest.update(_bytes(piece))
    return digest.digest()


def state_to_bytes(state: StageState) -> bytes:
    """Parameters and both moments, little-endian, in the order of `state_digest`; at no time more than these bytes and
    one tensor's."""
    written = io.BytesIO()
    for _, piece in state.pieces():
        written.write(_bytes(piece))
    return written.getvalue()


def _bytes(piece: Tensor) -> bytes:
    kind = "<f4" if piece.dtype == torch.float32 else "u1"
    return np.ascontiguousarray(piece.cpu().numpy(), dtype=kind).tobytes()


def state_from_bytes(
    data: bytes | bytearray, shapes: Mapping[str, tuple[int, ...]], device: torch.device, form: Form = "fp32"
) -> StageState:
    """The state of tensors of these shapes. Raises `WireError` for another number of bytes, and for NaN or infinity."""
    due = sum(_due(math.prod(shape), form) for shape in shapes.values())
    if len(data) != due:
        raise WireError(f"a state of {len(data)} bytes came; {due} are due")
    start = 0

    def take(count: int, kind: str) -> Tensor:
        nonlocal start
        values = np.frombuffer(data, kind, count, start)
        start += values.nbytes
        if kind == "<f4" and not np.isfinite(values).all():
            raise WireError("a state with NaN or infinity came")
        return torch.from_numpy(values.astype(np.float32 if kind == "<f4" else np.uint8)).to(device)

    def take_moment(shape: tuple[int, ...]) -> Moment:
        elements = math.prod(shape)
        if not moments.is_coded(elements, form):
            return take(elements, "<f4").view(shape)
        scales = take(-(-elements // moments.BLOCK), "<f4")
        return Coded(take(elements, "u1"), scales)

    parameters: dict[str, Tensor] = {}
    first: dict[str, Moment] = {}
    second: dict[str, Moment] = {}
    for name in sorted(shapes):
        parameters[name] = take(math.prod(shapes[name]), "<f4").view(shapes[name])
        first[name], second[name] = take_moment(shapes[name]), take_moment(shapes[name])
    return StageState(parameters, first, second)


def _due(elements: int, form: Form) -> int:
    coded = elements + 4 * -(-elements // moments.BLOCK)
    return 4 * elements + 2 * (coded if moments.is_coded(elements, form) else 4 * elements)


@torch.no_grad()
def adamw(
    state: StageState, gradients: Mapping[str, Tensor], update: Update, settings: OptimizerSettings
) -> StageState:
    """The next version from token-summed `gradients` (fp32, one for each parameter), which `update.factor` scales."""
    # On the tensors' own device: torch's CUDA division by a CPU scalar multiplies by its reciprocal.
    device = next(iter(state.parameters.values())).device

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=device)

    factor, rate, eps = scalar(update.factor), scalar(update.learning_rate), scalar(settings.eps)
    beta1, rest1, correction1 = scalar(settings.beta1), scalar(1.0 - settings.beta1), scalar(update.bias_correction1)
    beta2, rest2, correction2 = scalar(settings.beta2), scalar(1.0 - settings.beta2), scalar(update.bias_correction2)
    keep = scalar(1.0 - update.learning_rate * settings.weight_decay)
    parameters: dict[str, Tensor] = {}
    first_moment: dict[str, Moment] = {}
    second_moment: dict[str, Moment] = {}
    for name, parameter in state.parameters.items():
        shape = tuple(parameter.shape)
        gradient = torch.mul(gradients[name], factor)
        squares = torch.mul(gradient, gradient)
        first = moments.first(state.first_moment[name], shape)
        first = torch.add(torch.mul(first, beta1), torch.mul(gradient, rest1))
        second = moments.second(state.second_moment[name], shape)
        second = torch.add(torch.mul(second, beta2), torch.mul(squares, rest2))
        spread = torch.add(moments.sqrt(torch.div(second, correction2)), eps)
        slowed = rate
        if settings.clip_updates:
            slowed = torch.div(rate, scalar(_excess(squares, torch.div(second, correction2), eps)))
        step = torch.mul(torch.div(torch.div(first, correction1), spread), slowed)
        decayed = torch.mul(parameter, keep) if parameter.ndim >= 2 else parameter
        parameters[name] = torch.sub(decayed, step)
        first_moment[name] = moments.keep_first(first, settings.state)
        second_moment[name] = moments.keep_second(second, settings.state)
    return StageState(parameters, first_moment, second_moment)


def _excess(squares: Tensor, second: Tensor, eps: Tensor) -> float:
    """How many times too large an update is for its second moment, at least 1: the root mean square of g / sqrt(v).

    StableAdamW's rule (Wortsman et al. 2023, arXiv 2304.13013): v that lags behind a gradient makes spikes.
    """
    ratios = torch.div(squares, torch.maximum(second, torch.mul(eps, eps)))
    steps = torch.round(ratios.double().clamp(max=UPDATE_BOUND) * UPDATE_STEPS).to(torch.int64)
    return math.sqrt(max(1.0, int(steps.sum()) / UPDATE_STEPS / max(1, steps.numel())))
