"""Several stages on one machine: each is a member of the run for itself, with an identity and a node of its own, and
all share the process, its devices and its memory. Of several devices the one with the fewest stages gets the next one.

To the swarm they are peers like any others, so that every rule of the protocol holds of them as it stands; the trainer
is told which stages a machine has, and gives it none twice. They are started one after the other: when there is no room
for one more, those that are there go on. A member that is asked to move to another stage is followed by a new one
there; it goes when that one serves, and stays if that one cannot.

Errors: those of the first member, if none could be started; else those of a member once all have ended.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import FittingError, RefusedError, SwarmError
from ..swarm.freed_memory import collect_and_give_back

AS_MANY_AS_FIT = 1 << 16


@dataclass(eq=False)
class Place:
    """One member of this machine. `number` counts from 0, `tell` takes lines for people, `device` is what it computes
    on; `stage` and `replaces` (a member's number) are of one that comes in another's place."""

    number: int
    tell: Callable[[str], None]
    span: "Span"
    device: str
    stage: int | None = None
    replaces: int = 0
    hosts: int | None = None
    """The stage that is loaded."""

    left: bool = False
    """Whether another one has taken its place."""

    serves: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when what it does counts."""

    _loaded: asyncio.Event = field(default_factory=asyncio.Event)

    def besides(self) -> list[int]:
        """The stages of all members of this machine, as they are loaded."""
        return [place.hosts for place in self.span.places if place.hosts is not None]

    def placed(self, stage: int) -> None:
        self.hosts = stage
        self._loaded.set()

    async def loaded(self) -> None:
        """Returns when the member has its stage."""
        await self._loaded.wait()


class Span:
    """The members of one machine with these devices. `host` runs one; `tell` takes lines for people."""

    def __init__(
        self, host: Callable[[Place], Awaitable[str]], tell: Callable[[str], None], devices: Sequence[str]
    ) -> None:
        self._host = host
        self._tell = tell
        self._open = list(devices)
        """Devices that may have room for one more."""

        self._members: dict[Place, asyncio.Task[str]] = {}
        self._moves: set[asyncio.Task[None]] = set()
        self._ended: dict[Place, asyncio.Task[str]] = {}

    @property
    def places(self) -> list[Place]:
        return list(self._members)

    async def run(self, count: int) -> str:
        """Serves `count` stages, or as many as there is room for, until the run ends: the trainer's last word."""
        try:
            number = 0
            while number < count:
                tell = self._tell if count == 1 else _numbered(self._tell, number)
                place = Place(number, tell, self, self._emptiest())
                member = await self._start(place)
                if member.done() and isinstance(member.exception(), FittingError) and len(self._open) > 1:
                    del self._members[place]
                    self._open.remove(place.device)
                    self._tell(f"no {'further ' if number else ''}stage on {place.device}")
                    continue
                if number and member.done() and isinstance(member.exception(), SwarmError):
                    del self._members[place]
                    self._tell(f"no further stage: {_reason(member.exception())}; serving {number}")
                    break
                member.add_done_callback(partial(_say_end, place.tell, self._members))
                if member.done():
                    break
                number += 1
            while self._members:
                await asyncio.wait(self._members.values(), return_when=asyncio.FIRST_COMPLETED)
                for place in [place for place, member in self._members.items() if member.done()]:
                    self._ended[place] = self._members.pop(place)
                if self._members:
                    collect_and_give_back()
                if self._moves and not self._members:
                    await asyncio.wait(self._moves)
        finally:
            ending = [*self._moves, *self._members.values()]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
        ended = sorted(self._ended, key=lambda place: (place.left, place.number))
        last_words = [self._ended[place].result() for place in ended]
        return last_words[0]

    def _emptiest(self) -> str:
        """Of the devices that may have room, the one with the fewest stages."""
        hosting = [place.device for place in self._members]
        return min(self._open, key=hosting.count)

    async def _start(self, place: Place) -> "asyncio.Task[str]":
        """Starts a member: returns when it has its stage, or has ended."""
        member = asyncio.ensure_future(self._host(place))
        self._members[place] = member
        loaded = asyncio.ensure_future(place.loaded())
        try:
            await asyncio.wait((member, loaded), return_when=asyncio.FIRST_COMPLETED)
        finally:
            loaded.cancel()
        return member

    def move(
        self, place: Place, member: int, stage: int, leave: Callable[[str], None], stay: Callable[[], None]
    ) -> None:
        """Has another member host `stage` in place of `member`; `leave` is called when that one serves, `stay` if it
        cannot."""
        number = next(number for number in range(AS_MANY_AS_FIT) if number not in [at.number for at in self.places])
        heir = Place(number, _numbered(self._tell, number), self, place.device, stage, member)
        task = asyncio.ensure_future(self._move(place, heir, leave, stay))
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)

    async def _move(self, place: Place, heir: Place, leave: Callable[[str], None], stay: Callable[[], None]) -> None:
        heir.tell(f"moving to stage {heir.stage}")
        member = await self._start(heir)
        serves = asyncio.ensure_future(heir.serves.wait())
        try:
            await asyncio.wait((member, serves), return_when=asyncio.FIRST_COMPLETED)
        finally:
            serves.cancel()
        if heir.serves.is_set():
            place.left = True
            leave(f"it moves to stage {heir.stage}")
            return
        if member.done() and isinstance(member.exception(), SwarmError):
            self._members.pop(heir, None)
            heir.tell(f"not moving: {_reason(member.exception())}")
        stay()


async def host_stages(
    count: int, host: Callable[[Place], Awaitable[str]], tell: Callable[[str], None], devices: Sequence[str]
) -> str:
    """Serves `count` stages, or as many as there is room for, until the run ends: the trainer's last word."""
    return await Span(host, tell, devices).run(count)


def _say_end(
    tell: Callable[[str], None], members: dict[Place, "asyncio.Task[str]"], member: "asyncio.Task[str]"
) -> None:
    """A member may end long before the others do."""
    others = any(not other.done() for other in members.values())
    if others and not member.cancelled() and isinstance(member.exception(), SwarmError):
        tell(f"stopped: {_reason(member.exception())}")


def _reason(error: BaseException | None) -> str:
    return error.detail if isinstance(error, RefusedError) else str(error)


def _numbered(tell: Callable[[str], None], number: int) -> Callable[[str], None]:
    return lambda line: tell(f"[{number + 1}] {line}")


_PORT = re.compile(r"(/(?:tcp|udp)/)(\d+)")


def nth_address(address: str, number: int) -> str:
    """A multiaddr for the member `number` of a machine: each listens at a port of its own, one after the other from the
    one that is given; port 0 stays."""
    return _PORT.sub(lambda found: found[1] + str(int(found[2]) + number if int(found[2]) else 0), address, count=1)


def nth_key(path: Path, number: int) -> Path:
    """The key file of the member `number`: `peer.key`, `peer-2.key`, ..."""
    return path.with_name(f"{path.stem}-{number + 1}{path.suffix}") if number else path
