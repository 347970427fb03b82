"""Carries out what befalls the machines, links and coordinators of a scenario, and undoes it when it is over."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from .internet import Access
from .machines import Fleet, Machine
from .scenario import Happening
from .swarm import SimulatedSwarm


@dataclass
class Happenings:
    """`told` hears of each that is carried out, and how many machines it hit."""

    swarm: SimulatedSwarm
    fleet: Fleet
    accesses: dict[str, Access]
    chance: random.Random
    told: Callable[[Happening, int], None]

    def start(self, happenings: Sequence[Happening]) -> None:
        for happening in happenings:
            self.swarm.later(happening.at, partial(self._happen, happening))

    def _happen(self, happening: Happening) -> None:
        if happening.every is not None:
            self.swarm.later(happening.every, partial(self._happen, happening))
        if happening.kind == "stop":
            self._stop(happening)
            return
        hit = self._lost(happening) if happening.kind == "lose" else self._hit(happening)
        self.told(happening, len(hit))
        undo: list[Callable[[], None]] = []
        if happening.kind in ("isolate", "part"):
            undo.append(self._cut(happening, hit))
        for machine in hit if happening.kind not in ("isolate", "part") else ():
            undo += self._strike(happening, machine)
        if happening.seconds is not None:
            for call in undo:
                self.swarm.later(happening.seconds, call)

    def _hit(self, happening: Happening) -> list[Machine]:
        """Those whom it hits, of the machines that are there."""
        there = [
            machine
            for machine in self.fleet.machines
            if machine.up
            and happening.peers in (None, machine.group.name)
            and happening.region in (None, machine.group.region)
        ]
        count = round(happening.share * len(there))
        return sorted(self.chance.sample(there, count), key=lambda machine: machine.number)

    def _lost(self, happening: Happening) -> list[Machine]:
        assert happening.stage is not None
        if not self.swarm.is_led:
            return []
        peers = self.swarm.live_at(happening.stage)
        numbers = {self.fleet.machine_of(peer).number for peer in peers}
        return [self.fleet.machines[number] for number in sorted(numbers)]

    def _strike(self, happening: Happening, machine: Machine) -> list[Callable[[], None]]:
        if happening.kind in ("kill", "lose"):
            self.fleet.kill(machine, happening.seconds)
            return []
        if happening.kind == "leave":
            self.fleet.leave(machine, happening.seconds)
            return []
        if happening.kind == "freeze":
            frozen = self.fleet.peers_of(machine)
            for peer in frozen:
                self.swarm.freeze(peer)
            return [partial(self.swarm.thaw, peer) for peer in frozen]
        if happening.kind == "slow":
            self._slow(machine, 1 / happening.factor)
            return [partial(self._slow, machine, happening.factor)]
        self._degrade(machine.access, happening.factor, happening.latency / 1000)
        return [partial(self._degrade, machine.access, 1 / happening.factor, -happening.latency / 1000)]

    def _slow(self, machine: Machine, times: float) -> None:
        machine.slowdown *= times
        for peer in self.fleet.peers_of(machine):
            self.swarm.devices[peer].slowdown = machine.slowdown
        self.fleet.changed()

    def _degrade(self, access: Access, factor: float, latency: float) -> None:
        access.up.rate *= factor
        access.down.rate *= factor
        access.latency = max(0.0, access.latency + latency)

    def _cut(self, happening: Happening, hit: Sequence[Machine]) -> Callable[[], None]:
        """From everybody, or those of a region from all others."""
        inside = {peer for machine in hit for peer in self.fleet.peers_of(machine)}
        if happening.kind == "part":
            inside |= {name for name, access in self.accesses.items() if access.region == happening.region}
            outside = set(self.accesses) - inside
            pairs = set(product(sorted(inside), sorted(outside)))
        else:
            pairs = {(one, other) for one, other in product(sorted(inside), sorted(self.accesses)) if one != other}
        cut = [pair for pair in sorted(pairs) if not self.swarm.network.is_cut(*pair)]
        for pair in cut:
            self.swarm.network.cut(*pair)

        def heal() -> None:
            for pair in cut:
                self.swarm.network.heal(*pair)

        return heal

    def _stop(self, happening: Happening) -> None:
        """Kills the coordinator that leads; it starts again, and follows if another leads by then."""
        assert happening.seconds is not None
        if not self.swarm.is_led:
            return
        name = self.swarm.trainer.transport.peer_id
        if name in self.swarm.killed:
            return
        self.told(happening, 1)
        self.swarm.kill(name)
        self.swarm.later(happening.seconds, partial(self.swarm.restart, name))
