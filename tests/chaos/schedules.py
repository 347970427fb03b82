"""Seeded fault schedules: what goes wrong in a run, when, and for how long. Pure data, drawn from a seed, written as
JSON; `virtual.py` carries them out on virtual time, `real.py` on real processes.
"""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

MOMENTS = ("queued", "forward", "below", "backward", "held", "reduce", "part", "reduced", "commit", "applied")

TRAINER, STANDBY = "trainer", "standby"

KINDS = {
    "kill": 4,
    "freeze": 2,
    "cut": 2,
    "one-way cut": 2,
    "isolate": 1,
    "stall": 1,
    "slow": 1,
    "hang": 1,
    "thin": 1,
    "join": 1,
}
"""Faults of peers and links, with their odds.

kill: SIGKILL, started again after `seconds` under its identity. freeze: SIGSTOP for `seconds`. cut, one-way cut:
between `target` and `other`. isolate: cut from everybody. stall: a link holds everything for `seconds`. slow: a device
takes ten times as long. hang: visits do not end, heartbeats go on. thin: a link of a few kB/s. join: a peer starts
late. (part: a peer and another replica of its stage cannot reach each other any more. corrupt: the next update makes a
wrong state; `draw_wrong_state` alone draws it.)
"""

WRONG_KINDS = ("flip", "nan", "forge", "repeat")
"""What a seventh of the schedules have besides. flip: a member's copy of a reduction has a wrong bit. nan: a gradient
is not finite. forge: a stranger claims to lead. repeat: a stranger sends the Runs again that a peer is busy with, for
`seconds`."""

WRONG = 0.15

CORRUPT = "corrupt"

LEAVE = "leave"
"""A peer wants to leave; if it has gone, it comes again `seconds` later. `draw_leaving` alone draws it."""

LOSE, MOVE, RESUME = "lose", "move", "resume"
MISLOADS, ELSEWHERE = "misloads", "elsewhere"
"""As the `other` of a loss: the first that comes again makes a wrong state of what it is given, once. Of a resume: on
another machine, which knows of no term but the checkpoint's."""

ELASTIC_KINDS = {LOSE: 3, MOVE: 3, "join": 1, RESUME: 2}
"""What `draw_elastic` has besides. lose: every replica of a stage is killed, and they come again one after the other,
with nothing. move: a peer's machine is asked to host another stage instead. resume: the trainer of a run without
standbys is killed, and another one begins at the last checkpoint."""

AT_A_MOMENT = 0.7
"""How many of those come at a moment of the protocol."""

TRAINER_KINDS = {"kill": 2, "freeze": 1, "isolate": 1, "split": 1}
"""Faults of the trainer, where a standby is configured; a killed one comes back as standby. split: it and a replica of
every stage are cut off from the rest."""


ORPHANED_REDUCTIONS = 0.05
HALF_SENT_COMMITS = 0.1
"""How many of the schedules (of those with a standby) begin with faults that would hardly ever come together by chance:
they leave a Commit without a holder of what it names, or with one peer alone that has heard it."""

LASTING = 0.15
"""How many of the schedules end with a fault that never does: a device that hangs for good, or two replicas of a stage
that cannot reach each other any more."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """The `nth` time that anyone passes the moment `name` at (stage, step)."""

    name: str
    stage: int
    step: int
    nth: int


@dataclass(frozen=True, slots=True)
class Fault:
    """`target` and `other` are "peer N", "trainer" (whoever leads then) or "standby". With a trigger, `at` is the delay
    after it in seconds, and a target that is not named is the peer that passed it; else `at` is the time since the
    start."""

    kind: str
    at: float
    seconds: float
    target: str = ""
    other: str = ""
    trigger: Trigger | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run and its faults. Latencies and directory times are in seconds, `background` is how long a sum or an update
    takes, `gradients` is how many gradients a peer may keep apart (0: as many as there are), `visits` and `spilled` how
    many of the tensors that visits have sent it may keep in memory (0: all) and then on disk, `disk` how many of those
    its disk really takes."""

    seed: int
    staleness: int
    replicas: int
    standby: bool
    faults: tuple[Fault, ...]
    stages: int = 3
    steps: int = 5
    batch: int = 4
    latency: tuple[float, float] = (0.001, 0.005)
    directory_delay: float = 0.0
    directory_stale: float = 0.0
    background: float = 0.01
    gradients: int = 0
    visits: int = 0
    spilled: int = 0
    disk: int = 0
    checkpoints: int = 0
    """How many steps lie between two checkpoints; 0: none are taken."""

    patience: float = 30.0

    @property
    def peers(self) -> int:
        return self.stages * self.replicas

    def without(self, fault: int) -> "Schedule":
        return replace(self, faults=self.faults[:fault] + self.faults[fault + 1 :])

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Schedule":
        plain: dict[str, Any] = json.loads(text)
        faults = tuple(
            Fault(**{**fault, "trigger": Trigger(**fault["trigger"]) if fault["trigger"] else None})
            for fault in plain.pop("faults")
        )
        return cls(**{**plain, "faults": faults, "latency": tuple(plain["latency"])})


def draw_schedule(seed: int) -> Schedule:
    """One to six faults of all kinds, or a storm of twelve; half of them at moments of the protocol, half at times."""
    draw = random.Random(f"chaos {seed}")
    base = Schedule(
        seed=seed,
        staleness=draw.randrange(2),
        replicas=draw.choice((2, 2, 3)),
        standby=draw.random() < 0.4,
        faults=(),
        latency=draw.choice(((0.001, 0.005), (0.001, 0.005), (0.02, 0.2))),
        directory_delay=draw.choice((0.0, 0.0, 0.3)),
        directory_stale=draw.choice((0.0, 0.0, 3.0)),
        background=draw.choice((0.01, 0.01, 0.5)),
        gradients=draw.choice((0, 0, 1, 3)),
    )
    faults = [_draw_fault(draw, base) for _ in range(draw.choice((1, 2, 3, 4, 5, 6, 12)))]
    if draw.random() < ORPHANED_REDUCTIONS:
        base = replace(base, replicas=3)
        faults[:0] = _orphan_a_reduction(draw, base)
    visits, spilled = draw.choice((0, 0, 1, 4)), draw.choice((0, 1, 4))
    disk = draw.choice((spilled, spilled, 1))
    if base.standby and draw.random() < HALF_SENT_COMMITS:
        faults[:0] = _half_send_a_commit(draw, base)
    if draw.random() < LASTING:
        faults.append(_draw_lasting(draw, base))
    faults.extend(_draw_wrong(base))
    return replace(base, faults=tuple(faults), visits=visits, spilled=spilled, disk=disk)


def draw_leaving(seed: int) -> Schedule:
    """The schedule of this seed, in which some peers leave politely besides."""
    base, draw = draw_schedule(seed), random.Random(f"leaving {seed}")
    span = 10 if base.latency[1] > 0.1 else 1
    leaves = [
        Fault(LEAVE, draw.uniform(0.2, 4.0) * span, draw.uniform(0.5, 6.0), f"peer {draw.randrange(base.peers)}")
        for _ in range(draw.choice((1, 2, 3, 6)))
    ]
    return replace(base, faults=(*base.faults, *leaves))


def draw_elastic(seed: int) -> Schedule:
    """The schedule of this seed in which peers leave, move and come, stages lose their last replica, and trainers begin
    at a checkpoint."""
    base, draw = draw_leaving(seed), random.Random(f"elastic {seed}")
    span = 10 if base.latency[1] > 0.1 else 1
    kinds = {kind: odds for kind, odds in ELASTIC_KINDS.items() if kind != RESUME or not base.standby}
    faults = list(base.faults)
    for kind in draw.choices(list(kinds), list(kinds.values()), k=draw.choice((1, 2, 3))):
        target = {LOSE: f"stage {draw.randrange(base.stages)}", RESUME: TRAINER}.get(
            kind, f"peer {draw.randrange(base.peers)}"
        )
        other = f"stage {draw.randrange(base.stages)}" if kind == MOVE else ""
        seconds, at = draw.choice((0.5, 2.0, 4.0, 8.0)), draw.uniform(0.3, 6.0) * span
        stage, step, nth = draw.randrange(base.stages), draw.randrange(1, base.steps), draw.randrange(base.replicas)
        if kind != "join" and draw.random() < AT_A_MOMENT:  # most runs are over before they are lost by the clock
            trigger = Trigger(draw.choice(MOMENTS), stage, step, nth)
            faults.append(Fault(kind, draw.choice((0.0, draw.uniform(0, 0.1))), seconds, target, other, trigger))
        else:
            faults.append(Fault(kind, at, seconds, target, other))
    return replace(
        base, faults=tuple(faults), checkpoints=draw.choice((1, 1, 2, 3)), patience=draw.choice((0.1, 1.0, 5.0))
    )


def draw_made_anew(seed: int) -> Schedule:
    """The elastic schedule of this seed, in which a reduction is lost besides, and then the trainer."""
    elastic, draw = draw_elastic(seed), random.Random(f"made anew {seed}")
    base = replace(elastic, replicas=3, standby=True)
    lost = _orphan_a_reduction(draw, base)
    trainer = Fault("kill", draw.uniform(2.0, 8.0), 4.0, TRAINER, "", lost[-1].trigger)
    others = (fault for fault in elastic.faults if fault.kind != RESUME)
    return replace(base, faults=(*lost, trainer, *others))


def draw_wrong_state(seed: int) -> Schedule:
    """One update goes wrong on one of three replicas. Until it is found, others compute with what it sends them: losses
    are those of the reference no longer, but the states of a stage must be equal again, and nothing lost."""
    draw = random.Random(f"wrong state {seed}")
    fault = Fault(CORRUPT, draw.uniform(0.3, 2.0), 0.0, f"peer {draw.randrange(9)}")
    return Schedule(seed, staleness=draw.randrange(2), replicas=3, standby=False, faults=(fault,))


def _orphan_a_reduction(draw: random.Random, base: Schedule) -> list[Fault]:
    """The replica that is not answered has given its slices to a reduction that only the others hold; then they die."""
    stage, step = draw.randrange(base.stages), draw.randrange(base.steps)
    unanswered = f"peer {stage + base.stages * draw.randrange(base.replicas)}"
    cuts = [Fault("one-way cut", 0.0, 20.0, "", unanswered, Trigger("part", stage, step, nth)) for nth in range(3, 6)]
    moment, delay = draw.choice((("commit", 0.0), ("applied", 0.05)))  # before it has applied it, or has said so
    return [*cuts, *(Fault("kill", delay, 20.0, trigger=Trigger(moment, stage, step, nth)) for nth in range(2))]


def _half_send_a_commit(draw: random.Random, base: Schedule) -> list[Fault]:
    """A Commit reaches one peer only; then the trainer dies, and that peer is not heard when the next one begins."""
    when = Trigger("reduced", draw.randrange(base.stages), draw.randrange(base.steps), base.replicas - 1)
    peers = [f"peer {number}" for number in range(base.peers)]
    heard = peers.pop(draw.randrange(base.peers))
    cuts = [Fault("one-way cut", 0.0, 20.0, TRAINER, peer, when) for peer in peers]
    return [*cuts, Fault("isolate", 0.5, 8.0, heard, "", when), Fault("kill", 1.0, 4.0, TRAINER, "", when)]


def _draw_lasting(draw: random.Random, base: Schedule) -> Fault:
    at = draw.uniform(0.3, 3.0) * (10 if base.latency[1] > 0.1 else 1)
    return Fault(draw.choice(("hang", "part")), at, math.inf, f"peer {draw.randrange(base.peers)}")


def _draw_wrong(base: Schedule) -> Iterator[Fault]:
    """Drawn apart: whoever has none keeps the schedule that its seed gave before there were any."""
    draw = random.Random(f"wrong 63 {base.seed}")  # of the salts the first that leaves the mutants' schedules alone
    if draw.random() >= WRONG:
        return
    kind = draw.choice(WRONG_KINDS)
    stage, step = draw.randrange(base.stages), draw.randrange(base.steps)
    moment = Trigger("reduced" if kind == "flip" else "forward", stage, step, draw.randrange(base.replicas))
    target = f"peer {draw.randrange(base.peers)}" if kind == "forge" else ""
    yield Fault(kind, 0.0, draw.choice((0.5, 2.0)), target, trigger=moment)


def _draw_fault(draw: random.Random, base: Schedule) -> Fault:
    seconds = draw.choice((0.5, 2.0, 4.0, 8.0, 20.0))
    at = draw.uniform(0.3, 6.0) * (10 if base.latency[1] > 0.1 else 1)
    if base.standby and draw.random() < 0.3:
        kind = draw.choices(list(TRAINER_KINDS), list(TRAINER_KINDS.values()))[0]
        return Fault(kind, at, seconds, TRAINER)
    kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
    peers = [f"peer {number}" for number in range(base.peers)]
    target, other = draw.choice(peers), draw.choice([*peers, TRAINER, TRAINER])
    if kind == "join" or draw.random() < 0.5:
        return Fault(kind, at, seconds, target, other)
    trigger = Trigger(
        draw.choice(MOMENTS), draw.randrange(base.stages), draw.randrange(base.steps), draw.randrange(base.batch)
    )
    return Fault(kind, draw.choice((0.0, 0.0, draw.uniform(0, 0.1))), seconds, "", other, trigger)


def kill_at(name: str, stage: int, step: int, nth: int = 0, delay: float = 0.0) -> Fault:
    """A kill of the peer that passes a moment; it does not come back."""
    return Fault("kill", delay, float("inf"), trigger=Trigger(name, stage, step, nth))
