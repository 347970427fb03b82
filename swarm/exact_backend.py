"""The exact backend: a stage whose numbers are integers modulo a prime.

Lost or doubled work cannot hide behind rounding here: two runs agree to the last bit or they differ. A stage is a
weight vector w of `WIDTH` residues and the nonlinear polynomial y_k = x_k + w_k * x_{k+1}^2 + c_k(step, index), whose
derivative is exact; the loss adds up y_k^3. The update is w <- w - lr * sum(g). Everything is modulo p = 2^61 - 1.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import WireError
from .backend import BackwardResult, Context, ForwardResult, Gradient, Scalar, StageInput, Update

PRIME = (1 << 61) - 1
WIDTH = 5
LEARNING_RATE = 12345678901


def residues(*name: object) -> list[int]:
    """`WIDTH` residues that are a function of `name` alone."""
    digest = hashlib.shake_256(repr(name).encode()).digest(8 * WIDTH)
    return [value % PRIME for value in struct.unpack(f"<{WIDTH}Q", digest)]


def _encode(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _decode(data: bytes | bytearray, length: int) -> list[int]:
    if len(data) != 8 * length:
        raise WireError(f"expected {length} residues of 8 bytes, got {len(data)} bytes")
    values = list(struct.unpack(f"<{length}Q", data))
    if any(value >= PRIME for value in values):
        raise WireError("a residue is not below 2^61 - 1")
    return values


@dataclass(frozen=True, slots=True)
class ExactState:
    version: int
    weights: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Saved:
    inputs: list[int]
    outputs: list[int]


class ExactBackend:
    """One stage of the exact model. `stages` is the number of stages of the run."""

    lengths: Mapping[str, int] = {"stage": WIDTH}
    gradient_bytes = 8 * WIDTH
    codec_seconds = 0.0
    slots = None
    kernels = ""

    def __init__(self, seed: int, stage: int, stages: int) -> None:
        self.seed = seed
        self.stage = stage
        self.last = stage == stages - 1

    def initial_state(self) -> ExactState:
        return ExactState(0, tuple(residues(self.seed, "weights", self.stage)))

    def forward(self, state: ExactState, visit: StageInput, *, train: bool) -> ForwardResult:
        inputs = _decode(visit.data, WIDTH) if self.stage else residues(self.seed, "input", visit.data)
        constants = residues(self.seed, "constant", self.stage, visit.step, visit.index)
        outputs = [
            (inputs[k] + state.weights[k] * inputs[(k + 1) % WIDTH] ** 2 + constants[k]) % PRIME for k in range(WIDTH)
        ]
        saved = _Saved(inputs, outputs) if train else None
        if self.last:
            return ForwardResult(None, sum(value**3 for value in outputs) % PRIME, saved)
        return ForwardResult(_encode(outputs), None, saved)

    def backward(self, state: ExactState, context: Context, output_gradient: bytes | None) -> BackwardResult:
        saved: _Saved = context
        if output_gradient is None:
            upper = [3 * value**2 % PRIME for value in saved.outputs]
        else:
            upper = _decode(output_gradient, WIDTH)
        gradient = [upper[k] * saved.inputs[(k + 1) % WIDTH] ** 2 % PRIME for k in range(WIDTH)]
        lower = list(upper)
        for k in range(WIDTH):
            n = (k + 1) % WIDTH
            lower[n] = (lower[n] + 2 * upper[k] * state.weights[k] * saved.inputs[n]) % PRIME
        return BackwardResult(_encode(lower) if self.stage else None, gradient)

    def add(self, gradients: Sequence[Gradient]) -> Gradient:
        return [sum(column) % PRIME for column in zip(*gradients, strict=True)]

    def slice(self, gradient: Gradient | None, group: str, first: int, last: int) -> bytes:
        return _encode((gradient or [0] * WIDTH)[first:last])

    def reduce(self, group: str, slices: Sequence[bytes], length: int) -> tuple[bytes, Scalar]:
        total = self.add([_decode(part, length) for part in slices])
        return _encode(total), sum(value * value for value in total) % PRIME

    def apply(self, state: ExactState, reductions: Mapping[str, Sequence[bytes]], update: Update) -> ExactState:
        total = _decode(b"".join(reductions["stage"]), WIDTH)
        weights = ((w - LEARNING_RATE * g) % PRIME for w, g in zip(state.weights, total, strict=True))
        return ExactState(state.version + 1, tuple(weights))

    def digest(self, state: ExactState) -> bytes:
        return hashlib.sha256(_encode(state.weights)).digest()

    def export(self, state: ExactState) -> bytes:
        return _encode((state.version, *state.weights))

    def load(self, data: bytes | bytearray) -> ExactState:
        version, *weights = _decode(data, WIDTH + 1)
        return ExactState(version, tuple(weights))


class ExactArithmetic:
    """Losses and norms modulo p; the factor of every update is 1."""

    zero: Scalar = 0

    def add(self, left: Scalar, right: Scalar) -> Scalar:
        return int(left + right) % PRIME

    def mean(self, total: Scalar, tokens: int) -> Scalar:
        return total

    def norm(self, squared_norm: Scalar, tokens: int) -> Scalar:
        return squared_norm

    def update(self, step: int, squared_norm: Scalar, tokens: int) -> Update:
        return Update(1, 0.0, 1.0, 1.0)
