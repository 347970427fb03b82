"""An asyncio event loop on virtual time: sleeping costs nothing, and the same program runs the same way every time.

The loop owns the clock: when nothing is ready, time jumps to the next timer. There is no I/O. A program that waits
with no timer pending can never go on; that raises `StuckError` at once instead of hanging.

What runs in the loop may have an owner (`OWNER`, which tasks and timers inherit). An owner can be frozen, as SIGSTOP
freezes a process: nothing of it runs, and when it thaws all that was due runs at once, in order.
"""

import asyncio
import heapq
import itertools
import selectors
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from ..errors import StuckError

T = TypeVar("T")

OWNER: ContextVar[str] = ContextVar("owner", default="")
"""Whose process this is; the empty name can't be frozen."""


class _Task(asyncio.Task[Any]):
    """A task that sets order by its number: by its address, as tasks are, no two runs would be the same."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], *, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number


class _Handle(asyncio.Handle):
    """A ready callback that is set aside while its owner is frozen."""

    __slots__ = ()

    def _run(self) -> None:
        if not _set_aside(self):
            super()._run()


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        if not _set_aside(self):
            super()._run()


def _set_aside(handle: Any) -> bool:
    loop: VirtualTimeLoop = handle._loop
    if not loop.frozen:
        return False
    parked = loop.frozen.get(handle._context.get(OWNER, ""))
    if parked is None:
        return False
    parked.append(handle)
    return True


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
        self.frozen: dict[str, list[Any]] = {}
        super().__init__(_NoIO(self))
        numbers = itertools.count()
        self.set_task_factory(
            lambda loop, coroutine, **options: _Task(coroutine, number=next(numbers), loop=loop, **options)
        )

    def time(self) -> float:
        return self._now

    def _call_soon(self, callback: Any, args: Any, context: Any) -> Any:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> Any:
        timer = _TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def freeze(self, owner: str) -> None:
        """From now on nothing of `owner` runs."""
        self.frozen.setdefault(owner, [])

    def thaw(self, owner: str) -> None:
        """Whatever was due meanwhile runs next, in the order in which it fell due."""
        for handle in self.frozen.pop(owner, []):
            if not handle.cancelled():
                self._ready.append(handle)  # type: ignore[attr-defined]

    def advance(self, seconds: float) -> None:
        """Moves the clock forward. Raises `StuckError` beyond the limit."""
        if seconds > 0:
            self._now += seconds
        if self._now > self._limit:
            raise StuckError(f"virtual time {self._now:.1f} s is beyond the limit of {self._limit:.1f} s")

    def lift_limit(self) -> None:
        """Lets the tasks that are being cancelled come to their end, whoever is frozen."""
        self._limit = float("inf")
        for owner in list(self.frozen):
            self.thaw(owner)


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
