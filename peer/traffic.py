"""What this machine has moved over its link, kept on disk by the day and by the run, and the cap that its owner set.

Each process adds what it has moved to one file in the state folder, under a lock, so that several count together and
one that starts again has forgotten nothing. The file is replaced as a whole; the one before it stays beside it, and is
taken where the file itself cannot be read, which is then put aside. Any thread may call.

Errors: `UsageError` for what is no cap; `StorageError` for a file that cannot be written, or that cannot be read and
has none before it: nothing is counted from 0 without its owner's will.
"""

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import StorageError, UsageError
from ..swarm.machine import bytes_text, parse_size
from .hours import Local

KEPT_DAYS, KEPT_RUNS = 400, 1000
_CAP = re.compile(r"([^/]+?)\s*(?:/\s*(day|month))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cap:
    """`bytes` that may be moved in a `period`: `day` or `month` of the calendar whatever the run, or "" for a run."""

    bytes: int
    period: str = ""

    @classmethod
    def parse(cls, text: str) -> "Cap":
        """`50GB`, `2GB/day`, `50GB/month`. Raises `UsageError`."""
        match = _CAP.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"data cap is {text!r}; wanted such as 50GB, 2GB/day or 50GB/month")
        return cls(parse_size(match[1], "data cap"), (match[2] or "").lower())

    def __str__(self) -> str:
        number, unit = bytes_text(self.bytes).split()
        return f"{float(number):g} {unit}" + (f" a {self.period}" if self.period else "")

    def until(self, now: float, local: Local = time.localtime) -> str:
        """When the next period begins, in words; "" if none does."""
        shown = local(now)
        if self.period == "month":
            year, month = (shown.tm_year, shown.tm_mon + 1) if shown.tm_mon < 12 else (shown.tm_year + 1, 1)
            return f"until {year}-{month:02}-01"
        return "until midnight" if self.period else ""


@dataclass
class Counts:
    """Bytes by day (`2026-05-31`) and by run, the one that was added to last at the end."""

    days: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)

    def add(self, count: int, day: str, run: str) -> None:
        self.days[day] = self.days.get(day, 0) + count
        self.runs[run] = self.runs.pop(run, 0) + count
        self.days = dict(sorted(self.days.items())[-KEPT_DAYS:])
        self.runs = dict(list(self.runs.items())[-KEPT_RUNS:])

    def of(self, period: str, day: str, run: str) -> int:
        """What counts for a cap of this period, on this day."""
        if period == "month":
            return sum(count for other, count in self.days.items() if other[:7] == day[:7])
        return self.days.get(day, 0) if period else self.runs.get(run, 0)

    @classmethod
    def parse(cls, text: str) -> "Counts":
        """Raises `ValueError`."""
        found = json.loads(text)
        if not isinstance(found, dict) or set(found) != {"days", "runs"}:
            raise ValueError("it is not an object of days and runs")
        for counts in found.values():
            if not isinstance(counts, dict) or not all(type(count) is int and count >= 0 for count in counts.values()):
                raise ValueError("its days and runs are not counts of bytes")
        return cls(found["days"], found["runs"])


@dataclass
class Traffic:
    """The count of one process in a run; `folder` is made if need be. `now`: Unix seconds; `tell` takes lines for
    people. What could not be written yet counts all the same, and is written with the next."""

    folder: Path
    run: str
    now: Callable[[], float] = time.time
    local: Local = time.localtime
    tell: Callable[[str], None] = field(default=lambda line: None)
    _counts: Counts = field(default_factory=Counts)
    _fresh: Counts = field(default_factory=Counts)
    _busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def path(self) -> Path:
        return self.folder / "traffic.json"

    def add(self, count: int) -> None:
        """Counts bytes of now."""
        with self._busy:
            if count:
                self._fresh.add(count, self._today(), self.run)

    def used(self, cap: Cap) -> int:
        """What counts for a cap now, of all processes as far as they have written it."""
        today = self._today()
        return sum(counts.of(cap.period, today, self.run) for counts in (self._counts, self._fresh))

    def save(self) -> None:
        """Writes what is new, and reads what others have written. Raises `StorageError`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._busy, self._locked():
                counts = self._read()
                if self._fresh.days:
                    for day, count in self._fresh.days.items():
                        counts.add(count, day, self.run)
                    self._write(counts)
                self._counts, self._fresh = counts, Counts()
        except OSError as error:
            raise StorageError(f"what is moved cannot be kept in {self.path}: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self.folder / "traffic.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @property
    def _before(self) -> Path:
        return self.path.with_name("traffic.json.before")

    def _read(self) -> Counts:
        try:
            return Counts.parse(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Counts()
        except ValueError as error:
            damage = error
        try:
            counts = Counts.parse(self._before.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise StorageError(
                f"{self.path} does not say what this machine has moved ({damage}): repair it, or remove it to count "
                "from nothing"
            ) from damage
        names = (f"traffic.json.damaged-{number}" for number in range(1, 1 << 20))
        aside = next(path for name in names if not (path := self.path.with_name(name)).exists())
        shutil.copyfile(self.path, aside)
        self._write(counts, keep=False)
        self.tell(f"{self.path} could not be read ({damage}): counting on from the one before it; kept as {aside.name}")
        return counts

    def _write(self, counts: Counts, *, keep: bool = True) -> None:
        """Replaces the file as a whole; what it was stays beside it."""
        unfinished = self.path.with_name("traffic.json.new")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"days": counts.days, "runs": counts.runs}, file)
            file.flush()
            os.fsync(file.fileno())
        if keep and self.path.exists():
            shutil.copyfile(self.path, self._before)
        unfinished.replace(self.path)

    def _today(self) -> str:
        return time.strftime("%Y-%m-%d", self.local(self.now()))
