"""A deadline that is put off all the time, at no cost: it is looked at only when it would have been over."""

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls `passed` once `ends()`, by the loop's clock, is over.

    With `careful` it looks once more a turn of the loop later: after a stall of this process, or of its machine, what
    has come meanwhile and would put it off is yet to be read.
    """

    __slots__ = ("_careful", "_ends", "_looks", "_passed", "_when")

    def __init__(self, ends: Callable[[], float], passed: Callable[[], object], *, careful: bool = False) -> None:
        self._ends = ends
        self._passed = passed
        self._careful = careful
        self._looks: asyncio.Handle | None = None
        self._when = 0.0

    def arm(self) -> None:
        """From now on it holds; also to be called when it ends earlier than before."""
        ends = self._ends()
        if self._looks is None or ends < self._when:
            self.cancel()
            self._when = ends
            self._looks = asyncio.get_running_loop().call_at(ends, self._look)

    def cancel(self) -> None:
        """It does not hold any more, until it is armed again."""
        if self._looks is not None:
            self._looks.cancel()
            self._looks = None

    def _look(self, again: bool = False) -> None:
        self._looks = None
        loop = asyncio.get_running_loop()
        if loop.time() < self._ends():
            self.arm()
        elif again or not self._careful:
            self._passed()
        else:
            self._when = loop.time()
            self._looks = loop.call_soon(self._look, True)
