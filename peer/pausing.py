"""Lends this machine as its rules have it (`owner.py`): takes part, leaves politely when they say so, comes again.

`Looking` looks at the machine every few seconds on the loop's clock; `lend` joins, pauses and joins again by what the
rules make of it, until the run ends or the owner ends it (`control.py`), while it pauses too. One process, one look
after the other; what takes time happens in a thread.

Errors: those of taking part; `StorageError` if at the start nothing can be known of what was moved.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import StorageError
from ..swarm.freed_memory import collect_and_give_back
from .control import Control
from .owner import Pause, Rules, Seen
from .probe import free_disk, free_memory, held_memory, ticks
from .traffic import Cap, Traffic

LOOK_SECONDS = 5.0
SAVE_SECONDS = 30.0
"""How often what was moved is written down, at the least."""

LEFT = "left the run"
"""How the last word of every polite leave begins, whoever says it."""

Look = Callable[[], Awaitable[Seen]]


@dataclass
class Looking:
    """Looks at this machine. `moved`: bytes that this process has moved so far; `folders`: where it writes."""

    moved: Callable[[], int]
    folders: Sequence[Path]
    now: Callable[[], float]
    cap: Cap | None = None
    traffic: Traffic | None = None
    tell: Callable[[str], None] = field(default=lambda line: None)
    _counted: int = 0
    _saved: float = float("-inf")
    _trouble: str = ""

    async def __call__(self) -> Seen:
        """Raises `StorageError` if it cannot read, the first time, what was moved before."""
        at = asyncio.get_running_loop().time()
        self._count()
        if self.traffic is not None and at - self._saved >= SAVE_SECONDS:
            await self._save(self.traffic, is_first=self._saved == float("-inf"))
            self._saved = at
        return await asyncio.to_thread(self._look, at)

    async def _save(self, traffic: Traffic, *, is_first: bool) -> None:
        try:
            await asyncio.to_thread(traffic.save)
            self._trouble = ""
        except StorageError as error:
            if is_first:
                raise
            if str(error) != self._trouble:
                self._trouble = str(error)
                self.tell(f"{error} (it is counted all the same, and written when that can be done)")

    def _count(self) -> None:
        if self.traffic is not None:
            moved = self.moved()
            self.traffic.add(moved - self._counted)
            self._counted = moved

    def _look(self, at: float) -> Seen:
        used = self.traffic.used(self.cap) if self.traffic is not None and self.cap is not None else 0
        disk = min(free_disk(folder) for folder in self.folders)
        return Seen(at, self.now(), ticks(), free_memory(), held_memory(), disk, used)

    def close(self) -> None:
        """Writes down the rest of what was moved."""
        self._count()
        if self.traffic is not None:
            try:
                self.traffic.save()
            except StorageError as error:
                self.tell(str(error))


@dataclass
class Lender:
    """Joins, pauses and joins again. `tell` takes lines for people; `show` is called as it pauses, however
    short that is."""

    rules: Rules
    look: Look
    control: Control
    tell: Callable[[str], None]
    show: Callable[[], None]
    _pause: Pause | None = None
    _takes_part: bool = False
    _seen: asyncio.Event = field(default_factory=asyncio.Event)

    async def lend(self, take_part: Callable[[], Awaitable[str]]) -> str:
        """Takes part, again and again, until the run is over or the owner ends it: the last word."""
        await self._see()
        watching = asyncio.ensure_future(self._watch())
        try:
            while True:
                if last_word := await self._until_it_may(watching):
                    return last_word
                self._takes_part = True
                last_word = await _first(asyncio.ensure_future(take_part()), watching)
                self._takes_part = False
                is_for_good = self._pause is not None and not self._pause.until
                left_for_now = self.control.sent_home and not self.control.why and last_word.startswith(LEFT)
                if is_for_good or not left_for_now:
                    self.control.end()
                    return last_word
                self.control.rest()
                collect_and_give_back()
        finally:
            watching.cancel()
            await asyncio.wait((watching,))

    async def _until_it_may(self, watching: "asyncio.Task[None]") -> str:
        """Returns "" when this machine may take part; else the last word."""
        said: Pause | None = None
        while (pause := self._pause) is not None:
            if not pause.until:
                return f"not taking part: {pause.why}"
            if said is None or said.until != pause.until:
                self.tell(f"pausing {pause.until}: {pause.why}")
            said = self.control.waits = pause
            self.show()
            self._seen.clear()
            await _first(asyncio.ensure_future(_any(self._seen, self.control.asked)), watching)
            if self.control.why:
                return f"ended while it was pausing: {self.control.why}"
        if said is not None:
            self.tell("taking part again")
        self.control.waits = None
        return ""

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._see()

    async def _see(self) -> None:
        self._pause = self.rules.see(await self.look())
        self._seen.set()
        if self._pause is not None and self._takes_part and self.control.send_home(self._pause.why):
            self.tell(f"leaving: {self._pause.why}")


async def _first(work: "asyncio.Task[str]", watching: "asyncio.Task[None]") -> str:
    """What `work` comes to, unless the watching fails."""
    try:
        await asyncio.wait((work, watching), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            watching.result()
        return await work
    finally:
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))


async def _any(*events: asyncio.Event) -> str:
    """Returns once one of them is set."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    return ""
