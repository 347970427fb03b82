"""What happens in a run, as its trainer and its coordinator tell it: frozen, flat, ready for JSON and for the disk.

One stream of these is all that anyone is shown: `run_state.py` folds it into what a run is at a moment, `event_log.py`
keeps it, and the report is made of the same facts (`report.py`). What comes from peers is cleaned before it is put
into an event. Where an event has an `at` of its own, that is the event loop's time, in seconds; when it happened by the
calendar is the record's (`Record`). Bytes, seconds and bits a second throughout.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

from .backend import Scalar


@dataclass(frozen=True, slots=True)
class Event:
    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        return {"event": self.kind, **{entry.name: getattr(self, entry.name) for entry in fields(self)}}


class Record(NamedTuple):
    """An event in its place in the stream. `sequence` counts from 1 without a gap; `at`: seconds since 1970 (of a
    simulation: since its beginning)."""

    sequence: int
    at: float
    event: Event


# ---- the run


@dataclass(frozen=True, slots=True)
class Opened(Event):
    """A trainer begins, or goes on with, a run; this is the manifest in a few numbers.

    Of each stage: its `layers` (first, last), the floating-point operations that a visit `costs` there, and the bytes
    of `memory` that hosting it takes, 0 where that is unknown. A microbatch moves `activation_bytes` and
    `gradient_bytes` across each cut; uncompressed fp32 would be `plain_bytes`.
    """

    kind: ClassVar[str] = "opened"
    run_id: str
    model: str
    mode: str
    base: str
    stages: int
    steps: int
    microbatches: int
    step_tokens: int
    staleness: int
    min_replicas: int
    slots: int
    activations: str
    gradients: str
    activation_bytes: int
    gradient_bytes: int
    plain_bytes: int
    layers: tuple[tuple[int, int], ...]
    costs: tuple[float, ...]
    memory: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """A coordinator can be reached. `join`: the command to give to volunteers; `stand_by`: the one that starts another
    coordinator, empty for a run without standbys; `dashboard`: the URL of its page, `api`: the HOST:PORT of its gRPC
    API, empty if it serves none; `invite`: the text that `swarm-peer join` takes, empty where the organizer's key is
    not."""

    kind: ClassVar[str] = "listening"
    run_id: str
    model: str
    stages: int
    steps: int
    microbatches: int
    addresses: tuple[str, ...]
    join: str
    stand_by: str
    pid: int
    dashboard: str = ""
    api: str = ""
    invite: str = ""


@dataclass(frozen=True, slots=True)
class Leads(Event):
    """A coordinator is the trainer from now on: who was led by another has yet to come."""

    kind: ClassVar[str] = "leads"
    term: int


@dataclass(frozen=True, slots=True)
class Follows(Event):
    """A coordinator is a standby from now on."""

    kind: ClassVar[str] = "follows"
    trainer: str
    term: int


@dataclass(frozen=True, slots=True)
class Waiting(Event):
    """A stage has no replica; the run waits for one that returns, or for a newcomer: then it goes back to `step`."""

    kind: ClassVar[str] = "waiting"
    stage: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class WentBack(Event):
    """A term begins an epoch, with `step`, from a checkpoint or anew; `lost` steps had been committed beyond it."""

    kind: ClassVar[str] = "went-back"
    step: int
    lost: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Checkpointed(Event):
    """All steps below `step` can be resumed from."""

    kind: ClassVar[str] = "checkpointed"
    step: int


@dataclass(frozen=True, slots=True)
class CheckpointFailed(Event):
    """The checkpoint of all steps below `step` could not be taken or kept; the one before it stands."""

    kind: ClassVar[str] = "checkpoint-failed"
    step: int
    error: str


@dataclass(frozen=True, slots=True)
class Paused(Event):
    """The organizer has the run pause: what has begun is finished, nothing new is begun."""

    kind: ClassVar[str] = "paused"


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    kind: ClassVar[str] = "resumed"


@dataclass(frozen=True, slots=True)
class Concluded(Event):
    """The run is over: `error` says why it stopped, empty if it came to its last step."""

    kind: ClassVar[str] = "concluded"
    error: str


@dataclass(frozen=True, slots=True)
class Kept(Event):
    """Something to download: an adapter, a model or a checkpoint at a version. `files`: (name, bytes, SHA-256)."""

    kind: ClassVar[str] = "kept"
    what: str
    version: int
    folder: str
    files: tuple[tuple[str, int, str], ...]


# ---- its members


@dataclass(frozen=True, slots=True)
class Joined(Event):
    """A peer has its place in the run. The rest is what it says of itself: a `name` for people, the `version` of its
    software, its device, the bytes it lends, its link; `relayed` if none of its addresses is a direct one."""

    kind: ClassVar[str] = "joined"
    member: int
    peer: str
    stage: int
    name: str = ""
    version: str = ""
    device: str = ""
    memory: int = 0
    up: int = 0
    down: int = 0
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Moving(Event):
    """A peer is asked to host another stage instead of its own."""

    kind: ClassVar[str] = "moving"
    member: int
    peer: str
    stage: int
    target: int


@dataclass(frozen=True, slots=True)
class Moved(Event):
    """It serves the other stage and has left its own; with an `error` it has not, and why."""

    kind: ClassVar[str] = "moved"
    member: int
    peer: str
    stage: int
    target: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """A peer has loaded its stage."""

    kind: ClassVar[str] = "ready"
    member: int
    peer: str
    stage: int


@dataclass(frozen=True, slots=True)
class Draining(Event):
    """A peer gets no new visits, and leaves when what it holds is reduced; `why` in its or the organizer's words."""

    kind: ClassVar[str] = "draining"
    member: int
    peer: str
    why: str


@dataclass(frozen=True, slots=True)
class Left(Event):
    """A peer has gone, with nothing open: no fault."""

    kind: ClassVar[str] = "left"
    member: int
    peer: str
    stage: int
    why: str


@dataclass(frozen=True, slots=True)
class Banned(Event):
    """The organizer does not want a peer in this run."""

    kind: ClassVar[str] = "banned"
    peer: str
    why: str


@dataclass(frozen=True, slots=True)
class Lost(Event):
    """A peer is declared lost; its open work, `rerun` microbatches, is run again from now on. `silent`: seconds since
    it was last heard."""

    kind: ClassVar[str] = "lost"
    member: int
    peer: str
    stage: int
    at_step: int
    why: str
    at: float
    silent: float = 0.0
    rerun: int = 0


@dataclass(frozen=True, slots=True)
class Rerouted(Event):
    """The first microbatch that the lost peer had in hand is done without it."""

    kind: ClassVar[str] = "rerouted"
    member: int
    peer: str
    step: int
    index: int
    at: float


class MemberPulse(NamedTuple):
    """What one member says of itself. `forward`, `backward`: smoothed seconds of a visit there; `below`: open visits
    that wait for other stages, most of them for `waits_for`; bytes are since it was started."""

    member: int
    version: int
    open: int
    below: int
    waits_for: str
    forward: float
    backward: float
    codec_seconds: float
    activation_bytes: int
    gradient_bytes: int
    reduce_bytes: int
    busy: int
    refused: tuple[tuple[str, int], ...]


class LinkPulse(NamedTuple):
    """A link as `member` has measured it: seconds to `peer` and back, bits a second from there."""

    member: int
    peer: str
    round_trip: float
    rate: int


@dataclass(frozen=True, slots=True)
class Pulse(Event):
    """How things stand, of those members and links for which something is new. `issued`: the newest step of which
    microbatches are given out."""

    kind: ClassVar[str] = "pulse"
    members: tuple[MemberPulse, ...]
    links: tuple[LinkPulse, ...]
    issued: int
    in_flight: int
    window: int
    trainer_bytes: int


# ---- its steps


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    """Held-out loss (nats per token) at a version."""

    kind: ClassVar[str] = "evaluated"
    version: int
    loss: Scalar


@dataclass(frozen=True, slots=True)
class Visited(Event):
    """A stage-visit has entered a phase (a name of `pb.Phase`), as the trainer hears of it. Too fine to be kept."""

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
class Settled(Event):
    """A step is closed: every replica has applied it, and this is what its ledger came to. `counted`: (member,
    microbatches of it that are in the update); empty if another trainer has closed it."""

    kind: ClassVar[str] = "settled"
    step: int
    counted: tuple[tuple[int, int], ...]
    microbatches: int
    lost: int
    duplicated: int
    reissued: int
    taken_back: int


@dataclass(frozen=True, slots=True)
class Recalled(Event):
    """A step that was closed under another trainer, as that one has told."""

    kind: ClassVar[str] = "recalled"
    step: int
    loss: Scalar
    grad_norm: Scalar
    tokens: int
    seconds: float
    microbatches: int
    lost: int
    duplicated: int
    reissued: int
    taken_back: int
