"""Carries out what befalls the machines, links and coordinators of a scenario, and undoes it when it is over."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from .fleet import Fleet
from .links import Access
from .machines import Machine, draw
from .scenario import Happening
from .world import Undo


@dataclass
class Happenings:
    """`told` hears of each that is carried out, and how many machines it hit."""

    fleet: Fleet
    chance: random.Random
    told: Callable[[Happening, int], None]

    def start(self, happenings: Sequence[Happening]) -> None:
        for happening in happenings:
            self.fleet.world.later(happening.at, partial(self._happen, happening))

    def _happen(self, happening: Happening) -> None:
        world = self.fleet.world
        if happening.every is not None:
            world.later(draw(happening.every, self.chance), partial(self._happen, happening))
        seconds = None if happening.seconds is None else draw(happening.seconds, self.chance)
        if happening.kind == "stop":
            again = world.stop_coordinator()
            undo = [] if again is None else [again]
            hit = len(undo)
            if not hit:
                return
        else:
            machines = self._hit(happening)
            hit, undo = len(machines), self._strike(happening, machines, seconds)
        self.told(happening, hit)
        if seconds is not None:
            for call in undo:
                world.later(seconds, call)

    def _hit(self, happening: Happening) -> list[Machine]:
        """Those whom it hits, of the machines that are there."""
        if happening.kind == "lose":
            assert happening.stage is not None
            return list(self.fleet.world.hosts(happening.stage))
        there = [
            machine
            for machine in self.fleet.machines
            if machine.up
            and happening.peers in (None, machine.group.name)
            and happening.region in (None, machine.group.region)
        ]
        count = round(happening.share * len(there))
        return sorted(self.chance.sample(there, count), key=lambda machine: machine.number)

    def _strike(self, happening: Happening, machines: Sequence[Machine], seconds: float | None) -> list[Undo]:
        """Does it; what undoes it after `seconds`, unless machines that are gone come again by themselves."""
        world = self.fleet.world
        if happening.kind == "isolate":
            return [world.isolate(machines)]
        if happening.kind == "part":
            assert happening.region is not None
            return [world.part(happening.region)]
        return [undo for machine in machines for undo in self._strike_one(happening, machine, seconds)]

    def _strike_one(self, happening: Happening, machine: Machine, seconds: float | None) -> list[Undo]:
        if happening.kind in ("kill", "lose"):
            self.fleet.kill(machine, seconds)
            return []
        if happening.kind == "off":
            self.fleet.switch_off(machine, seconds)
            return []
        if happening.kind == "leave":
            self.fleet.leave(machine, seconds)
            return []
        if happening.kind == "freeze":
            return [self.fleet.world.freeze(machine)]
        if happening.kind == "slow":
            self.fleet.set_slowdown(machine, 1 / happening.factor)
            return [partial(self.fleet.set_slowdown, machine, happening.factor)]
        degrade(machine.access, happening.factor, happening.latency / 1000)
        return [partial(degrade, machine.access, 1 / happening.factor, -happening.latency / 1000)]


def degrade(access: Access, factor: float, latency: float) -> None:
    """Rates are `factor` times as high as before, the way takes `latency` seconds more."""
    access.up.change(factor)
    access.down.change(factor)
    access.latency = max(0.0, access.latency + latency)
