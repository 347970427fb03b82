"""What goes wrong in a run of real processes, and when: drawn from a seed. `real.py` carries it out. Pure."""

import random
from dataclasses import dataclass

DISTURBANCES = {"freeze": 3, "cut": 3, "one-way cut": 1, "stall": 2, "thin": 2, "delay": 1}
COMING_BACK_SECONDS = (3.0, 6.0)
"""Between a kill and the start of its successor: the killed one's network daemon is gone by then."""

KILL, TRAINER_KILL, LEAVE, JOIN, LOSE = "kill", "trainer kill", "leave", "join", "lose"
"""leave: a peer is asked to leave (SIGTERM), and comes again when it has gone. join: a machine more, without a stage
that it wants. lose: every replica of a stage is killed, so that the run goes back to its last checkpoint."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Mean seconds between events of a kind. Disturbances and kills come at any time, the others evenly spread: one
    trainer kill and one leave at least, joins and losses as many as there is time for."""

    disturbance: float = 10.0
    kill: float = 20.0
    trainer: float = 110.0
    leave: float = 75.0
    join: float = 150.0
    lose: float = 240.0
    trainer_from: float = 0.3
    """After which share of its time a trainer may be killed; it is within the next three tenths."""


@dataclass(frozen=True, slots=True)
class RealFault:
    """`at` and `seconds` as in `schedules.Fault`; `choice` in [0, 1) picks among those whom it may hit."""

    kind: str
    at: float
    seconds: float
    choice: float
    other: float = 0.0


def draw_real(seed: int, seconds: float, pace: Pace | None = None) -> list[RealFault]:
    """The faults of a run of this length, by time."""
    pace = pace or Pace()
    draw = random.Random(f"real chaos {seed}")
    faults = []
    at = draw.uniform(0.3, 1.0) * pace.disturbance
    while at < seconds:
        kind = draw.choices(list(DISTURBANCES), list(DISTURBANCES.values()))[0]
        faults.append(RealFault(kind, at, draw.choice((1.0, 2.0, 5.0, 8.0)), draw.random(), draw.random()))
        at += draw.uniform(0.7, 1.3) * pace.disturbance
    at = draw.uniform(0.3, 0.6) * pace.kill
    while at < seconds:
        faults.append(RealFault(KILL, at, draw.uniform(*COMING_BACK_SECONDS), draw.random()))
        at += draw.uniform(0.7, 1.3) * pace.kill
    spread = {
        TRAINER_KILL: max(1, int(seconds / pace.trainer)),
        LEAVE: max(1, int(seconds / pace.leave)),
        JOIN: int(seconds / pace.join),
        LOSE: int(seconds / pace.lose),
    }
    earliest = {TRAINER_KILL: pace.trainer_from, LEAVE: 0.1, JOIN: 0.1, LOSE: 0.5}
    for kind, count in spread.items():
        for number in range(count):
            at = seconds * (number + earliest[kind] + draw.uniform(0.0, 0.3)) / count
            faults.append(RealFault(kind, at, draw.uniform(*COMING_BACK_SECONDS), draw.random()))
    return sorted(faults, key=lambda fault: fault.at)
