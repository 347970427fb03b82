"""What a trainer tells those who watch a run: frozen, flat, and ready for JSON.

The report is made of the same facts (`report.py`); events are for the moment they happen. `at` is the event loop's
time in seconds (the monotonic clock in a real process).
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .backend import Scalar


@dataclass(frozen=True, slots=True)
class Event:
    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        return {"event": self.kind, **{entry.name: getattr(self, entry.name) for entry in fields(self)}}


@dataclass(frozen=True, slots=True)
class Joined(Event):
    """A peer has its place in the run."""

    kind: ClassVar[str] = "joined"
    member: int
    peer: str
    stage: int


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """A peer has loaded its stage."""

    kind: ClassVar[str] = "ready"
    member: int
    peer: str
    stage: int


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    """Held-out loss (nats per token) at a version."""

    kind: ClassVar[str] = "evaluated"
    version: int
    loss: Scalar


@dataclass(frozen=True, slots=True)
class Visited(Event):
    """A stage-visit has entered a phase (a name of `pb.Phase`), as the trainer hears of it."""

    kind: ClassVar[str] = "visited"
    step: int
    index: int
    stage: int
    peer: str
    phase: str
    at: float


@dataclass(frozen=True, slots=True)
class Stepped(Event):
    """A step is committed. `seconds`: first Run to Commit; `loss`: nats per label token; `reissued`: stage-visits
    begun beyond the first; `members`: how many were there when it was committed."""

    kind: ClassVar[str] = "stepped"
    step: int
    loss: Scalar
    grad_norm: Scalar
    tokens: int
    seconds: float
    version: int
    replicas: tuple[int, ...]
    reissued: int
    members: int


@dataclass(frozen=True, slots=True)
class Lost(Event):
    """A peer is declared lost; its open work is re-run from now on."""

    kind: ClassVar[str] = "lost"
    member: int
    peer: str
    stage: int
    at_step: int
    why: str
    at: float


@dataclass(frozen=True, slots=True)
class Rerouted(Event):
    """The first microbatch that the lost peer had in hand is done without it."""

    kind: ClassVar[str] = "rerouted"
    member: int
    peer: str
    step: int
    index: int
    at: float


@dataclass(frozen=True, slots=True)
class Waiting(Event):
    """A stage has no replica; the run waits."""

    kind: ClassVar[str] = "waiting"
    stage: int
