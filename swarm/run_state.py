"""What a run is at a moment: a pure fold over its events, and all that any view of it shows is made of.

`fold(state, record)` gives a new state and leaves the old one as it is, so any prefix of a log gives what was seen live
at that moment. It knows no clock: times are the records'. Everything in it is bounded: of long runs older steps are
thinned, of faults and notes the newest are kept; sums are kept of all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import events
from .backend import Scalar
from .events import Event, Record

MAX_STEPS = 4096
"""Steps that are kept one by one; beyond, every other one of the older half is let go."""

KEPT_SHARE = 0.8
"""How much of what a member was given counts on when the next step is closed: about the last five steps are seen."""

MAX_FAULTS, MAX_NOTES, MAX_LINKS, MAX_GONE = 256, 100, 4096, 1024

NOTED = (
    events.Opened,
    events.Leads,
    events.Follows,
    events.Waiting,
    events.WentBack,
    events.Checkpointed,
    events.CheckpointFailed,
    events.Paused,
    events.Resumed,
    events.Concluded,
    events.Kept,
    events.Joined,
    events.Ready,
    events.Draining,
    events.Moving,
    events.Moved,
    events.Left,
    events.Banned,
    events.Lost,
    events.Rerouted,
    events.Evaluated,
)
"""Events that people read one by one."""


@dataclass(frozen=True, slots=True)
class StepState:
    """A committed step."""

    step: int
    at: float
    loss: Scalar
    grad_norm: Scalar
    tokens: int
    seconds: float
    version: int
    reissued: int


@dataclass(frozen=True, slots=True)
class MemberState:
    """One incarnation of a peer under one trainer. `state`: loading, ready, draining or gone; `since` when it began.
    `counted`: microbatches of it that are in updates; `given`: of the latest closed steps, an older one
    counting less."""

    member: int
    peer: str
    stage: int
    state: str
    joined_at: float
    since: float
    why: str = ""
    counted: int = 0
    given: float = 0.0
    ready_at: float | None = None
    pulse: events.MemberPulse | None = None
    behind: int = 0
    """Versions that it lacked at its last pulse."""

    @property
    def is_live(self) -> bool:
        return self.state != "gone"


@dataclass(frozen=True, slots=True)
class PeerState:
    """One peer over all its incarnations. `member` is the newest; `counted` by stage; `online`: seconds of the
    incarnations that have ended."""

    peer: str
    member: int
    first_at: float
    name: str = ""
    version: str = ""
    device: str = ""
    memory: int = 0
    up: int = 0
    down: int = 0
    relayed: bool = False
    online: float = 0.0
    losses: int = 0
    counted: Mapping[int, int] = field(default_factory=dict)
    banned: str = ""


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link as the peer at its `near` end has measured it."""

    near: str
    far: str
    round_trip: float
    rate: int
    at: float


@dataclass(frozen=True, slots=True)
class FaultState:
    """A lost member. `at`: when it was declared lost, `clock` the loop's time then; `silent`: seconds without a sign of
    it before; `rerun`: microbatches that were open there or credited to it; `rerouted` seconds until the first of them
    was done without it."""

    member: int
    peer: str
    stage: int
    at: float
    clock: float
    at_step: int
    why: str
    silent: float
    rerun: int
    rerouted: float | None = None


@dataclass(frozen=True, slots=True)
class LedgerState:
    """Sums over the closed steps."""

    steps: int = 0
    microbatches: int = 0
    lost: int = 0
    duplicated: int = 0
    reissued: int = 0
    taken_back: int = 0
    tokens: int = 0
    faults: int = 0


@dataclass(frozen=True, slots=True)
class RunState:
    """A run. `phase`: gathering (not all stages have their replicas), training, waiting (a stage has lost its last
    replica), standby, finished or stopped; `why` what stopped it. `notes`: the latest events that people read."""

    sequence: int = 0
    at: float = 0.0
    began_at: float = 0.0
    opened: events.Opened | None = None
    listening: events.Listening | None = None
    phase: str = "gathering"
    why: str = ""
    term: int = 0
    waiting_for: int | None = None
    checkpoint: int = 0
    """The step with which a run would begin that goes back to the last checkpoint; 0 also if there is none."""

    paused: bool = False
    closed: int = 0
    """The step below which all are in `ledger`: steps are closed in their order."""

    steps: Mapping[int, StepState] = field(default_factory=dict)
    heldout: Mapping[int, Scalar] = field(default_factory=dict)
    members: Mapping[int, MemberState] = field(default_factory=dict)
    peers: Mapping[str, PeerState] = field(default_factory=dict)
    links: Mapping[str, LinkState] = field(default_factory=dict)
    faults: tuple[FaultState, ...] = ()
    ledger: LedgerState = LedgerState()
    issued: int = 0
    in_flight: int = 0
    window: int = 0
    trainer_bytes: int = 0
    kept: tuple[events.Kept, ...] = ()
    notes: tuple[Record, ...] = ()

    @property
    def last_step(self) -> int:
        """The newest committed step, -1 before the first."""
        return max(self.steps, default=-1)


def fold(state: RunState, record: Record) -> RunState:
    """The run after one event more."""
    event = record.event
    change = _CHANGES.get(type(event))
    after = change(state, event, record.at) if change else state
    began = after.began_at or record.at
    notes = (*after.notes, record)[-MAX_NOTES:] if isinstance(event, NOTED) else after.notes
    return replace(after, sequence=record.sequence, at=record.at, began_at=began, notes=notes)


# ---- the run


def _opened(state: RunState, event: events.Opened, at: float) -> RunState:
    return replace(state, opened=event)


def _listening(state: RunState, event: events.Listening, at: float) -> RunState:
    return replace(state, listening=event)


def _leads(state: RunState, event: events.Leads, at: float) -> RunState:
    """Whoever was a member under another trainer must come anew, to this one."""
    for member in [member for member in state.members.values() if member.is_live]:
        state = _gone(state, member.member, at, "another trainer leads")
    return replace(_moved_on(state, "gathering"), term=event.term, in_flight=0, paused=False)


def _follows(state: RunState, event: events.Follows, at: float) -> RunState:
    return replace(_moved_on(state, "standby"), term=event.term)


def _waiting(state: RunState, event: events.Waiting, at: float) -> RunState:
    return replace(state, phase="waiting", waiting_for=event.stage)


def _went_back(state: RunState, event: events.WentBack, at: float) -> RunState:
    """The steps beyond a checkpoint are no part of the run any more; what it took to compute them is."""
    undone = [step for number, step in state.steps.items() if event.step <= number < state.closed]
    each = 0 if state.opened is None else state.opened.microbatches
    ledger = replace(
        state.ledger,
        steps=state.ledger.steps - len(undone),
        microbatches=state.ledger.microbatches - len(undone) * each,
        tokens=state.ledger.tokens - sum(step.tokens for step in undone),
    )
    steps = {number: step for number, step in state.steps.items() if number < event.step}
    heldout = {version: loss for version, loss in state.heldout.items() if version <= event.step}
    return replace(state, steps=steps, heldout=heldout, ledger=ledger, closed=min(state.closed, event.step))


def _paused(state: RunState, event: events.Paused, at: float) -> RunState:
    return replace(state, paused=True)


def _resumed(state: RunState, event: events.Resumed, at: float) -> RunState:
    return replace(state, paused=False)


def _concluded(state: RunState, event: events.Concluded, at: float) -> RunState:
    return replace(state, phase="stopped" if event.error else "finished", why=event.error, waiting_for=None)


def _kept(state: RunState, event: events.Kept, at: float) -> RunState:
    return replace(state, kept=(*(kept for kept in state.kept if kept.folder != event.folder), event))


def _moved_on(state: RunState, phase: str) -> RunState:
    return replace(state, phase=phase, waiting_for=None, why="")


# ---- its members


def _joined(state: RunState, event: events.Joined, at: float) -> RunState:
    earlier = state.peers.get(event.peer)
    if earlier is not None:
        state = _gone(state, earlier.member, at, "it came again")
    peer = replace(
        state.peers.get(event.peer) or PeerState(event.peer, event.member, at),
        member=event.member,
        name=event.name,
        version=event.version,
        device=event.device,
        memory=event.memory,
        up=event.up,
        down=event.down,
        relayed=event.relayed,
    )
    member = MemberState(event.member, event.peer, event.stage, "loading", joined_at=at, since=at)
    return replace(
        state, peers={**state.peers, event.peer: peer}, members=_forgetting({**state.members, event.member: member})
    )


def _forgetting(members: dict[int, MemberState]) -> dict[int, MemberState]:
    """The members without the oldest of too many that are gone."""
    gone = sorted(number for number, member in members.items() if not member.is_live)
    for number in gone[: max(0, len(gone) - MAX_GONE)]:
        del members[number]
    return members


def _with(state: RunState, number: int, /, **changes: Any) -> RunState:
    member = state.members.get(number)
    if member is None:
        return state
    return replace(state, members={**state.members, number: replace(member, **changes)})


def _gone(state: RunState, number: int, at: float, why: str) -> RunState:
    member = state.members.get(number)
    if member is None or not member.is_live:
        return state
    peer = state.peers[member.peer]
    peer = replace(peer, online=peer.online + at - member.joined_at)
    prefix = f"{member.peer} "
    return replace(
        _with(state, number, state="gone", since=at, why=why),
        peers={**state.peers, member.peer: peer},
        links={key: link for key, link in state.links.items() if not key.startswith(prefix)},
    )


def _ready(state: RunState, event: events.Ready, at: float) -> RunState:
    state = _with(state, event.member, state="ready", since=at, ready_at=at)
    if state.phase == "waiting" and all(_replicas(state, stage) for stage in range(_stages(state))):
        state = _moved_on(state, "training")
    return state


def _stages(state: RunState) -> int:
    return 0 if state.opened is None else state.opened.stages


def _replicas(state: RunState, stage: int) -> int:
    return sum(member.is_live and member.stage == stage for member in state.members.values())


def _draining(state: RunState, event: events.Draining, at: float) -> RunState:
    return _with(state, event.member, state="draining", since=at, why=event.why)


def _left(state: RunState, event: events.Left, at: float) -> RunState:
    return _gone(state, event.member, at, event.why)


def _banned(state: RunState, event: events.Banned, at: float) -> RunState:
    peer = replace(state.peers.get(event.peer) or PeerState(event.peer, 0, at), banned=event.why or "by the organizer")
    return replace(state, peers={**state.peers, event.peer: peer})


def _lost(state: RunState, event: events.Lost, at: float) -> RunState:
    member = state.members.get(event.member)
    state = _gone(state, event.member, at, event.why)
    if member is None or member.ready_at is None:
        return state  # it had no part in the run yet
    fault = FaultState(
        event.member, event.peer, event.stage, at, event.at, event.at_step, event.why, event.silent, event.rerun
    )
    peer = state.peers[event.peer]
    return replace(
        state,
        faults=(*state.faults, fault)[-MAX_FAULTS:],
        ledger=replace(state.ledger, faults=state.ledger.faults + 1),
        peers={**state.peers, event.peer: replace(peer, losses=peer.losses + 1)},
    )


def _rerouted(state: RunState, event: events.Rerouted, at: float) -> RunState:
    faults = tuple(
        replace(fault, rerouted=event.at - fault.clock)
        if fault.member == event.member and fault.rerouted is None
        else fault
        for fault in state.faults
    )
    return replace(state, faults=faults)


def _pulse(state: RunState, event: events.Pulse, at: float) -> RunState:
    members, links = dict(state.members), dict(state.links)
    for pulse in event.members:
        member = members.get(pulse.member)
        if member is not None:
            members[pulse.member] = replace(member, pulse=pulse, behind=max(0, state.last_step + 1 - pulse.version))
    for link in event.links:
        near = members.get(link.member)
        if near is not None and near.is_live:
            key = f"{near.peer} {link.peer}"
            links[key] = LinkState(near.peer, link.peer, link.round_trip, link.rate, at)
    for key in sorted(links, key=lambda key: links[key].at)[: max(0, len(links) - MAX_LINKS)]:
        del links[key]
    return replace(
        state,
        members=members,
        links=links,
        issued=event.issued,
        in_flight=event.in_flight,
        window=event.window,
        trainer_bytes=event.trainer_bytes,
    )


# ---- its steps


def _evaluated(state: RunState, event: events.Evaluated, at: float) -> RunState:
    return replace(state, heldout={**state.heldout, event.version: event.loss})


def _stepped(state: RunState, event: events.Stepped, at: float) -> RunState:
    step = StepState(
        event.step, at, event.loss, event.grad_norm, event.tokens, event.seconds, event.version, event.reissued
    )
    moved = state if state.phase in ("finished", "stopped") else _moved_on(state, "training")
    return replace(moved, steps=_thinned({**state.steps, event.step: step}))


def _settled(state: RunState, event: events.Settled, at: float) -> RunState:
    """What it adds to the sums; a step that is closed already adds nothing again."""
    step = state.steps.get(event.step)
    if step is None or event.step < state.closed:
        return state
    members = {number: replace(member, given=KEPT_SHARE * member.given) for number, member in state.members.items()}
    peers = dict(state.peers)
    for number, count in event.counted:
        member = members.get(number)
        if member is None:
            continue
        members[number] = replace(member, counted=member.counted + count, given=member.given + count)
        peer = peers[member.peer]
        counted = {**peer.counted, member.stage: peer.counted.get(member.stage, 0) + count}
        peers[member.peer] = replace(peer, counted=counted)
    settled = replace(step, reissued=event.reissued)
    state = replace(state, members=members, peers=peers, steps={**state.steps, event.step: settled})
    return _add_up(state, event, step.tokens)


def _add_up(state: RunState, event: events.Settled | events.Recalled, tokens: int) -> RunState:
    ledger = state.ledger
    ledger = replace(
        ledger,
        steps=ledger.steps + 1,
        microbatches=ledger.microbatches + event.microbatches,
        lost=ledger.lost + event.lost,
        duplicated=ledger.duplicated + event.duplicated,
        reissued=ledger.reissued + event.reissued,
        taken_back=ledger.taken_back + event.taken_back,
        tokens=ledger.tokens + tokens,
    )
    return replace(state, ledger=ledger, closed=event.step + 1)


def _recalled(state: RunState, event: events.Recalled, at: float) -> RunState:
    """A step of an earlier trainer, unless its own events have told of it."""
    if event.step < state.closed:
        return state
    known = state.steps.get(event.step)
    staleness = 0 if state.opened is None else state.opened.staleness
    step = StepState(
        event.step,
        at if known is None else known.at,
        event.loss,
        event.grad_norm,
        event.tokens,
        event.seconds,
        max(0, event.step - staleness),
        event.reissued,
    )
    state = replace(state, steps=_thinned({**state.steps, event.step: step}))
    return _add_up(state, event, event.tokens)


def _thinned(steps: dict[int, StepState]) -> dict[int, StepState]:
    if len(steps) <= MAX_STEPS:
        return steps
    order = sorted(steps)
    for number in order[1 : MAX_STEPS // 2 : 2]:
        del steps[number]
    return steps


_CHANGES: Mapping[type[Event], Callable[[RunState, Any, float], RunState]] = {
    events.Opened: _opened,
    events.Listening: _listening,
    events.Leads: _leads,
    events.Follows: _follows,
    events.Waiting: _waiting,
    events.WentBack: _went_back,
    events.Checkpointed: lambda state, event, at: replace(state, checkpoint=event.step),
    events.Paused: _paused,
    events.Resumed: _resumed,
    events.Concluded: _concluded,
    events.Kept: _kept,
    events.Joined: _joined,
    events.Ready: _ready,
    events.Draining: _draining,
    events.Left: _left,
    events.Banned: _banned,
    events.Lost: _lost,
    events.Rerouted: _rerouted,
    events.Pulse: _pulse,
    events.Evaluated: _evaluated,
    events.Stepped: _stepped,
    events.Settled: _settled,
    events.Recalled: _recalled,
}
