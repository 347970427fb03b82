"""What is seen of a peer that runs: a live panel on a terminal, lines elsewhere, JSON for scripts.

A report takes lines (from any thread), how much of the weights is read (from the thread that reads), and the peer's
status, twice a second and whenever it begins to pause. Lines below its level are passed over.

JSON, one object a line, each with `event` and `at` (Unix seconds): `said` (`level`, `text`), `loading` (`done`,
`total` bytes), `status` (the fields of `PeerStatus` in protos/api.proto, whenever something of it has happened, and at
least every 10 s), `counted` (when a peer's first microbatch is credited: `after` seconds from the command, and those of
each of its `phases`), `ended` (`text`).
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..protos import api_pb2 as pb
from ..swarm.apart import Apart, standard_output
from ..swarm.milestones import PHASES
from .panel import Rates, panel

SHOW_SECONDS = 0.5
LOADING_LINE_SECONDS, STATUS_LINE_SECONDS = 10.0, 60.0
LOADING_EVENT_SECONDS, STATUS_EVENT_SECONDS = 1.0, 10.0

Clock = Callable[[], float]


class Report(Protocol):
    """One way to see it. A context manager around the peer's life."""

    def say(self, line: str, level: int = logging.INFO) -> None: ...
    def loading(self, done: int, total: int) -> None: ...
    def show(self, status: pb.PeerStatus) -> None: ...
    def end(self, line: str) -> None:
        """The last word."""

    def __enter__(self) -> "Report": ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Bare:
    """What all reports have."""

    def __init__(self, level: int, clock: Clock, file: TextIO | None = None) -> None:
        self.level = level
        self.clock = clock
        self._file = file
        self._last: dict[str, float] = {}

    def _is_time(self, what: str, seconds: float) -> bool:
        """Whether `seconds` have passed since this last said so of `what`."""
        now = self.clock()
        if now - self._last.get(what, float("-inf")) < seconds:
            return False
        self._last[what] = now
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Lines(_Bare):
    """Lines for people and for logs: what is said, and now and then how it goes."""

    def __init__(self, level: int = logging.INFO, clock: Clock = time.monotonic, file: TextIO | None = None) -> None:
        super().__init__(level, clock, file)
        self._is_time("loading", 0.0)
        self._is_time("status", 0.0)

    def say(self, line: str, level: int = logging.INFO) -> None:
        if level >= self.level:
            print(line, file=self._file, flush=True)

    def loading(self, done: int, total: int) -> None:
        if self._is_time("loading", LOADING_LINE_SECONDS):
            self.say(f"weights: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    def show(self, status: pb.PeerStatus) -> None:
        if status.state == "working" and self._is_time("status", STATUS_LINE_SECONDS):
            loss = f", loss {status.loss:.4f}" if status.HasField("loss") else ""
            self.say(
                f"version {status.version}{loss}, {status.visits} visits, {status.counted} microbatches counted, "
                f"credit {status.credit:.1f}"
            )

    def end(self, line: str) -> None:
        self.say(line)


class JsonLines(_Bare):
    """Events for scripts, as the module says."""

    def __init__(self, level: int = logging.INFO, clock: Clock = time.monotonic, file: TextIO | None = None) -> None:
        super().__init__(level, clock, file)
        self._shown: tuple[object, ...] = ()
        self._counted: dict[str, float] = {}

    def say(self, line: str, level: int = logging.INFO) -> None:
        if level >= self.level:
            self._emit("said", level=logging.getLevelName(level).lower(), text=line)

    def loading(self, done: int, total: int) -> None:
        if done >= total or self._is_time("loading", LOADING_EVENT_SECONDS):
            self._emit("loading", done=done, total=total)

    def show(self, status: pb.PeerStatus) -> None:
        now = (status.state, tuple(status.hosted), status.version, status.counted, status.waits, status.leaving)
        if now != self._shown or self._is_time("status", STATUS_EVENT_SECONDS):
            self._is_time("status", 0.0)
            self._shown = now
            self._emit("status", **status_fields(status))
        if status.counted_after and dict(status.counted_after) != self._counted:
            self._counted = dict(status.counted_after)
            phases = {phase: round(self._counted[phase], 3) for phase in PHASES}
            self._emit("counted", after=round(sum(self._counted.values()), 3), phases=phases)

    def end(self, line: str) -> None:
        self._emit("ended", text=line)

    def _emit(self, event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, "at": round(time.time(), 3), **facts}), file=self._file, flush=True)


class Panel(_Bare):
    """One live panel, below the lines that are said."""

    def __init__(
        self, level: int = logging.INFO, console: Console | None = None, clock: Clock = time.monotonic
    ) -> None:
        super().__init__(level, clock)
        self._console = console or Console()
        self._rates = Rates()
        self._status = pb.PeerStatus(state="finding the run")
        self._loading: tuple[int, int] | None = None
        # Drawn when `show` is called, not by a thread of its own.
        self._live = Live(self._drawn(), console=self._console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, line: str, level: int = logging.INFO) -> None:
        if level >= self.level:
            self._console.print(Text(line, "yellow" if level >= logging.WARNING else ""), soft_wrap=True)

    def loading(self, done: int, total: int) -> None:
        self._loading = (done, total) if done < total else None

    def show(self, status: pb.PeerStatus) -> None:
        self._status = status
        self._rates.see(self.clock(), status)
        self._live.update(self._drawn(), refresh=True)

    def end(self, line: str) -> None:
        self._live.stop()
        self._console.print(Text(line), soft_wrap=True)

    def _drawn(self) -> Any:
        return panel(self._status, self._rates, self._loading)


class Detached:
    """Another report, in a thread of its own (`apart.py`): whatever becomes of the terminal, the peer works on. A
    status that was not shown before the next one of the same state came is not shown."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._apart = Apart()
        self._lock = threading.Lock()
        self._unshown: list[pb.PeerStatus] = []

    def __enter__(self) -> Self:
        self._apart.__enter__()
        self._apart.call(self._report.__enter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._apart.call(partial(self._report.__exit__, None, None, None))
        self._apart.__exit__()

    def say(self, line: str, level: int = logging.INFO) -> None:
        self._apart.call(partial(self._report.say, line, level))

    def loading(self, done: int, total: int) -> None:
        self._apart.call(partial(self._report.loading, done, total))

    def show(self, status: pb.PeerStatus) -> None:
        with self._lock:
            is_newer = bool(self._unshown) and self._unshown[-1].state == status.state
            self._unshown[len(self._unshown) - is_newer :] = [status]
        if not is_newer or not self._apart.waiting:
            self._apart.call(self._show)

    def _show(self) -> None:
        with self._lock:
            unshown, self._unshown = self._unshown, []
        for status in unshown:
            self._report.show(status)

    def end(self, line: str) -> None:
        self._apart.call(partial(self._report.end, line))


def report_of(*, as_json: bool, level: int) -> Report:
    """The one that suits where the output goes."""
    output = standard_output()
    console = Console(file=output)
    if as_json:
        return Detached(JsonLines(level, file=output))
    return Detached(Panel(level, console) if console.is_terminal else Lines(level, file=output))


async def keep_showing(report: Report, status: Callable[[], pb.PeerStatus]) -> None:
    """Shows the status again and again, until it is cancelled."""
    while True:
        report.show(status())
        await asyncio.sleep(SHOW_SECONDS)


def status_fields(status: pb.PeerStatus) -> dict[str, Any]:
    """A `PeerStatus` as plain values, those that are 0 or empty too."""
    found: dict[str, Any] = {}
    for field in status.DESCRIPTOR.fields:
        value = getattr(status, field.name)
        if field.has_presence and not status.HasField(field.name):
            found[field.name] = None
        elif field.name in ("refused", "counted_after"):
            found[field.name] = dict(value)
        else:
            found[field.name] = list(value) if field.name == "hosted" else value
    return found
