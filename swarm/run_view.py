"""What people are shown of a run: one JSON document, made of its state (`run_state.py`) and nothing else.

The page, `/api/`, the terminal and gRPC all show parts of this document, so that they agree. Its large parts are
objects by key, never lists: what has changed can then be sent alone (`merge_patch.py`). Numbers are in bytes, seconds,
tokens and bits a second. Pure; the words for people are in here too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import events
from .run_state import FaultState, MemberState, PeerState, RunState
from .work import worth

RECENT_STEPS = 8
"""Over how many steps the pace is taken."""


def short(peer: str) -> str:
    """How a peer is named where nobody has given it a name."""
    return peer[-8:]


@dataclass(frozen=True, slots=True)
class StagePace:
    """One stage: replicas that take visits; visits a second that they would do without any link in the way, 0 where
    that is not known; open visits there."""

    stage: int
    replicas: int
    rate: float
    queue: int


def view(state: RunState) -> dict[str, Any]:
    """The document."""
    paces = stage_paces(state)
    slowest = bottleneck(paces)
    given = _given(state)
    return {
        "sequence": state.sequence,
        "at": state.at,
        "phase": phase_of(state),
        "sentence": sentence(state),
        "run": _run(state),
        "progress": _progress(state, paces),
        "steps": {
            str(number): [step.loss, step.tokens, step.seconds, step.grad_norm, step.reissued, step.at]
            for number, step in sorted(state.steps.items())
        },
        "heldout": {str(version): loss for version, loss in sorted(state.heldout.items())},
        "stages": {str(pace.stage): _stage(state, pace, pace.stage == slowest) for pace in paces},
        "members": {
            str(member.member): _member(state, member, given[member.stage])
            for member in state.members.values()
            if member.is_live
        },
        "peers": {peer.peer: _peer(state, peer) for peer in state.peers.values()},
        "links": {
            key: {
                "near": link.near,
                "far": link.far,
                "round_trip": link.round_trip,
                "rate": link.rate,
                "relayed": any(state.peers[end].relayed for end in (link.near, link.far) if end in state.peers),
            }
            for key, link in sorted(state.links.items())
        },
        "faults": {str(fault.member): _fault(state, fault) for fault in state.faults},
        "ledger": {
            "steps": state.ledger.steps,
            "microbatches": state.ledger.microbatches,
            "lost": state.ledger.lost,
            "duplicated": state.ledger.duplicated,
            "reissued": state.ledger.reissued,
            "taken_back": state.ledger.taken_back,
            "faults": state.ledger.faults,
        },
        "wire": _wire(state),
        "needs": needs(state),
        "kept": {
            str(number): {
                "what": kept.what,
                "version": kept.version,
                "files": [{"name": name, "bytes": size, "sha256": digest} for name, size, digest in kept.files],
            }
            for number, kept in enumerate(state.kept)
        },
        "notes": {
            str(note.sequence): {
                "at": note.at,
                "kind": note.event.kind,
                "peer": getattr(note.event, "peer", ""),
                "text": in_words(state, note.event),
            }
            for note in state.notes
        },
    }


# ---- the run


def _run(state: RunState) -> dict[str, Any]:
    opened, listening = state.opened, state.listening
    found: dict[str, Any] = {
        "run_id": "" if opened is None else opened.run_id,
        "began_at": state.began_at,
        "term": state.term,
        "checkpoint": state.checkpoint,
        "join": "" if listening is None else listening.join,
        "stand_by": "" if listening is None else listening.stand_by,
    }
    if opened is not None:
        found |= {
            "model": opened.model,
            "mode": opened.mode,
            "base": opened.base,
            "stages": opened.stages,
            "steps": opened.steps,
            "microbatches": opened.microbatches,
            "step_tokens": opened.step_tokens,
            "staleness": opened.staleness,
            "min_replicas": opened.min_replicas,
            "slots": opened.slots,
            "activations": opened.activations,
            "gradients": opened.gradients,
        }
    return found


def phase_of(state: RunState) -> str:
    """The phase, or paused."""
    return "paused" if state.paused and state.phase in ("gathering", "training", "waiting") else state.phase


def sentence(state: RunState) -> str:
    """The run's state in one sentence."""
    opened = state.opened
    if opened is None:
        return "nothing is known of this run yet"
    at = f"step {max(state.issued, state.last_step + 1)} of {opened.steps}"
    if state.phase == "finished":
        return f"all {opened.steps} steps are done, lost {state.ledger.lost}, duplicated {state.ledger.duplicated}"
    if state.phase == "stopped":
        return f"it cannot go on: {state.why}"
    if state.phase == "standby":
        return f"standing by: another coordinator leads, in term {state.term}; step {state.last_step + 1} is the next"
    if state.phase == "waiting":
        return f"{at}, waiting for stage {state.waiting_for}: it has no replica left"
    if state.paused:
        return f"{at}, paused by the organizer"
    paces = stage_paces(state)
    lacking = [pace for pace in paces if pace.replicas < opened.min_replicas]
    if state.phase == "gathering":
        if not lacking:
            return f"{at}, about to begin"
        return f"{at}, waiting for peers: " + ", ".join(
            f"stage {pace.stage} has {pace.replicas} of {opened.min_replicas}" for pace in lacking
        )
    slowest = bottleneck(paces)
    if slowest is None:
        return f"{at}, training"
    pace = paces[slowest]
    replicas = "one replica" if pace.replicas == 1 else f"{pace.replicas} replicas"
    return f"{at}, stage {slowest} is the narrowest: {replicas}, queue {pace.queue}"


def stage_paces(state: RunState) -> list[StagePace]:
    """Of every stage, in order."""
    found = []
    for stage in range(0 if state.opened is None else state.opened.stages):
        members = [member for member in state.members.values() if member.stage == stage and member.state == "ready"]
        known = [1 / seconds for member in members if (seconds := _service(member))]
        # Who has not been measured yet counts as the others of its stage do.
        rate = sum(known) * len(members) / len(known) if known else 0.0
        queue = sum(member.pulse.open - member.pulse.below for member in members if member.pulse is not None)
        found.append(StagePace(stage, len(members), rate, max(0, queue)))
    return found


def _service(member: MemberState) -> float:
    """Seconds of compute of one visit, 0 where it is not known."""
    pulse = member.pulse
    return pulse.forward + pulse.backward if pulse is not None and pulse.forward and pulse.backward else 0.0


def bottleneck(paces: list[StagePace]) -> int | None:
    """The stage that sets the pace; None before that is known of all. Ties: the lowest."""
    if not paces or not all(pace.rate for pace in paces):
        return None
    return min(paces, key=lambda pace: pace.rate).stage


def _progress(state: RunState, paces: list[StagePace]) -> dict[str, Any]:
    opened = state.opened
    recent = [state.steps[number] for number in sorted(state.steps)[-RECENT_STEPS - 1 :]]
    rate = 0.0
    if len(recent) > 1 and recent[-1].at > recent[0].at:
        rate = sum(step.tokens for step in recent[1:]) / (recent[-1].at - recent[0].at)
    elif recent and recent[-1].seconds:
        rate = recent[-1].tokens / recent[-1].seconds
    ideal = 0.0
    if opened is not None and bottleneck(paces) is not None:
        ideal = min(pace.rate for pace in paces) * opened.step_tokens / opened.microbatches
    last = state.steps.get(state.last_step)
    left = 0 if opened is None else opened.steps - state.last_step - 1
    ended = state.phase in ("finished", "stopped")
    return {
        "step": state.last_step,
        "issued": state.issued,
        "loss": None if last is None else last.loss,
        "grad_norm": None if last is None else last.grad_norm,
        "version": None if last is None else last.version,
        "heldout": state.heldout[max(state.heldout)] if state.heldout else None,
        "tokens": state.ledger.tokens,
        "tokens_per_second": rate,
        "ideal_tokens_per_second": ideal,
        "seconds_left": None if ended or not rate or last is None else left * last.tokens / rate,
        "in_flight": state.in_flight,
        "window": state.window,
    }


# ---- stages, members, peers


def _stage(state: RunState, pace: StagePace, is_slowest: bool) -> dict[str, Any]:
    opened = state.opened
    assert opened is not None
    return {
        "layers": list(opened.layers[pace.stage]) if opened.layers else None,
        "replicas": pace.replicas,
        "rate": pace.rate,
        "queue": pace.queue,
        "is_slowest": is_slowest,
        "memory": opened.memory[pace.stage] if opened.memory else 0,
        "cost": worth(opened.costs, pace.stage),
    }


def _given(state: RunState) -> dict[int, float]:
    """What the members of each stage were given lately, all together."""
    found: dict[int, float] = {}
    for member in state.members.values():
        if member.is_live:
            found[member.stage] = found.get(member.stage, 0.0) + member.given
    return found


def _member(state: RunState, member: MemberState, given: float) -> dict[str, Any]:
    pulse = member.pulse
    found = {
        "peer": member.peer,
        "stage": member.stage,
        "state": member.state,
        "since": member.since,
        "joined_at": member.joined_at,
        "share": member.given / given if given else None,
        "counted": member.counted,
        "waits": waits(state, member),
    }
    if pulse is not None:
        found |= {
            "version": pulse.version,
            "open": pulse.open,
            "below": pulse.below,
            "forward": pulse.forward,
            "backward": pulse.backward,
            "codec_seconds": pulse.codec_seconds,
            "sent": pulse.activation_bytes + pulse.gradient_bytes + pulse.reduce_bytes,
            "busy": pulse.busy,
            "refused": dict(pulse.refused),
        }
    return found


def waits(state: RunState, member: MemberState) -> str:
    """What a member waits for, and for whom; "" while it is at work."""
    if member.state == "loading":
        return "loads its stage, or fetches the state of another replica"
    if member.state == "draining":
        return f"leaves ({member.why}) when the steps that it has a part in are closed"
    pulse = member.pulse
    if pulse is None:
        return ""
    if state.paused:
        return "waits for the organizer, who has paused the run"
    if state.phase == "waiting":
        return f"waits for a replica of stage {state.waiting_for}"
    if member.behind > 1:
        return f"catches up: {member.behind} versions behind"
    if pulse.open == 0:
        return "waits for microbatches" + (f" from stage {member.stage - 1}" if member.stage else "")
    if pulse.below == pulse.open:
        below = state.peers.get(pulse.waits_for)
        whom = "stage" if below is None else f"{name_of(below)} of stage"
        return f"waits for {whom} {member.stage + 1} with {pulse.below} {'visit' if pulse.below == 1 else 'visits'}"
    return ""


def name_of(peer: PeerState) -> str:
    """What to call a peer."""
    return peer.name or short(peer.peer)


def _peer(state: RunState, peer: PeerState) -> dict[str, Any]:
    member = state.members.get(peer.member)
    live = member is not None and member.is_live
    opened = state.opened
    counted = sum(peer.counted.values())
    credit = sum(
        count * (1.0 if opened is None else worth(opened.costs, stage)) for stage, count in peer.counted.items()
    )
    return {
        "name": name_of(peer),
        "member": peer.member if live else None,
        "stage": None if member is None else member.stage,
        "state": "unknown" if member is None else member.state,
        "why": "" if member is None or live else member.why,
        "since": None if member is None else member.since,
        "first_at": peer.first_at,
        "online": peer.online,
        "joined_at": member.joined_at if member is not None and live else None,
        "losses": peer.losses,
        "counted": counted,
        "credit": round(credit, 3),
        "banned": peer.banned,
        "version": peer.version,
        "device": peer.device,
        "memory": peer.memory,
        "up": peer.up,
        "down": peer.down,
        "relayed": peer.relayed,
    }


# ---- what went wrong, and what is needed


def _fault(state: RunState, fault: FaultState) -> dict[str, Any]:
    peer = state.peers.get(fault.peer)
    return {
        "peer": fault.peer,
        "name": short(fault.peer) if peer is None else name_of(peer),
        "stage": fault.stage,
        "at": fault.at,
        "at_step": fault.at_step,
        "why": fault.why,
        "silent": fault.silent,
        "rerun": fault.rerun,
        "rerouted": fault.rerouted,
    }


def _wire(state: RunState) -> dict[str, Any]:
    """Bytes that peers have sent, and what fp32 would have added to them."""
    pulses = _last_words(state)
    activations = sum(pulse.activation_bytes for pulse in pulses)
    gradients = sum(pulse.gradient_bytes for pulse in pulses)
    saved = 0.0
    opened = state.opened
    if opened is not None and opened.activation_bytes and opened.gradient_bytes:
        saved += activations * (opened.plain_bytes / opened.activation_bytes - 1)
        saved += gradients * (opened.plain_bytes / opened.gradient_bytes - 1)
    return {
        "activation_bytes": activations,
        "gradient_bytes": gradients,
        "reduce_bytes": sum(pulse.reduce_bytes for pulse in pulses),
        "trainer_bytes": state.trainer_bytes,
        "saved_bytes": round(saved),
        "codec_seconds": sum(pulse.codec_seconds for pulse in pulses),
    }


def _last_words(state: RunState) -> list[events.MemberPulse]:
    """The last pulse of every process: one that gets a new place in the run counts on, a new one from zero."""
    found: list[events.MemberPulse] = []
    latest: dict[str, events.MemberPulse] = {}
    for _, member in sorted(state.members.items()):
        if member.pulse is not None:
            earlier = latest.get(member.peer)
            if earlier is not None and earlier.activation_bytes > member.pulse.activation_bytes:
                found.append(earlier)
            latest[member.peer] = member.pulse
    return [*found, *latest.values()]


def needs(state: RunState) -> dict[str, Any] | None:
    """What would help most: one more machine, where, how large, and how much faster the run would be with it.

    `speed_up` is by compute alone, of a machine as fast as the median of that stage's replicas (or of all, if it has
    none); `bandwidth`: bits a second each way that keep such a machine busy. None when nothing is needed any more.
    """
    opened = state.opened
    if opened is None or state.phase in ("finished", "stopped"):
        return None
    paces = stage_paces(state)
    lacking = [pace for pace in paces if pace.replicas < opened.min_replicas]
    slowest = bottleneck(paces)
    stage = min(lacking, key=lambda pace: pace.replicas).stage if lacking else slowest
    if stage is None:
        return None
    live = [member for member in state.members.values() if member.is_live]
    here = sorted(_service(member) for member in live if member.stage == stage and _service(member))
    anywhere = sorted(_service(member) for member in live if _service(member))
    seconds = (here or anywhere or [0.0])[len(here or anywhere or [0.0]) // 2]
    speed_up = None
    if slowest is not None and seconds:
        rates = [pace.rate + (1 / seconds if pace.stage == stage else 0.0) for pace in paces]
        speed_up = min(rates) / paces[slowest].rate
    cuts = (stage > 0) + (stage < opened.stages - 1)
    each_way = cuts * max(opened.activation_bytes, opened.gradient_bytes)
    return {
        "stage": stage,
        "replicas": paces[stage].replicas,
        "why": "it has too few replicas to begin" if lacking and state.phase == "gathering" else "it is the narrowest",
        "memory": opened.memory[stage] if opened.memory else 0,
        "bandwidth": 8 * each_way / seconds if seconds else None,
        "speed_up": speed_up,
        "command": "" if state.listening is None else f"{state.listening.join} --stage {stage}",
    }


# ---- in words


def in_words(state: RunState, event: events.Event) -> str:
    """One line for a note."""

    def who(peer: str) -> str:
        found = state.peers.get(peer)
        return short(peer) if found is None else name_of(found)

    match event:
        case events.Opened():
            return f"the run of {event.model} begins, or goes on: {event.stages} stages, {event.steps} steps"
        case events.Leads():
            return f"this coordinator leads, in term {event.term}"
        case events.Follows():
            return f"this coordinator stands by; {who(event.trainer)} leads, in term {event.term}"
        case events.Waiting():
            return (
                f"stage {event.stage} has no replica left; the run waits for one that returns, or goes back to step "
                f"{event.step} when a new peer is there"
            )
        case events.WentBack():
            return f"the run goes on from step {event.step}; {event.lost} committed steps are undone"
        case events.Checkpointed():
            return f"the first {event.step} steps are kept in a checkpoint"
        case events.CheckpointFailed():
            return f"no checkpoint of the first {event.step} steps: {event.error}"
        case events.Paused():
            return "the organizer has paused the run"
        case events.Resumed():
            return "the organizer has the run go on"
        case events.Concluded():
            return f"the run has stopped: {event.error}" if event.error else "the run is finished"
        case events.Kept():
            return f"{event.what} of version {event.version} can be downloaded"
        case events.Joined():
            return f"{who(event.peer)} joins stage {event.stage}"
        case events.Ready():
            return f"{who(event.peer)} is ready at stage {event.stage}"
        case events.Draining():
            return f"{who(event.peer)} is leaving: {event.why}"
        case events.Moving():
            return f"{who(event.peer)} is to move from stage {event.stage} to stage {event.target}"
        case events.Moved():
            if event.error:
                return f"{who(event.peer)} has not moved from stage {event.stage} to {event.target}: {event.error}"
            return f"{who(event.peer)} has moved from stage {event.stage} to stage {event.target}"
        case events.Left():
            return f"{who(event.peer)} has left stage {event.stage}: {event.why}"
        case events.Banned():
            return f"{who(event.peer)} is banned: {event.why or 'by the organizer'}"
        case events.Lost() if event.member in state.members and state.members[event.member].ready_at is None:
            return f"{who(event.peer)} cannot take part in stage {event.stage}: {event.why}"
        case events.Lost():
            return f"{who(event.peer)} of stage {event.stage} is lost at step {event.at_step}: {event.why}"
        case events.Rerouted():
            return f"microbatch {event.index} of step {event.step} is done without {who(event.peer)}"
        case events.Evaluated():
            return f"held-out loss at version {event.version}: {event.loss:.4f}"
    return event.kind


def snapshot_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a status line or `--json` shows: the document without its long parts."""
    return {key: document[key] for key in document if key not in ("steps", "notes", "links")}
