"""The trainer's scalars on the torch backend: learning rate, bias corrections, clipping.

Computed by the trainer alone and sent in Commit, since `cos` and `pow` are not correctly rounded and must not be
computed twice; rounded to fp32, so that what is sent is what is used. A pure function of the manifest and of what was
reduced: any trainer repeats it.

Errors: `NonFiniteError` for a norm that is NaN or infinite.
"""

import math

import numpy as np

from ..errors import NonFiniteError
from .backend import Scalar, Update
from .manifest import Manifest


def _fp32(value: float) -> float:
    return float(np.float32(value))


def learning_rate(manifest: Manifest, step: int) -> float:
    """The rate of the update that closes `step` (counted from 0), in fp64.

    Linear warm-up reaches the full rate at step `warmup_steps - 1`; linear and cosine decay reach 0 one step past the
    last, so that the last update still moves.
    """
    settings = manifest.settings.optimizer
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    remaining = max(1, manifest.settings.train.steps - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / remaining)
    if settings.schedule == "linear":
        return settings.learning_rate * (1.0 - progress)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.learning_rate


class RealArithmetic:
    """`Arithmetic` over floats; squared norms and losses add in fp64."""

    zero: Scalar = 0.0

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def add(self, left: Scalar, right: Scalar) -> Scalar:
        return left + right

    def mean(self, total: Scalar, tokens: int) -> Scalar:
        return total / tokens

    def norm(self, squared_norm: Scalar, tokens: int) -> Scalar:
        return math.sqrt(squared_norm) / tokens

    def update(self, step: int, squared_norm: Scalar, tokens: int) -> Update:
        """The numbers of Commit(step).

        `squared_norm` is that of the token-summed gradient over all stages and `tokens` the label tokens in it; norm /
        tokens is what `clip_norm` bounds. factor = min(1, clip * tokens / norm) / tokens, and 1 / tokens for norm 0.
        """
        if not math.isfinite(squared_norm) or squared_norm < 0:
            raise NonFiniteError(f"step {step}: squared gradient norm is {squared_norm}; wanted a finite number >= 0")
        if tokens < 1:
            raise ValueError(f"step {step}: {tokens} label tokens; wanted at least one")
        settings = self._manifest.settings.optimizer
        norm = math.sqrt(squared_norm)
        shrink = 1.0 if norm == 0 else min(1.0, settings.clip_norm * tokens / norm)
        return Update(
            factor=_fp32(shrink / tokens),
            learning_rate=_fp32(learning_rate(self._manifest, step)),
            bias_correction1=_fp32(1.0 - settings.beta1 ** (step + 1)),
            bias_correction2=_fp32(1.0 - settings.beta2 ** (step + 1)),
        )
