"""The seam between the protocol and the numbers: what a stage computes.

The stage host and the trainer move bytes and bookkeeping only; everything that is a number goes through
`StageBackend` (one stage's tensors) and `Arithmetic` (the few scalars that the trainer combines). Three
backends exist: torch (`torch_backend.py`), exact (`exact_backend.py`: integers modulo a prime, where lost or
doubled work cannot hide behind rounding), and simulated durations around the exact one.

All methods are synchronous, pure and thread-safe: they may run on a compute thread, and a state that was passed
in is never changed in place. `State`, `Context` and `Gradient` are opaque to the caller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Scalar = int | float
"""A number of the run's arithmetic: float (torch backend) or residue modulo p (exact backend)."""

State = Any
"""The trainable parameters and optimizer state of one version of one stage."""

Context = Any
"""What a forward pass keeps for its backward pass."""

Gradient = Any
"""The gradient of one microbatch's token-summed loss (or a sum of such) over the stage's trainables."""


@dataclass(frozen=True, slots=True)
class StageInput:
    """What one visit computes on.

    `data`: for stage 0 the token ids, int32 little-endian [samples, sequence_length]; for a later stage the coded
    activations that the stage above sent. `labels`: for the last stage, int32 little-endian like the token ids.
    """

    step: int
    index: int
    samples: int
    data: bytes
    labels: bytes | None = None


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """`output`: coded activations, None at the last stage. `loss`: token-summed loss, last stage only."""

    output: bytes | None
    loss: Scalar | None
    context: Context


@dataclass(frozen=True, slots=True)
class BackwardResult:
    """`input_gradient`: coded gradient of the input, None at stage 0. `gradient`: of the trainables."""

    input_gradient: bytes | None
    gradient: Gradient


@dataclass(frozen=True, slots=True)
class Update:
    """The numbers of a Commit that turn version t into t+1. All are computed by the trainer and sent.

    `factor` = min(1, clip * tokens / norm) / tokens multiplies the summed gradient. `learning_rate` and the two Adam
    bias corrections (1 - beta^(t+1)) are fp32 values.
    """

    factor: Scalar
    learning_rate: float
    bias_correction1: float
    bias_correction2: float


class StageBackend(Protocol):
    """One stage of the model on one machine.

    Trainables belong to reduce groups: `"stage"` holds those of this stage alone; `"tied"` (full training of a model
    with tied embeddings, stages 0 and S-1 only) the tensor that two stages share. `lengths` maps each group of this
    stage to its number of elements (flattened, tensors in sorted name order).
    """

    @property
    def lengths(self) -> Mapping[str, int]: ...

    @property
    def gradient_bytes(self) -> int:
        """Memory of one `Gradient`, in bytes."""
        ...

    @property
    def slots(self) -> int | None:
        """The most visits that may be open at once, as more do not fit into memory; None: as many as the run wants."""
        ...

    @property
    def kernels(self) -> str:
        """What computes the codecs, for people; empty if there are none."""
        ...

    @property
    def codec_seconds(self) -> float:
        """What encoding and decoding have taken so far, in seconds."""
        ...

    def initial_state(self) -> State:
        """Version 0, a function of the manifest alone."""
        ...

    def forward(self, state: State, visit: StageInput, *, train: bool) -> ForwardResult:
        """Runs the stage. With `train=False` the context is None, and hidden states travel as they are computed: a
        held-out loss is that of what was trained, which nobody uses with a wire between its layers.

        Raises `WireError` for input that does not decode to what is due, `NonFiniteError` for NaN or infinity that it
        computes.
        """
        ...

    def backward(self, state: State, context: Context, output_gradient: bytes | None) -> BackwardResult:
        """Gradients of the token-summed loss; `output_gradient` (coded) is None at the last stage.

        Raises as `forward` does.
        """
        ...

    def add(self, gradients: Sequence[Gradient]) -> Gradient:
        """The sum, added in the order given (at least one gradient)."""
        ...

    def slice(self, gradient: Gradient | None, group: str, first: int, last: int) -> bytes:
        """Elements [first, last) of a group's flat gradient, coded with the reduce codec; None means zeros."""
        ...

    def reduce(self, group: str, slices: Sequence[bytes], length: int) -> tuple[bytes, Scalar]:
        """Decodes `slices` (each of `length` elements), adds them in the order given: (coded sum, squared norm).

        The squared norm is that of the decoded coded sum, in float64 (exact backend: modulo p).
        """
        ...

    def apply(self, state: State, reductions: Mapping[str, Sequence[bytes]], update: Update) -> State:
        """The next version: for each group, `reductions[group]` are the coded parts in order."""
        ...

    def digest(self, state: State) -> bytes:
        """sha256 over parameters and optimizer state of this version."""
        ...

    def export(self, state: State) -> bytes:
        """A state as bytes, for another replica of this stage."""
        ...

    def load(self, data: bytes | bytearray) -> State:
        """The state that a replica exported. Raises `WireError` for bytes that are no state of this stage."""
        ...


class Arithmetic(Protocol):
    """The trainer's scalars."""

    zero: Scalar

    def add(self, left: Scalar, right: Scalar) -> Scalar: ...

    def mean(self, total: Scalar, tokens: int) -> Scalar:
        """A token-summed loss per label token (exact backend: the sum itself)."""
        ...

    def norm(self, squared_norm: Scalar, tokens: int) -> Scalar:
        """The norm of the summed gradient / tokens, before clipping (exact backend: the squared norm itself)."""
        ...

    def update(self, step: int, squared_norm: Scalar, tokens: int) -> Update:
        """The numbers of Commit(step) from the squared norm of the token-summed gradient over all stages."""
        ...
