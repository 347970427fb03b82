"""Reading a stage's weights can be cancelled: in the thread that reads them, at its next bytes, with `StoppedError`."""

import threading
from collections.abc import Callable

from ..errors import StoppedError


class Loading:
    """A `model.checkpoint.Progress`. `show` takes how many bytes are read, and of how many."""

    def __init__(self, show: Callable[[int, int], None]) -> None:
        self._show = show
        self._cancelled = threading.Event()

    def __call__(self, done: int, total: int) -> None:
        if self._cancelled.is_set():
            raise StoppedError(f"reading the weights was cancelled at {done} of {total} bytes")
        self._show(done, total)

    def cancel(self) -> None:
        self._cancelled.set()
