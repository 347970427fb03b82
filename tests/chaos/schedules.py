"""Seeded kill schedules: which peer dies at which moment of a run on virtual time."""

import random
from dataclasses import dataclass, field

from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.swarm.host import Moment

MOMENTS = ("queued", "forward", "below", "backward", "held", "reduce", "part", "reduced", "commit", "applied")


@dataclass
class Kill:
    """Kills the peer that passes the `nth` moment of this name at (stage, step), `delay` seconds later."""

    moment: str
    stage: int
    step: int
    nth: int
    delay: float


@dataclass
class Schedule:
    """Carries out kills, never of a stage's last live replica. `done` holds what was carried out."""

    kills: list[Kill]
    done: list[tuple[str, Kill]] = field(default_factory=list)

    def watch(self, swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        for kill in list(self.kills):
            if (kill.moment, kill.stage, kill.step) != (moment.name, moment.stage, moment.step):
                continue
            kill.nth -= 1
            if kill.nth < 0:
                self.kills.remove(kill)
                swarm.later(kill.delay, lambda kill=kill: self._carry_out(swarm, peer, kill))

    def _carry_out(self, swarm: SimulatedSwarm, peer: str, kill: Kill) -> None:
        alive = swarm.live_at(kill.stage)
        if peer in alive and len(alive) > 1:
            self.done.append((peer, kill))
            swarm.kill(peer)


def kill_schedule(seed: int, *, stages: int, steps: int, batch: int) -> Schedule:
    """One to three kills at moments drawn from the seed; the delay lets them fall inside a phase too."""
    draw = random.Random(seed)
    kills = [
        Kill(
            moment=draw.choice(MOMENTS),
            stage=draw.randrange(stages),
            step=draw.randrange(steps),
            nth=draw.randrange(batch),
            delay=draw.choice((0.0, 0.0, draw.uniform(0, 0.1))),
        )
        for _ in range(draw.randint(1, 3))
    ]
    return Schedule(kills)
