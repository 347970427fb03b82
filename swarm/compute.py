"""Who computes next: one forward or backward at a time, backward before forward, older step before newer.

`Device` is the seam to the hardware: threads here, virtual durations in a simulation. `ComputeQueue` orders the visits
in front of it. Work that closes a step (sums, updates) runs beside the visits, in the background.
"""

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")

FORWARD = "forward"
BACKWARD = "backward"
BACKGROUND = "background"


class Device(Protocol):
    """Runs synchronous work off the event loop. `phase` is `forward`, `backward` or `background`."""

    async def run(self, phase: str, work: Callable[[], T]) -> T: ...

    def close(self) -> None: ...


class ThreadDevice:
    """Two threads: one for visits, one for closing steps. Torch releases the interpreter lock while it computes."""

    def __init__(self) -> None:
        self._visits = ThreadPoolExecutor(1, "visits")
        self._background = ThreadPoolExecutor(1, "background")

    async def run(self, phase: str, work: Callable[[], T]) -> T:
        pool = self._background if phase == BACKGROUND else self._visits
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def on_both(self, work: Callable[[], None]) -> None:
        """Runs `work` on each of its threads, when they have done what they are at; returns at once."""
        self._visits.submit(work)
        self._background.submit(work)

    def close(self, wait: bool = True) -> None:
        """Waits for what is running, unless that would be for ever; drops what is queued."""
        self._visits.shutdown(wait, cancel_futures=True)
        self._background.shutdown(wait, cancel_futures=True)


class ComputeQueue:
    """Orders the visits of one stage in front of a device. `measured(phase, seconds)` hears of every one."""

    def __init__(self, device: Device, measured: Callable[[str, float], None] = lambda phase, seconds: None) -> None:
        self._device = device
        self._measured = measured
        self._busy = False
        self.began: float | None = None
        """When what the device is at began, by the loop's clock; None if it is at nothing."""

        self._arrivals = 0
        self._waiting: list[tuple[bool, int, int, int, asyncio.Future[None]]] = []

    @property
    def busy(self) -> bool:
        """Whether who comes now has to wait."""
        return self._busy

    @property
    def waiting(self) -> int:
        """Visits whose turn has not come."""
        return sum(not turn.done() for *_, turn in self._waiting)

    async def run(self, phase: str, step: int, index: int, work: Callable[[], T], begins: Callable[[], None]) -> T:
        """Runs `work` when its turn comes; `begins` is called just before."""
        if self._busy:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._arrivals += 1
            heapq.heappush(self._waiting, (phase != BACKWARD, step, index, self._arrivals, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
                raise
        self._busy = True
        try:
            begins()
            began = self.began = asyncio.get_running_loop().time()
            result = await self._device.run(phase, work)
            self._measured(phase, asyncio.get_running_loop().time() - began)
            return result
        finally:
            self.began = None
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[-1]
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False
