"""The chronicle of a run: every event that is kept goes through here, is written to the log and folded into the state.

One for each coordinator. Whoever shows the run reads `state`, and is woken by `changed`. A disk that fails costs the
log, not the run: the chronicle says so once and goes on in memory.
"""

import logging
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
    try:
        log = EventLog(log_folder(run_id, coordinator))
    except StorageError as error:
        logger.warning("events are not written: %s", error)
        log = None
    return Chronicle(log, time.time, then)


def log_folder(run_id: str, coordinator: str) -> Path:
    """Where a coordinator (its public key, hex) keeps the events of a run."""
    return state_folder() / "events" / run_id / coordinator[:16]
