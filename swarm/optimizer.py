"""AdamW whose results are the same bits on every machine.

Built of correctly rounded elementary operations (multiply, add, subtract, divide, square root) applied one at a time in
a fixed order: no fused multiply-add, no `addcmul`, `lerp` or `alpha=`, no fused or foreach kernels; torch's own AdamW
gives different bits at different CPU capabilities. Pure: a state that is passed in is never changed. What is not
correctly rounded (`pow`, `cos`) is computed once by the trainer and comes with the update.

Loshchilov and Hutter, "Decoupled weight decay regularization", 2019. Decay applies to tensors of two or more dimensions
(matrices, embeddings, LoRA factors), not to norms.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import WireError
from .backend import Update
from .manifest import OptimizerSettings


@dataclass(frozen=True, slots=True)
class StageState:
    """One version of one stage: trainable parameters and both Adam moments, fp32, by tensor name."""

    parameters: Mapping[str, Tensor]
    first_moment: Mapping[str, Tensor]
    second_moment: Mapping[str, Tensor]


def fresh_state(parameters: Mapping[str, Tensor]) -> StageState:
    """Version 0: these parameters, moments of zero."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    return StageState(dict(parameters), zeros, zeros)


def state_digest(state: StageState) -> bytes:
    """sha256 over names, shapes and little-endian bytes of parameters and both moments, in sorted name order."""
    digest = hashlib.sha256()
    for name in sorted(state.parameters):
        for table in (state.parameters, state.first_moment, state.second_moment):
            values = np.ascontiguousarray(table[name].cpu().numpy(), dtype="<f4")
            digest.update(f"{name}{list(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.digest()


def state_to_bytes(state: StageState) -> bytes:
    """Parameters and both moments as little-endian fp32, tensors in sorted name order, as `state_digest` reads them."""
    tables = (state.parameters, state.first_moment, state.second_moment)
    pieces = (table[name] for name in sorted(state.parameters) for table in tables)
    return b"".join(np.ascontiguousarray(piece.cpu().numpy(), dtype="<f4").tobytes() for piece in pieces)


def state_from_bytes(data: bytes, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> StageState:
    """The state of tensors of these shapes. Raises `WireError` for another number of bytes, and for NaN or infinity."""
    due = 3 * 4 * sum(math.prod(shape) for shape in shapes.values())
    if len(data) != due:
        raise WireError(f"a state of {len(data)} bytes came; {due} are due")
    values = torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))
    if not torch.isfinite(values).all():
        raise WireError("a state with NaN or infinity came")
    tables: tuple[dict[str, Tensor], ...] = ({}, {}, {})
    start = 0
    for name in sorted(shapes):
        for table in tables:
            size = math.prod(shapes[name])
            table[name] = values[start : start + size].reshape(shapes[name]).to(device)
            start += size
    return StageState(*tables)


def _sqrt(values: Tensor) -> Tensor:
    """The correctly rounded fp32 square root. torch's own is not on every CPU (on AMD's, one in five is off by a bit).

    A double that is off by one bit rounds right all the same: no square root of a 24-bit number lies so near the middle
    of two others.
    """
    return torch.sqrt(values.double()).float()


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
    first_moment: dict[str, Tensor] = {}
    second_moment: dict[str, Tensor] = {}
    for name, parameter in state.parameters.items():
        gradient = torch.mul(gradients[name], factor)
        first = torch.add(torch.mul(state.first_moment[name], beta1), torch.mul(gradient, rest1))
        second = torch.mul(torch.mul(gradient, gradient), rest2)
        second = torch.add(torch.mul(state.second_moment[name], beta2), second)
        spread = torch.add(_sqrt(torch.div(second, correction2)), eps)
        step = torch.mul(torch.div(torch.div(first, correction1), spread), rate)
        decayed = torch.mul(parameter, keep) if parameter.ndim >= 2 else parameter
        parameters[name] = torch.sub(decayed, step)
        first_moment[name], second_moment[name] = first, second
    return StageState(parameters, first_moment, second_moment)
