"""The hours of a day in which a machine is lent: `22-7`, `22:30-07:00`, several with commas between them.

What the clock on the wall shows is what counts. Where it is put forward or back, hours begin and end by what it shows
then: those that it passes over are not there that day, those that it shows twice count twice. Pure: times are Unix
seconds, and a `Local` says what the clock shows then.

Errors: `UsageError` for what are no hours.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import UsageError

Local = Callable[[float], time.struct_time]
"""What the clock on the wall shows at a Unix time: `time.localtime`, or another zone's."""

DAY = 24 * 60
LOOK_AHEAD = 3 * DAY
"""Minutes. Hours that the clock passes over one day are there the next."""

_HOURS = re.compile(r"(\d{1,2})(?::([0-5]\d))?\s*-\s*(\d{1,2})(?::([0-5]\d))?")
_WANTED = "wanted such as 22-7, 22:30-07:00, or several: 22-7,12-13"


@dataclass(frozen=True, slots=True)
class Hours:
    """`spans`: (first minute of the day, first minute after); one that ends before it begins goes over midnight."""

    spans: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> "Hours":
        """Raises `UsageError`."""
        return cls(tuple(_span(part.strip(), text) for part in text.split(",")))

    def __str__(self) -> str:
        return ", ".join(f"{clock_text(begin)}-{clock_text(end)}" for begin, end in self.spans)

    def cover(self, now: float, local: Local = time.localtime) -> bool:
        """Whether the clock shows one of these hours."""
        return self._have(_minute(now, local))

    def ended(self, now: float, local: Local = time.localtime) -> str:
        """What the clock showed when the last of them was over, `07:00`."""
        minute = _minute(now, local)
        return clock_text(min((end for _, end in self.spans), key=lambda end: (minute - end) % DAY))

    def next_begin(self, now: float, local: Local = time.localtime) -> float:
        """When the next of them begins; `now` if the clock shows one. At most three days ahead.

        Minute by minute, so that a clock that is put forward or back needs no rule of its own.
        """
        if self.cover(now, local):
            return now
        first = int(now // 60) + 1
        return 60.0 * next((at for at in range(first, first + LOOK_AHEAD) if self.cover(60.0 * at, local)), first)

    def _have(self, minute: int) -> bool:
        return any(
            begin <= minute < end if begin < end else minute >= begin or minute < end for begin, end in self.spans
        )


def clock_text(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def clock_at(at: float, local: Local = time.localtime) -> str:
    """What the clock shows then, `22:00`."""
    return clock_text(_minute(at, local))


def _minute(now: float, local: Local) -> int:
    shown = local(now)
    return 60 * shown.tm_hour + shown.tm_min


def _span(part: str, text: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(part)
    if match is None:
        raise UsageError(f"hours are {text!r}; {_WANTED}")
    begin, end = (60 * int(match[hour]) + int(match[hour + 1] or 0) for hour in (1, 3))
    if begin > DAY or end > DAY:
        raise UsageError(f"hours are {text!r}: a day has 00:00 to 24:00; {_WANTED}")
    if begin % DAY == end % DAY and (begin, end) != (0, DAY):
        raise UsageError(f"hours are {text!r}: {part} is no time at all; {_WANTED}; for always leave it out")
    return begin % DAY, end or DAY
