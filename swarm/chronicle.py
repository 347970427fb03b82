"""The chronicle of a run: every event that is kept goes through here, is written to the log and folded into the state.

One for each coordinator. Whoever shows the run reads `state`, and is woken by `changed`. A disk that fails costs the
log, not the run: the chronicle says so once and goes on in memory.
"""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import StorageError
from .conditions import Signal
from .event_log import LOGGED, EventLog
from .events import Event, Record
from .keys import state_folder
from .run_state import RunState, fold

logger = logging.getLogger(__name__)

ALL_LOGS_BYTES = 1 << 30
QUIET_SECONDS = 3600.0
"""A log that was written to since may be that of a run that goes on."""


class Chronicle:
    """`clock()`: seconds since 1970, or of a simulation; `then` gets every event afterwards, the finest too."""

    def __init__(self, log: EventLog | None, clock: Callable[[], float], then: Callable[[Event], None]) -> None:
        self.log = log
        self.state = RunState() if log is None else log.state
        self.changed = Signal()
        self._clock = clock
        self._then = then

    def emit(self, event: Event) -> None:
        """Takes in one event."""
        if event.kind in LOGGED:
            self._keep(event)
            self.changed.notify()
        self._then(event)

    def _keep(self, event: Event) -> None:
        # The clock of a machine may be set back; the story goes on.
        at = max(self._clock(), self.state.at)
        if self.log is not None:
            try:
                self.log.append(event, at)
                self.state = self.log.state
                return
            except StorageError as error:
                logger.warning("events are no longer written: %s", error)
                self.log.close()
                self.log = None
        self.state = fold(self.state, Record(self.state.sequence + 1, at, event))

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def open_chronicle(run_id: str, coordinator: str, then: Callable[[Event], None]) -> Chronicle:
    """The chronicle of a coordinator, by the calendar, which goes on where it ended before."""
    folder = log_folder(run_id, coordinator)
    try:
        prune(folder.parent.parent)
        log = EventLog(folder)
    except StorageError as error:
        logger.warning("events are not written: %s", error)
        log = None
    return Chronicle(log, time.time, then)


def prune(home: Path, limit: int = ALL_LOGS_BYTES) -> None:
    """Removes the logs of the runs that have been quiet longest until all together take no more than `limit` bytes. One
    that was written to within the last hour stays."""
    runs = []
    for folder in home.iterdir() if home.is_dir() else ():
        files = [path.stat() for path in folder.rglob("*") if path.is_file()]
        runs.append((max((file.st_mtime for file in files), default=0.0), sum(file.st_size for file in files), folder))
    total = sum(size for _, size, _ in runs)
    for written, size, folder in sorted(runs):
        if total <= limit or written > time.time() - QUIET_SECONDS:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= size


def log_folder(run_id: str, coordinator: str) -> Path:
    """Where a coordinator (its public key, hex) keeps the events of a run."""
    return state_folder() / "events" / run_id / coordinator[:16]
