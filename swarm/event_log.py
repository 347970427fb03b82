"""The event stream on disk: append-only, bounded, and read back as it was.

A folder of segments, `000001.events` and so on: after one line that names the format, a stream of msgpack arrays
[sequence, at, kind, fields]. A segment that is full is followed by a new one, which begins with the run's state at that
point in place of an event (kind "state"), and the oldest segments are removed when all together take more than the
limit: what is left can always be replayed. A record that a dying process left unfinished is cut off by whoever opens
the log to go on with it. Nothing in a log is trusted: types are checked, and there is no pickle.

Errors: `StorageError` for what cannot be read or written.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgpack
from pydantic import TypeAdapter, ValidationError

from ..errors import StorageError
from . import events
from .events import Event, Record
from .run_state import RunState, fold

FORMAT = b"swarm-peer events 1\n"
SUFFIX = ".events"
STATE = "state"
SEGMENT_BYTES = 16 << 20
LIMIT_BYTES = 256 << 20
MAX_RECORD_BYTES = 64 << 20
"""No record is larger: the state of the largest run that is shown stays below."""

LOGGED: dict[str, type[Event]] = {
    found.kind: found
    for found in vars(events).values()
    if isinstance(found, type) and issubclass(found, Event) and found not in (Event, events.Visited)
}


@dataclass(frozen=True, slots=True)
class Replay:
    """A log as it is read: the state before its first event, and the events."""

    start: RunState
    records: tuple[Record, ...]

    def state_at(self, sequence: int) -> RunState:
        """The run as it was when event `sequence` had just happened."""
        state = self.start
        for record in self.records:
            if record.sequence > sequence:
                break
            state = fold(state, record)
        return state


class EventLog:
    """A log that is being written. `state` is the fold of all that is in it."""

    def __init__(self, folder: Path, limit: int = LIMIT_BYTES, segment: int = SEGMENT_BYTES) -> None:
        """Goes on with the log in `folder`, or begins one there. Raises `StorageError`."""
        self.folder = folder
        self._limit, self._segment = limit, segment
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = segments(folder)
            if found:
                whole = _whole_bytes(found[-1])
                if whole:
                    os.truncate(found[-1], whole)
                else:
                    found.pop().unlink()
            replay = read_log(folder) if found else Replay(RunState(), ())
            self.state = replay.start
            for record in replay.records:
                self.state = fold(self.state, record)
            self._file = self._create(1, None) if not found else found[-1].open("ab", buffering=0)
        except OSError as error:
            raise StorageError(f"the events of this run cannot be kept in {folder}: {error}") from error

    def append(self, event: Event, at: float) -> Record:
        """Writes one event and folds it into `state`. Raises `StorageError`."""
        record = Record(self.state.sequence + 1, at, event)
        try:
            self._file.write(msgpack.packb([record.sequence, at, event.kind, _fields_of(event)]))
            self.state = fold(self.state, record)
            if self._file.tell() > self._segment:
                self._rotate()
        except OSError as error:
            raise StorageError(f"the events of this run cannot be kept in {self.folder}: {error}") from error
        return record

    def _rotate(self) -> None:
        number = int(segments(self.folder)[-1].stem) + 1
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = self._create(number, self.state)
        kept = segments(self.folder)
        sizes = [path.stat().st_size for path in kept]
        while len(kept) > 1 and sum(sizes) > self._limit:
            kept.pop(0).unlink()
            sizes.pop(0)

    def _create(self, number: int, state: RunState | None) -> Any:
        path = self.folder / f"{number:06}{SUFFIX}"
        file = open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)  # noqa: SIM115
        head = b"" if state is None else msgpack.packb([state.sequence, state.at, STATE, state_fields(state)])
        file.write(FORMAT + head)
        return file

    def close(self) -> None:
        self._file.close()


def segments(folder: Path) -> list[Path]:
    """The segments of a log, the oldest first."""
    return sorted(folder.glob(f"[0-9]*{SUFFIX}"))


def read_log(path: Path) -> Replay:
    """A log, or one segment of it, whole in memory. Raises `StorageError`."""
    paths = segments(path) if path.is_dir() else [path]
    if not paths:
        raise StorageError(f"no events are in {path}: expected a folder with files such as 000001{SUFFIX}, or one file")
    start, records = RunState(), list[Record]()
    for number, part in enumerate(paths):
        for entry in _entries(part):
            sequence, at, kind, content = entry
            if kind == STATE:
                state = _parsed(part, state_of, content)
                if number == 0:
                    start = state
                continue
            event = _parsed(part, lambda given: event_of(*given), (kind, content))
            if sequence != (records[-1].sequence if records else start.sequence) + 1:
                raise StorageError(f"{part} does not go on where the events before it end (event {sequence})")
            records.append(Record(sequence, at, event))
    return Replay(start, tuple(records))


def _entries(path: Path) -> Iterator[tuple[int, float, str, Any]]:
    """The whole records of a segment."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    if not data.startswith(FORMAT):
        raise StorageError(f"{path} is no log of events of this version: it does not begin with {FORMAT!r}")
    for entry, _ in _unpacked(path, data):
        if len(entry) != 4 or not isinstance(entry[0], int) or not isinstance(entry[1], float | int):
            raise StorageError(f"{path} holds what is no event: {str(entry)[:80]}")
        yield entry[0], float(entry[1]), str(entry[2]), entry[3]


def _unpacked(path: Path, data: bytes) -> Iterator[tuple[list[Any], int]]:
    """(entry, bytes up to its end) of all that is whole."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_RECORD_BYTES, strict_map_key=False)
    unpacker.feed(data[len(FORMAT) :])
    while True:
        try:
            entry = unpacker.unpack()
        except msgpack.OutOfData:
            return
        except (ValueError, msgpack.UnpackException, msgpack.BufferFull) as error:
            raise StorageError(f"{path} is damaged at byte {len(FORMAT) + unpacker.tell()}: {error}") from error
        if not isinstance(entry, list):
            raise StorageError(f"{path} holds what is no event: {str(entry)[:80]}")
        yield entry, len(FORMAT) + unpacker.tell()


def _whole_bytes(path: Path) -> int:
    """Up to where a segment is whole; 0 if not even its head is."""
    data = path.read_bytes()
    if not data.startswith(FORMAT):
        return 0
    return max((end for _, end in _unpacked(path, data)), default=len(FORMAT))


def _parsed(path: Path, parse: Callable[[Any], Any], content: Any) -> Any:
    try:
        return parse(content)
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path} holds what is no event of this version: {error}") from error


# ---- events and states as plain data


_ADAPTERS: dict[str, TypeAdapter[Any]] = {kind: TypeAdapter(found) for kind, found in LOGGED.items()}
_STATES = TypeAdapter(RunState)


def _fields_of(event: Event) -> dict[str, Any]:
    return {entry.name: getattr(event, entry.name) for entry in fields(event)}


def event_of(kind: str, content: Any) -> Event:
    """The event with these fields. Raises `KeyError`, `ValidationError`."""
    event: Event = _ADAPTERS[kind].validate_python(content)
    return event


def state_fields(state: RunState) -> dict[str, Any]:
    """A state as plain data: dicts, lists, texts and numbers."""
    bare = asdict(replace(state, notes=()))
    bare["notes"] = [[note.sequence, note.at, note.event.kind, _fields_of(note.event)] for note in state.notes]
    return bare


def state_of(content: Any) -> RunState:
    """The state that `state_fields` made. Raises `KeyError`, `TypeError`, `ValidationError`."""
    notes = tuple(Record(sequence, at, event_of(kind, of)) for sequence, at, kind, of in content["notes"])
    bare = _STATES.validate_python({**content, "notes": ()})
    return replace(bare, notes=notes)
