"""A run that is past, at any moment of it: states are folded again from the nearest one that is kept.

Errors: `StorageError` for a log that cannot be read, `UsageError` for a folder that holds none or several.
"""

from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..event_log import SUFFIX, read_log, segments
from ..run_state import NOTED, RunState, fold
from ..run_view import in_words, view

KEPT_STATES = 64
MAX_MARKS, MAX_STOPS = 1000, 500


def find_log(path: Path) -> Path:
    """The log that is meant: a file of it, its folder, or a folder above that holds one only."""
    if path.is_file() or segments(path):
        return path
    found = sorted({file.parent for file in path.rglob(f"*{SUFFIX}")}) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"no events are in {path}: expected a file such as 000001{SUFFIX}, or a folder that holds one")
    listed = "\n".join(f"  {folder}" for folder in found[:20])
    raise UsageError(f"{path} holds the events of {len(found)} coordinators; name one:\n{listed}")


class Replaying:
    """A log, whole in memory, with the states of some moments of it."""

    def __init__(self, path: Path) -> None:
        replay = read_log(find_log(path))
        self._records = replay.records
        self.first = replay.start.sequence
        self._every = max(1, -(-len(self._records) // KEPT_STATES))
        self._states: list[RunState] = [replay.start]
        state = replay.start
        for number, record in enumerate(self._records, 1):
            state = fold(state, record)
            if number % self._every == 0:
                self._states.append(state)
        self.last = self.first + len(self._records)
        self._ended = state

    def state_at(self, sequence: int) -> RunState:
        """The run when event `sequence` had just happened; what lies outside is the nearest end."""
        number = min(max(sequence - self.first, 0), len(self._records))
        state = self._states[number // self._every]
        for record in self._records[number // self._every * self._every : number]:
            state = fold(state, record)
        return state

    def document_at(self, sequence: int) -> dict[str, Any]:
        return {**view(self.state_at(sequence)), "live": False}

    def about(self) -> dict[str, Any]:
        """What a slider needs: marks [sequence, time], and the events that people would jump to, in words."""
        step = max(1, -(-len(self._records) // MAX_MARKS))
        marks = [[record.sequence, record.at] for record in self._records[::step]]
        if self._records:
            marks.append([self._records[-1].sequence, self._records[-1].at])
        noted = [record for record in self._records if isinstance(record.event, NOTED)]
        stops = [[record.sequence, record.at, in_words(self._ended, record.event)] for record in noted[:MAX_STOPS]]
        return {"first": self.first, "last": self.last, "marks": marks, "stops": stops}
