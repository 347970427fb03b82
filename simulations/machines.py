"""The machines of a scenario's volunteers: how fast each is, how it is attached, when it comes, goes and comes again.

A machine hosts one peer, and while that moves to another stage, two. What each draws (speed, link, sessions) is a
function of the seed and of its number alone, so that a setting that is changed leaves the volunteers as they were.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from ..swarm.compute import BACKGROUND, BACKWARD, FORWARD
from ..swarm.keys import Identity
from ..swarm.machine import MBIT
from ..swarm.manifest import Manifest
from ..swarm.peer import Peer
from ..swarm.sizes import state_bytes
from ..swarm.work import backward_flops, forward_flops
from .internet import Access, Downlink, Uplink
from .scenario import Group, Lifetime, Scenario, Spread
from .swarm import SimulatedSwarm

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
    up: bool = False
    slowdown: float = 1.0
    since: float = 0.0

    @property
    def name(self) -> str:
        """Of its first peer."""
        return Identity.from_seed(f"peer {self.number}").peer_id

    @property
    def rate(self) -> float:
        return 1 / sum(forward + backward for forward, backward in self.seconds)


@dataclass
class Stay:
    """A peer at a stage, from when it was placed there until it was gone; `worked`: seconds of visits."""

    machine: int
    stage: int
    began: float
    ended: float | None = None
    worked: Callable[[], float] = field(default=lambda: 0.0)


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
        for _ in range(group.count):
            chance = random.Random(f"{seed}/machine {len(machines)}")
            seconds = _seconds(group, manifest, chance)
            access = Access(
                Uplink(rate_of(draw(group.up, chance))),
                Downlink(rate_of(draw(group.down, chance))),
                draw(group.latency, chance) / 1000,
                group.jitter / 1000,
                group.region,
            )
            if group.shared:
                access = shared = shared or access
            joins = draw(group.joins, chance)
            machines.append(Machine(len(machines), group, access, seconds, chance, joins))
    return machines


@dataclass
class Fleet:
    """All machines of a running scenario."""

    swarm: SimulatedSwarm
    machines: list[Machine]
    accesses: dict[str, Access]
    stays: list[Stay] = field(default_factory=list)
    changed: Callable[[], None] = field(default=lambda: None)
    """Called whenever a machine comes, goes, or is as fast as it was no more."""

    def __post_init__(self) -> None:
        self._by_name: Mapping[str, Machine] = {machine.name: machine for machine in self.machines}
        self._here: dict[str, Stay] = {}

    def start(self) -> None:
        """Has every machine come when it is due."""
        for machine in self.machines:
            self.swarm.later(machine.joins, partial(self.come, machine))

    def machine_of(self, peer: str) -> Machine:
        return self._by_name[self.swarm.machines[peer]]

    def peers_of(self, machine: Machine) -> list[str]:
        """The peers that it runs now."""
        swarm = self.swarm
        return [
            name
            for name, first in swarm.machines.items()
            if first == machine.name and name not in swarm.killed and name not in swarm.endings
        ]

    def equip(self, peer: Peer) -> None:
        """A peer takes its machine's device and link before it runs."""
        name = peer.transport.peer_id
        machine = self.machine_of(name)
        self.accesses[name] = machine.access
        device = self.swarm.devices[name]
        device.noise, device.slowdown = machine.group.noise, machine.slowdown

        def placed(stage: int) -> None:
            forward, backward = machine.seconds[stage]
            background = state_bytes(self.swarm.manifest, stage) / MEMORY_BYTES_PER_SECOND
            device.durations = {FORWARD: forward, BACKWARD: backward, BACKGROUND: background}
            self._ended(name)
            before = device.worked
            self._here[name] = Stay(machine.number, stage, self.swarm.now, worked=lambda: device.worked - before)
            self.stays.append(self._here[name])

        device.durations = {FORWARD: 0.0, BACKWARD: 0.0, BACKGROUND: 0.0}
        peer.placed, peer.ended = placed, lambda: self._ended(name)

    def _ended(self, name: str) -> None:
        stay = self._here.pop(name, None)
        if stay is not None:
            stay.ended = self.swarm.now

    # ---- sessions

    def come(self, machine: Machine) -> None:
        """It is switched on: after a while its program asks for a place."""
        if machine.up:
            return
        machine.up, machine.since = True, self.swarm.now
        self.swarm.later(draw(machine.group.loads, machine.chance), partial(self._begin, machine, machine.since))
        if machine.group.stays is not None:
            lasts = draw_lifetime(machine.group.stays, machine.chance)
            self.swarm.later(lasts, partial(self._session_ends, machine, machine.since))

    def _begin(self, machine: Machine, since: float) -> None:
        if not machine.up or machine.since != since:
            return
        if machine.name in self.swarm.killed:
            self.swarm.killed.remove(machine.name)
        self.swarm.start_peer(machine.number, machine.group.stage)
        self.changed()

    def _session_ends(self, machine: Machine, since: float) -> None:
        if not machine.up or machine.since != since:
            return
        away = None if machine.group.away is None else draw_lifetime(machine.group.away, machine.chance)
        if machine.group.leaves:
            self.leave(machine, away)
        else:
            self.kill(machine, away)

    def kill(self, machine: Machine, away: float | None) -> None:
        """It is gone at once; it comes again after `away` seconds, without them never."""
        if not machine.up:
            return
        machine.up = False
        for name in self.peers_of(machine):
            self.swarm.kill(name)
            self._ended(name)
        self.changed()
        self._come_again(machine, away)

    def leave(self, machine: Machine, away: float | None) -> None:
        """Its peers leave politely."""
        if not machine.up:
            return
        machine.up = False
        for name in self.peers_of(machine):
            self.swarm.peers[name].leave("its session is over")
        self.changed()
        self._come_again(machine, away)

    def _come_again(self, machine: Machine, away: float | None) -> None:
        if away is None:
            return

        def again() -> None:
            if self.peers_of(machine):  # who leaves may have to wait for another replica
                self.swarm.later(1.0, again)
            else:
                self.come(machine)

        self.swarm.later(away, again)
