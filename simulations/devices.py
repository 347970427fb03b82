"""Simulated devices: work that takes a duration of virtual time and then happens at once; and in real processes, a
device of fixed pace."""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ..swarm.compute import BACKGROUND, BACKWARD, FORWARD, ThreadDevice

T = TypeVar("T")

DURATIONS: Mapping[str, float] = {FORWARD: 0.05, BACKWARD: 0.1, BACKGROUND: 0.01}


@dataclass
class SimulatedDevice:
    """Implements `swarm.compute.Device`. `durations`: seconds by phase; each is drawn within +-`noise` of it and takes
    `slowdown` times as long. `hang` lets visits never end (heartbeats go on), `resume` lets them end after all."""

    draw: random.Random
    durations: Mapping[str, float] = field(default_factory=lambda: dict(DURATIONS))
    noise: float = 0.2
    slowdown: float = 1.0
    worked: float = 0.0
    """Seconds of visits so far."""

    def __post_init__(self) -> None:
        self._going = asyncio.Event()
        self._going.set()

    async def run(self, phase: str, work: Callable[[], T]) -> T:
        seconds = self.durations[phase] * self.draw.uniform(1 - self.noise, 1 + self.noise) * self.slowdown
        await asyncio.sleep(seconds)
        if phase != BACKGROUND:
            await self._going.wait()
            self.worked += seconds
        return work()

    @property
    def going(self) -> bool:
        """Whether visits end."""
        return self._going.is_set()

    def hang(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def close(self) -> None:
        """Nothing runs outside the loop."""


class TimedDevice(ThreadDevice):
    """A device of real processes that is as fast as it is told, whatever the work takes on this machine, unless that
    is longer: `forward` and `backward` are seconds of a visit."""

    def __init__(self, forward: float, backward: float) -> None:
        super().__init__()
        self._seconds = {FORWARD: forward, BACKWARD: backward}

    async def run(self, phase: str, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._seconds.get(phase, 0.0)
        result = await super().run(phase, work)
        await asyncio.sleep(ends - loop.time())
        return result
