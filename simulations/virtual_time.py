"""An asyncio event loop on virtual time: sleeping costs nothing, and the same program runs the same way every time.

The loop owns the clock: when nothing is ready, time jumps to the next timer. There is no I/O. A program that waits
with no timer pending can never go on; that raises `StuckError` at once instead of hanging.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from ..errors import StuckError

T = TypeVar("T")


class _NoIO(selectors.BaseSelector):
    """Stands where the loop looks for I/O: there is none, so waiting means moving the clock."""

    def __init__(self, loop: "VirtualTimeLoop") -> None:
        self._loop = loop
        self._registered: dict[Any, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StuckError(f"at virtual time {self._loop.time():.6f} every task waits and no timer is pending")
        self._loop.advance(timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, -1, events, data)
        self._registered[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._registered.pop(fileobj)

    def get_map(self) -> Any:
        return self._registered

    def close(self) -> None:
        self._registered.clear()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose `time()` moves only while it waits. `limit` bounds virtual time, in seconds."""

    def __init__(self, limit: float = 1e6) -> None:
        self._now = 0.0
        self._limit = limit
        super().__init__(_NoIO(self))

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Moves the clock forward. Raises `StuckError` beyond the limit."""
        if seconds > 0:
            self._now += seconds
        if self._now > self._limit:
            raise StuckError(f"virtual time {self._now:.1f} s is beyond the limit of {self._limit:.1f} s")

    def lift_limit(self) -> None:
        """Lets the tasks that are being cancelled come to their end."""
        self._limit = float("inf")


def run(main: Coroutine[Any, Any, T], *, limit: float = 1e6) -> T:
    """Runs `main` on a fresh virtual-time loop to its end, as `asyncio.run` does on real time."""
    loop = VirtualTimeLoop(limit)
    try:
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(main)
        finally:
            _cancel_all(loop)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _cancel_all(loop: VirtualTimeLoop) -> None:
    loop.lift_limit()
    while tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
