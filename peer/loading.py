"""What a person sees while a peer reads its stage's weights: a bar on a terminal, a line now and then elsewhere.

Called from the thread that reads, which `cancel` ends at its next bytes with `StoppedError`.
"""

import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..errors import StoppedError

LINE_SECONDS = 10.0


class Loading:
    """A `model.checkpoint.Progress`. `tell` takes the lines."""

    def __init__(
        self,
        tell: Callable[[str], None],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._console = console or Console()
        self._clock = clock
        self._cancelled = threading.Event()
        self._bar: Progress | None = None
        self._told: float | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._cancelled.is_set():
            self._end()
            raise StoppedError(f"reading the weights was cancelled at {done} of {total} bytes")
        if self._console.is_terminal:
            self._show(done, total)
            return
        now = self._clock()
        if self._told is None:
            self._told = now
        elif now - self._told >= LINE_SECONDS:
            self._told = now
            self._tell(f"weights: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    def cancel(self) -> None:
        self._cancelled.set()
        self._end()

    def _show(self, done: int, total: int) -> None:
        if self._bar is None:
            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            bar = Progress(TextColumn("weights"), *columns, console=self._console, transient=True)
            bar.add_task("weights", total=total)
            bar.start()
            self._bar = bar
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if done >= total:
            self._end()

    def _end(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
