"""The exact backend as chaos needs it."""

from typing import Any

from swarm_peer.errors import NonFiniteError
from swarm_peer.swarm.backend import BackwardResult, Context, State, Update
from swarm_peer.swarm.exact_backend import ExactBackend, ExactState


class WatchedBackend(ExactBackend):
    """Keeps what each version was made of, by version; makes one wrong update, gradient or state when told to."""

    corrupt_next = wrong_next = misload_next = False

    def __init__(self, seed: int, stage: int, stages: int) -> None:
        super().__init__(seed, stage, stages)
        self.made_of: dict[int, tuple[bytes, ...]] = {}

    def load(self, data: bytes) -> ExactState:
        self.made_of.clear()  # of another epoch, perhaps
        loaded = super().load(data)
        if not self.misload_next:
            return loaded
        self.misload_next = False
        return ExactState(loaded.version, (loaded.weights[0] ^ 1, *loaded.weights[1:]))

    def initial_state(self) -> ExactState:
        self.made_of.clear()
        return super().initial_state()

    def backward(self, state: State, context: Context, output_gradient: bytes | None) -> BackwardResult:
        if self.wrong_next:
            self.wrong_next = False
            raise NonFiniteError("the gradient of w holds NaN")
        return super().backward(state, context, output_gradient)

    def apply(self, state: ExactState, reductions: Any, update: Update) -> ExactState:
        made = super().apply(state, reductions, update)
        self.made_of[made.version] = tuple(reductions["stage"])
        if not self.corrupt_next:
            return made
        self.corrupt_next = False
        return ExactState(made.version, (made.weights[0] ^ 1, *made.weights[1:]))
