"""An asyncio event loop on virtual time: sleeping costs nothing, and the same program runs the same way every time.

The loop owns the clock: when nothing is ready, time jumps to the next timer. There is no I/O. A program that waits
with no timer pending can never go on; that raises `StuckError` at once instead of hanging.

What runs in the loop may have an owner (`OWNER`, which tasks and timers inherit). An owner can be frozen, as SIGSTOP
freezes a process: nothing of it runs, and when it thaws all that was due runs at once, in order.
"""

import asyncio
import gc
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar, TypeVarTuple, Unpack

from ..errors import StuckError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

COLLECT_EVERY = 3_000_000
"""Allocations between two passes of the garbage collector. Nearly all that a simulation makes dies without it: at the
usual 700 the passes cost 5 % of its time, and of 1,000 peers 12 % even at 300,000."""

OWNER: ContextVar[str] = ContextVar("owner", default="")
"""Whose process this is; the empty name can't be frozen."""

NOBODY = Context()
"""For what belongs to no process (the network, the hand that undoes a fault) and goes on while any is frozen."""


class _Task(asyncio.Task[Any]):
    """A task that sets order by its number: by its address, as tasks are, no two runs would be the same."""

    number = -1

    def __hash__(self) -> int:
        if self.number < 0:
            loop = self.get_loop()
            assert isinstance(loop, VirtualTimeLoop)
            self.number = next(loop.numbers)
        return self.number


class _Handle(list[Any]):
    """A callback that is ready or due: (context, callback, arguments), or nothing once it is cancelled.

    As much of `asyncio.Handle` as the loop's callers use. A list, because a loop makes little else than handles.
    """

    __slots__ = ()
    cancel = list.clear

    def cancelled(self) -> bool:
        return not self


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """A loop whose `time()` moves only when nothing is ready. `limit` bounds virtual time, in seconds."""

    def __init__(self, limit: float = 1e6) -> None:
        super().__init__()
        self._now = 0.0
        self._limit = limit
        self.frozen: dict[str, list[_Handle]] = {}
        self._soon: deque[_Handle] = deque()
        self._due: list[tuple[float, int, _Handle]] = []
        """A heap: by time, and what is due at the same time in the order in which it was asked for."""

        self.ran = 0
        """Callbacks so far."""

        self._is_told_to_stop = False
        self._timers = itertools.count()
        self.numbers = itertools.count()
        self.set_task_factory(lambda loop, coroutine, **options: _Task(coroutine, loop=loop, **options))

    def time(self) -> float:
        return self._now

    def stop(self) -> None:
        self._is_told_to_stop = True
        super().stop()

    def call_soon(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> Any:
        handle = _Handle((copy_context() if context is None else context, callback, args))
        self._soon.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> Any:
        handle = _Handle((copy_context() if context is None else context, callback, args))
        heapq.heappush(self._due, (when, next(self._timers), handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _run_once(self) -> None:
        """Turns of the loop until it is told to stop; `BaseEventLoop.run_forever` asks for one at the least."""
        soon, due, frozen = self._soon, self._due, self.frozen
        ready, pop = heapq.heappop, soon.popleft
        while True:
            if not soon:
                while due and not due[0][2]:
                    ready(due)
                if not due:
                    raise StuckError(f"at virtual time {self._now:.6f} every task waits and no timer is pending")
                self._now = max(self._now, due[0][0])
                if self._now > self._limit:
                    raise StuckError(f"virtual time {self._now:.1f} s is beyond the limit of {self._limit:.1f} s")
            while due and due[0][0] <= self._now:
                soon.append(ready(due)[2])
            self.ran += len(soon)
            for _ in range(len(soon)):
                handle = pop()
                if not handle or (frozen and self._set_aside(handle)):
                    continue
                context, callback, args = handle
                context.run(callback, *args)  # tasks keep their errors; any other callback's ends the run
            if self._is_told_to_stop:
                self._is_told_to_stop = False
                return

    def _set_aside(self, handle: _Handle) -> bool:
        """Whether a callback's owner is frozen: then it waits for the thaw."""
        parked = self.frozen.get(handle[0].get(OWNER, ""))
        if parked is None:
            return False
        parked.append(handle)
        return True

    def freeze(self, owner: str) -> None:
        """From now on nothing of `owner` runs."""
        self.frozen.setdefault(owner, [])

    def thaw(self, owner: str) -> None:
        """Whatever was due meanwhile runs next, in the order in which it fell due."""
        self._soon.extend(self.frozen.pop(owner, []))

    def lift_limit(self) -> None:
        """Lets the tasks that are being cancelled come to their end, whoever is frozen."""
        self._limit = float("inf")
        for owner in list(self.frozen):
            self.thaw(owner)


def run(main: Coroutine[Any, Any, T], *, limit: float = 1e6) -> T:
    """Runs `main` on a fresh virtual-time loop to its end, as `asyncio.run` does on real time."""
    loop = VirtualTimeLoop(limit)
    usual = gc.get_threshold()
    gc.set_threshold(COLLECT_EVERY, *usual[1:])
    try:
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(main)
        finally:
            _cancel_all(loop)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        gc.set_threshold(*usual)


def _cancel_all(loop: VirtualTimeLoop) -> None:
    loop.lift_limit()
    while tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
