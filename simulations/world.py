"""What a scenario acts on: the machines of a swarm, simulated (`simulated_world.py`) or real processes
(`emulated_world.py`)."""

from collections.abc import Callable, Sequence
from typing import Protocol

from .machines import Machine

Undo = Callable[[], None]


START_SECONDS = 1.2
"""From the start of a process until it asks for a place, as was seen of emulated ones: libp2p's daemon, and the first
questions to the directory."""


class World(Protocol):
    starting: float
    """`START_SECONDS`, where programs do not take them by themselves."""

    @property
    def now(self) -> float:
        """Seconds since the scenario began."""
        ...

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls after `seconds`, whatever befalls anybody until then."""
        ...

    def start(self, machine: Machine) -> None:
        """Its program asks for a place."""
        ...

    def kill(self, machine: Machine) -> None:
        """All that it runs is gone at once; who is connected sees it."""
        ...

    def switch_off(self, machine: Machine) -> None:
        """All that it runs is gone at once, and nobody is told."""
        ...

    def leave(self, machine: Machine) -> None:
        """All that it runs leaves politely."""
        ...

    def runs(self, machine: Machine) -> bool:
        """Whether it runs any peer."""
        ...

    def freeze(self, machine: Machine) -> Undo: ...

    def set_pace(self, machine: Machine) -> None:
        """Its device is as fast as `machine.slowdown` says from now on."""
        ...

    def hosts(self, stage: int) -> Sequence[Machine]:
        """By number, those that the trainer believes to host a stage."""
        ...

    def isolate(self, machines: Sequence[Machine]) -> Undo:
        """No way to anybody from any of them."""
        ...

    def part(self, region: str) -> Undo:
        """No way from a region to the rest."""
        ...

    def stop_coordinator(self) -> Undo | None:
        """Kills the one that leads, if any does; the answer starts it again."""
        ...
