"""Waiting for a condition over state that many tasks change, and heeding that one was told to end."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Signal:
    """Whoever changes the state calls `notify`; whoever needs a condition awaits `wait_for`."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Event] = []

    def notify(self) -> None:
        for waiter in self._waiters:
            waiter.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition()` is true; it is asked again after every `notify`."""
        waiter = asyncio.Event()
        self._waiters.append(waiter)
        try:
            while not condition():
                waiter.clear()
                await waiter.wait()
        finally:
            self._waiters.remove(waiter)


def innermost(problems: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that ended a task group, for a caller who expects a typed one."""
    first = problems.exceptions[0]
    return innermost(first) if isinstance(first, BaseExceptionGroup) else first


def heed_cancellation() -> None:
    """Raises `CancelledError` if the running task has been cancelled, for loops that go on after an error.

    Before Python 3.13 a `TaskGroup` that is cancelled while a task of its own fails raises only the latter's error.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def in_own_task(work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to, run as a task, for loops that go on after its errors and heed cancellation.

    Before Python 3.13 a `TaskGroup` of which a task fails while its owner waits for the others to end leaves its owner
    for good as if it had been cancelled.
    """
    return await asyncio.create_task(work)
