"""What a program shows it writes on a thread of its own: a stopped terminal, or a pipe that nobody reads, holds up
nothing else of it.

Errors of writing end in silence: nobody is there to be told.
"""

import io
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TextIO, cast

STDOUT = 1
MOST = 100_000
"""Calls that wait; what comes beyond is dropped."""

LAST_SECONDS = 10.0
"""How long the end of a program waits for its last words to be taken."""


class Apart:
    """Runs calls one after the other, in a thread. A context manager; its end waits for what is left, not for ever."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="showing", daemon=True)

    def __enter__(self) -> "Apart":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)
        self._thread.join(LAST_SECONDS)

    @property
    def waiting(self) -> int:
        """The calls that are not begun."""
        return self._calls.qsize()

    def call(self, work: Callable[[], object]) -> None:
        """From any thread; returns at once."""
        if self.waiting < self._most:
            self._calls.put(work)

    def _run(self) -> None:
        while (work := self._calls.get()) is not None:
            with suppress(OSError):
                work()


class _Output(io.TextIOBase):
    """Standard output without a buffer: a thread that is held up in it holds no lock that a program's end needs."""

    def write(self, text: str, /) -> int:
        data = text.encode(errors="replace")
        while data:
            select.select((), (STDOUT,), ())  # another program may have made it one that does not wait
            data = data[os.write(STDOUT, data) :]
        return len(text)

    def fileno(self) -> int:
        return STDOUT

    def isatty(self) -> bool:
        return os.isatty(self.fileno())

    def writable(self) -> bool:
        return True


def standard_output() -> TextIO:
    """Standard output as a thread is to write it that may be held up."""
    return cast(TextIO, _Output())
