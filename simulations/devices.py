"""Simulated devices: work that takes a duration of virtual time and then happens at once."""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ..swarm.compute import BACKGROUND, BACKWARD, FORWARD

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

    def __post_init__(self) -> None:
        self._going = asyncio.Event()
        self._going.set()

    async def run(self, phase: str, work: Callable[[], T]) -> T:
        await asyncio.sleep(self.durations[phase] * self.draw.uniform(1 - self.noise, 1 + self.noise) * self.slowdown)
        if phase != BACKGROUND:
            await self._going.wait()
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
