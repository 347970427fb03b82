"""How long some kind of work has taken in all, on whatever threads it runs."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """`seconds`: of wall-clock time, added up over all calls, also those at the same time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def run(self, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return work()
        finally:
            took = time.perf_counter() - began
            with self._lock:
                self.seconds += took
