"""The machines of a scenario's volunteers: how fast each is, how it is attached, when it comes.

A machine hosts one peer, and while that moves to another stage, two. What each draws (speed, link, sessions) is a
function of the seed and of its number alone, so that a setting that is changed leaves the volunteers as they were.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ..swarm.compute import BACKGROUND, BACKWARD, FORWARD
from ..swarm.keys import Identity
from ..swarm.machine import MBIT
from ..swarm.manifest import Manifest
from ..swarm.sizes import state_bytes
from ..swarm.work import backward_flops, forward_flops
from .links import Access, Downlink, Uplink
from .scenario import Group, Lifetime, Scenario, Session, Spread

MEMORY_BYTES_PER_SECOND = 2e9
"""At which a device sums and updates a state."""


def draw(spread: Spread, chance: random.Random) -> float:
    """One number of a spread."""
    return chance.uniform(*spread) if isinstance(spread, tuple) else float(spread)


def draw_lifetime(lifetime: Lifetime, chance: random.Random) -> float:
    """How long something lasts, in seconds."""
    if lifetime.distribution == "fixed":
        return lifetime.mean
    if lifetime.distribution == "exponential":
        return chance.expovariate(1 / lifetime.mean)
    if lifetime.distribution == "weibull":
        return chance.weibullvariate(lifetime.mean / math.gamma(1 + 1 / lifetime.shape), lifetime.shape)
    return chance.lognormvariate(math.log(lifetime.mean) - lifetime.shape**2 / 2, lifetime.shape)


@dataclass
class Machine:
    """One volunteer's. `seconds`: what a visit's forward and backward pass take at each stage; `rate`: microbatches a
    second, if it hosted the whole model."""

    number: int
    group: Group
    access: Access
    seconds: tuple[tuple[float, float], ...]
    chance: random.Random
    joins: float
    sessions: tuple[Session, ...] = ()
    """When it is there, if its scenario says that."""

    stage: int | None = None
    """Where it asks to host, this time."""

    until: float = math.inf
    """When the session ends that it is in, if its scenario says that."""

    up: bool = False
    slowdown: float = 1.0
    since: float = 0.0

    @property
    def name(self) -> str:
        """Of its first peer."""
        return Identity.from_seed(f"peer {self.number}").peer_id

    def durations(self, manifest: Manifest, stage: int) -> dict[str, float]:
        """Seconds by phase of what its device does at a stage."""
        forward, backward = self.seconds[stage]
        background = state_bytes(manifest, stage) / MEMORY_BYTES_PER_SECOND
        return {FORWARD: forward, BACKWARD: backward, BACKGROUND: background}

    def garbles(self, seed: int) -> Callable[[], bool]:
        """Asked of each tensor that it sends whether that is one which nobody can decode."""
        share, chance = self.group.garbage, random.Random(f"{seed}/garbage {self.number}")
        return lambda: share > 0.0 and chance.random() < share

    @cached_property
    def rate(self) -> float:
        """Microbatches a second of whole models, were it all stages, as fast as it was made."""
        return 1 / sum(forward + backward for forward, backward in self.seconds)


def rate_of(megabits: float) -> float:
    """Bytes a second; 0 is no limit."""
    return megabits * MBIT / 8 if megabits else math.inf


def _seconds(group: Group, manifest: Manifest, chance: random.Random) -> tuple[tuple[float, float], ...]:
    stages = [range(stage, stage + 1) for stage in range(manifest.stages)]
    if group.forward is not None and group.backward is not None:
        return tuple((group.forward, group.backward) for _ in stages)
    assert group.teraflops is not None
    flops = draw(group.teraflops, chance) * 1e12
    return tuple(
        (forward_flops(manifest, stage) / flops, backward_flops(manifest, stage, recompute=False) / flops)
        for stage in stages
    )


def make_machines(scenario: Scenario, manifest: Manifest, seed: int) -> list[Machine]:
    """All machines that ever come, by number."""
    machines: list[Machine] = []
    for group in scenario.peers:
        shared: Access | None = None
        for place in range(group.count):
            chance = random.Random(f"{seed}/machine {len(machines)}")
            seconds = _seconds(group, manifest, chance)
            access = Access(
                Uplink(rate_of(draw(group.up, chance))),
                Downlink(rate_of(draw(group.down, chance))),
                draw(group.latency, chance) / 1000,
                group.jitter / 1000,
                group.region,
                group.loss,
                group.buffer / 1000,
            )
            if group.shared:
                access = shared = shared or access
            joins = draw(group.joins, chance)
            sessions = tuple(session for session in group.sessions if session.machine == place)
            machines.append(Machine(len(machines), group, access, seconds, chance, joins, sessions, group.stage))
    return machines
