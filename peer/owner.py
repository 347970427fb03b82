"""When this machine takes no part, by its owner's word and for its own good: pure rules.

Each rule takes one look at the machine after the other (`Seen`) and says for how long it has reason to stay away: a
`Pause`, or None. Hours and data caps go by the calendar; they hold at once. A machine that is busy, or short of memory
or disk, must have been so for a while; it comes back when it has been well for a while, by a margin, and after a pause
that follows another closely for twice as long as then: nothing flaps. `pausing.py` looks, and does what they say.

Errors: `UsageError` from the flags.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import UsageError
from ..swarm.machine import Ticks, bytes_text, parse_percent
from .hours import Hours, Local, clock_at
from .traffic import Cap

BUSY_PERCENT = 25.0
"""BOINC's default as well. Two programs that both want all cores get half of them each: at 50 % a peer that keeps all
cores busy would never see that it is in the way."""

WINDOW_SECONDS = 60.0
"""Over which the share of the cores is taken."""
CALM = 0.7
"""Of the share at which a machine is busy: below that it is not any more."""

WELL_SECONDS, MOST_WELL_SECONDS, FORGET_SECONDS = 300.0, 3600.0, 3600.0
"""How long a machine must have been well before it takes part again, at first and at most; and the time since the last
pause after which it is as at first."""

SHORT_LOOKS = 3
"""Looks in a row at which a machine must have been short."""
MEMORY_RESERVE, MEMORY_PART, DISK_RESERVE = 256 << 20, 50, 512 << 20
"""Bytes that are to stay free, of memory at least this part of all there is."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an owner has said. `busy`: of all cores, in percent."""

    hours: Hours | None = None
    busy: float | None = None
    cap: Cap | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the machine. `at`: the loop's seconds, `now`: Unix seconds. Bytes: `room`, memory that this process
    can have with what it has (`held`); `disk`, what can still be written; `moved`, what counts for the data cap."""

    at: float
    now: float
    ticks: Ticks | None = None
    room: int = 1 << 60
    held: int = 0
    disk: int = 1 << 60
    moved: int = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """Why this machine takes no part, as its run is told, and what it waits for; "" if that will not come."""

    why: str
    until: str


class Rule(Protocol):
    def see(self, seen: Seen) -> Pause | None: ...


@dataclass
class Rules:
    """All rules of a machine; each sees every look."""

    rules: Sequence[Rule]

    def see(self, seen: Seen) -> Pause | None:
        """The first reason to stay away; one that is for good comes before the others."""
        pauses = [pause for rule in self.rules if (pause := rule.see(seen)) is not None]
        return min(pauses, key=lambda pause: bool(pause.until), default=None)


def rules_of(wishes: Wishes, memory: int, local: Local = time.localtime) -> Rules:
    """What an owner wishes, and what every machine needs that has so much `memory`."""
    rules: list[Rule] = []
    if wishes.hours is not None:
        rules.append(InHours(wishes.hours, local))
    if wishes.cap is not None:
        rules.append(WithinCap(wishes.cap, local))
    if wishes.busy is not None:
        rules.append(WhileQuiet(wishes.busy / 100))
    return Rules([*rules, WithMemory(max(MEMORY_RESERVE, memory // MEMORY_PART)), WithDisk(DISK_RESERVE)])


def parse_busy(text: str) -> float | None:
    """A share of the cores in percent; None for `false`, as a file of settings may have it, and the default for `true`.
    Raises `UsageError`."""
    if text.lower() in ("true", "false"):
        return BUSY_PERCENT if text.lower() == "true" else None
    percent = parse_percent(text, "share of the cores")
    if not 1 <= percent < 100:
        raise UsageError(f"share of the cores is {text!r}; wanted a percentage from 1% to 99%, such as 25%")
    return percent


# ---- by the calendar


@dataclass
class InHours:
    """Only in these hours."""

    hours: Hours
    local: Local = time.localtime

    def see(self, seen: Seen) -> Pause | None:
        if self.hours.cover(seen.now, self.local):
            return None
        begins = clock_at(self.hours.next_begin(seen.now, self.local), self.local)
        ended = self.hours.ended(seen.now, self.local)
        return Pause(f"it is after {ended}: its owner lends this machine {self.hours}", f"until {begins}")


@dataclass
class WithinCap:
    """Only as long as less than the cap has been moved."""

    cap: Cap
    local: Local = time.localtime

    def see(self, seen: Seen) -> Pause | None:
        if seen.moved < self.cap.bytes:
            return None
        return Pause(f"its data cap of {self.cap} is used up", self.cap.until(seen.now, self.local))


# ---- by how the machine is


@dataclass
class Trouble:
    """Whether a machine is in trouble, by looks that say so or that it is well again; some say neither.

    It ends when every look has said `well` for a while; the while is doubled for a trouble that comes soon after one.
    """

    is_on: bool = False
    _wait: float = 0.0
    _ended: float = float("-inf")
    _well_since: float | None = None

    def see(self, at: float, *, bad: bool, well: bool) -> bool:
        if not self.is_on and bad:
            is_new = at - self._ended > FORGET_SECONDS
            self._wait = WELL_SECONDS if is_new else min(2 * self._wait, MOST_WELL_SECONDS)
            self.is_on, self._well_since = True, None
        elif self.is_on and not well:
            self._well_since = None
        elif self.is_on:
            self._well_since = at if self._well_since is None else self._well_since
            if at - self._well_since >= self._wait:
                self.is_on, self._ended = False, at
        return self.is_on


@dataclass
class WhileQuiet:
    """Only while other processes use no more than `most` (0 to 1) of all cores, over a minute."""

    most: float
    _window: "deque[tuple[float, Ticks]]" = field(default_factory=deque)
    _trouble: Trouble = field(default_factory=Trouble)
    _pause: Pause | None = None

    def see(self, seen: Seen) -> Pause | None:
        share = self._share(seen)
        bad, well = share is not None and share > self.most, share is not None and share <= CALM * self.most
        if not self._trouble.see(seen.at, bad=bad, well=well):
            self._pause = None
        elif self._pause is None and share is not None:
            self._pause = Pause(
                f"this machine is busy with other work: {100 * share:.0f} % of its cores",
                f"until other work has used less than {100 * CALM * self.most:.0f} % of its cores for a while",
            )
        return self._pause

    def _share(self, seen: Seen) -> float | None:
        """What others used of all cores in the last minute; None if nothing is known of so long a time."""
        if seen.ticks is None:
            return None
        self._window.append((seen.at, seen.ticks))
        while len(self._window) > 2 and self._window[1][0] <= seen.at - WINDOW_SECONDS:
            self._window.popleft()
        began, first = self._window[0]
        every = seen.ticks.every - first.every
        if seen.at - began < WINDOW_SECONDS or every <= 0:
            return None
        others = seen.ticks.ran - first.ran - max(0, seen.ticks.own - first.own)
        return min(1.0, max(0.0, others / every))


@dataclass
class Shortage:
    """Fewer than `reserve` bytes free for some looks in a row; over when there are twice as many."""

    reserve: int
    free: int = 0
    _looks: int = 0
    _trouble: Trouble = field(default_factory=Trouble)

    def see(self, at: float, free: int, *, wanted: int = 0) -> bool:
        """`wanted`: what must be free besides."""
        self.free = free
        self._looks = self._looks + 1 if free < self.reserve else 0
        return self._trouble.see(at, bad=self._looks >= SHORT_LOOKS, well=free >= wanted + 2 * self.reserve)


class WithMemory:
    """Only with memory to spare. What this process gives back when it leaves is no reason to come again: there must be
    room for it once more, and then some."""

    def __init__(self, reserve: int) -> None:
        self._shortage = Shortage(reserve)
        self._needs = 0
        self._pause: Pause | None = None

    def see(self, seen: Seen) -> Pause | None:
        free = seen.room - seen.held
        if not self._shortage.see(seen.at, free, wanted=max(0, self._needs - seen.held)):
            self._pause, self._needs = None, seen.held
        elif self._pause is None:
            self._needs = max(self._needs, seen.held)
            self._pause = Pause(
                f"this machine is short of memory: {bytes_text(max(0, free))} left", "until there is memory again"
            )
        return self._pause


class WithDisk:
    """Only with disk to spare."""

    def __init__(self, reserve: int) -> None:
        self._shortage = Shortage(reserve)
        self._pause: Pause | None = None

    def see(self, seen: Seen) -> Pause | None:
        if not self._shortage.see(seen.at, seen.disk):
            self._pause = None
        elif self._pause is None:
            self._pause = Pause(
                f"this machine is short of disk: {bytes_text(max(0, seen.disk))} left",
                f"until {bytes_text(2 * self._shortage.reserve)} of disk are free again",
            )
        return self._pause
