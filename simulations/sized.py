"""A stage whose tensors have a size but no numbers: what a simulation of a real model computes and sends.

Every tensor is a few bytes that stand for its true size, which `weigher` tells the network; the sizes are those of
`swarm.sizes`, from shapes alone. What there is of numbers keeps account: each microbatch's gradient is its own number,
a state is the sum of all that it was updated with, so that work lost or counted twice shows (`whole_sum`).
"""

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import WireError
from ..protos import swarm_pb2 as pb
from ..swarm.backend import BackwardResult, Context, ForwardResult, Gradient, Scalar, StageInput, Update
from ..swarm.driving import Microbatch
from ..swarm.manifest import Manifest
from ..swarm.messages import TAGS, Body, pack, payload_length, unpack
from ..swarm.sizes import (
    TOKEN_BYTES,
    gradient_bytes,
    reduced_bytes,
    state_bytes,
    traffic,
    trained_elements,
    visit_tokens,
)
from .tcp import WIRE

PRIME = (1 << 61) - 1
ELEMENTS = 1 << 12
"""Bytes that stand for the largest gradient of a stage on its way between replicas."""

_VALUE = struct.Struct("<Q")
_STATE = struct.Struct("<QQ")
OUTPUT, GRADIENT = b"output of a stage", b"gradient of one"
"""How a tensor begins, and all that is sent of it where a few bytes stand for it."""

GARBAGE = b"garbage"
_CARRIERS = tuple(TAGS[name] for name in ("Run", "Done", "Part", "PartResult", "Fetched"))
"""How the frames begin after which chunks may come."""


def number_of(step: int, index: int, microbatches: int) -> int:
    """The gradient of a microbatch, the same at every stage."""
    return step * microbatches + index + 1


def whole_sum(steps: int, microbatches: int) -> int:
    """What a state is after so many steps, if every microbatch of each has counted once."""
    count = steps * microbatches
    return count * (count + 1) // 2 % PRIME


@dataclass(frozen=True, slots=True)
class SizedState:
    version: int
    value: int


class SizedBackend:
    """Implements `swarm.backend.StageBackend`. `whole`: its tensors have their true size, for a network that carries
    every byte of them; `garbles`: asked of each tensor that it sends whether that is none."""

    codec_seconds = 0.0
    slots = None
    kernels = ""

    def __init__(
        self, manifest: Manifest, stage: int, *, whole: bool = False, garbles: Callable[[], bool] = lambda: False
    ) -> None:
        scale = 1.0 if whole else scale_of(manifest)
        reduced = reduced_bytes(manifest, stage)
        tied = tied_share(manifest, stage)
        self.lengths: Mapping[str, int] = {"stage": round(reduced * (1 - tied) / scale)}
        if tied:
            self.lengths = {**self.lengths, "tied": round(reduced * tied / scale)}
        self.gradient_bytes = gradient_bytes(manifest, stage)
        self._garbles = garbles
        self._microbatches = manifest.microbatches
        self._first, self._last = stage == 0, stage == manifest.stages - 1
        self._padding = bytes(max(0, round(state_bytes(manifest, stage) / scale) - _STATE.size))
        moved = traffic(manifest, range(stage, stage + 1))
        tokens = TOKEN_BYTES * visit_tokens(manifest)
        self._output = OUTPUT.ljust(moved.output - tokens if whole else 0, b"\0")
        self._gradient = GRADIENT.ljust(moved.input_gradient if whole else 0, b"\0")

    def initial_state(self) -> SizedState:
        return SizedState(0, 0)

    def forward(self, state: SizedState, visit: StageInput, *, train: bool) -> ForwardResult:
        if not self._first:
            _check_tensor(visit.data, OUTPUT)
        context = number_of(visit.step, visit.index, self._microbatches) if train else None
        return (
            ForwardResult(None, 1.0, context) if self._last else ForwardResult(self._sent(self._output), None, context)
        )

    def backward(self, state: SizedState, context: Context, output_gradient: bytes | None) -> BackwardResult:
        if not self._last:
            _check_tensor(output_gradient or b"", GRADIENT)
        return BackwardResult(None if self._first else self._sent(self._gradient), context)

    def _sent(self, tensor: bytes) -> bytes:
        return GARBAGE if self._garbles() else tensor

    def add(self, gradients: Sequence[Gradient]) -> Gradient:
        return sum(gradients) % PRIME

    def slice(self, gradient: Gradient | None, group: str, first: int, last: int) -> bytes:
        return _VALUE.pack(gradient or 0) + bytes(last - first)

    def reduce(self, group: str, slices: Sequence[bytes], length: int) -> tuple[bytes, Scalar]:
        total = sum(_first_value(part) for part in slices) % PRIME
        return _VALUE.pack(total) + bytes(length), 1.0

    def apply(self, state: SizedState, reductions: Mapping[str, Sequence[bytes]], update: Update) -> SizedState:
        total = _only_value(reductions["stage"])
        if "tied" in reductions and _only_value(reductions["tied"]) != 2 * total % PRIME:
            raise WireError("the sum of what two stages share is not that of both of them")
        return SizedState(state.version + 1, (state.value + total) % PRIME)

    def digest(self, state: SizedState) -> bytes:
        return hashlib.sha256(_STATE.pack(state.version, state.value)).digest()

    def export(self, state: SizedState) -> bytes:
        return _STATE.pack(state.version, state.value) + self._padding

    def load(self, data: bytes | bytearray) -> SizedState:
        if len(data) != _STATE.size + len(self._padding):
            raise WireError(f"a state is {_STATE.size + len(self._padding)} bytes, got {len(data)}")
        return SizedState(*_STATE.unpack_from(data))


def _only_value(parts: Sequence[bytes]) -> int:
    totals = {_first_value(part) for part in parts}
    if len(totals) != 1:
        raise WireError(f"the parts of a reduction stand for {sorted(totals)}; they must be of one sum")
    return totals.pop()


def scale_of(manifest: Manifest) -> float:
    """Bytes of a gradient on its way between replicas for which one byte stands."""
    return max(reduced_bytes(manifest, stage) for stage in range(manifest.stages)) / ELEMENTS


def tied_share(manifest: Manifest, stage: int) -> float:
    """Of what a stage trains, the part that it shares with another one."""
    if not manifest.tied or stage not in (0, manifest.stages - 1):
        return 0.0
    return manifest.shape.vocab_size * manifest.shape.hidden_size / trained_elements(manifest, stage)


def _check_tensor(data: bytes, begins: bytes) -> None:
    if not data.startswith(begins):
        raise WireError(f"what came is no {begins.decode()}: {data[:16]!r}")


def _first_value(part: bytes) -> int:
    if len(part) < _VALUE.size:
        raise WireError(f"a part has at least {_VALUE.size} bytes, got {len(part)}")
    value: int = _VALUE.unpack_from(part)[0]
    return value


def wrong_sum(state: SizedState, microbatches: int) -> str | None:
    """What is wrong with a state that is not the sum of every microbatch of every step below its version, once."""
    due = whole_sum(state.version, microbatches)
    return None if state.value == due else f"it has {state.value} at version {state.version}; {due} is due"


class SizedArithmetic:
    """Implements `swarm.backend.Arithmetic`: every loss and norm is 1."""

    zero: Scalar = 0.0

    def add(self, left: Scalar, right: Scalar) -> Scalar:
        return left + right

    def mean(self, total: Scalar, tokens: int) -> Scalar:
        return 1.0

    def norm(self, squared_norm: Scalar, tokens: int) -> Scalar:
        return 1.0

    def update(self, step: int, squared_norm: Scalar, tokens: int) -> Update:
        return Update(1.0, 0.0, 1.0, 1.0)


class SizedSamples:
    """Implements `swarm.driving.Samples`: microbatches of which only the number of tokens matters."""

    def __init__(self, manifest: Manifest) -> None:
        self._samples = manifest.settings.train.microbatch
        self._tokens = visit_tokens(manifest)
        self._zeros = bytes(TOKEN_BYTES * self._tokens)

    def microbatch(self, step: int, index: int) -> Microbatch:
        return Microbatch(self._samples, self._zeros, self._zeros, self._tokens)

    def heldout(self) -> list[Microbatch]:
        return []

    def heldout_bytes(self) -> int:
        return 0


NO_CHUNK = pack(pb.Chunk())
"""Of a tensor whose rest stays."""


def weigher(manifest: Manifest) -> Callable[[], Callable[[bytes], int]]:
    """For each direction of a stream, what tells of its frames how many bytes they stand for."""
    inner = traffic(manifest, range(1, 2)) if manifest.stages > 1 else traffic(manifest, range(1))
    first = traffic(manifest, range(1)).input
    tensors = {OUTPUT: inner.input, GRADIENT: inner.input_gradient}
    state_scale = scale_of(manifest)

    def stands_for(body: Body) -> float:
        """The bytes of a message's payload, unless that says itself what it is."""
        if isinstance(body, pb.Run):
            return inner.input if body.first else first
        if isinstance(body, pb.Done):
            return inner.input_gradient
        return payload_length(body) * state_scale

    def of_a_direction() -> Callable[[bytes], int]:
        payload = 0.0

        def weigh(frame: bytes) -> int:
            nonlocal payload
            if frame.startswith(TAGS["Chunk"]) and frame != NO_CHUNK:
                # What a visit has sent is fetched, too, as parts of a state are.
                told = [size for begins, size in tensors.items() if frame.endswith(begins)]
                return round((told[0] if told else payload) * WIRE)
            if frame.startswith(_CARRIERS):
                payload = stands_for(unpack(frame, "somebody"))
            return len(frame)

        return weigh

    return of_a_direction
