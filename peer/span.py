"""Several stages on one machine: each is a member of the run for itself, with an identity and a node of its own, and
all share the process, its device and its memory.

To the swarm they are peers like any others, so that every rule of the protocol holds of them as it stands; the trainer
is told which stages a machine has, and gives it none twice. They are started one after the other: when there is no room
for one more, those that are there go on.

Errors: those of the first member, if none could be started; else those of a member once all have ended.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import RefusedError, SwarmError

AS_MANY_AS_FIT = 1 << 16


@dataclass
class Place:
    """One member of this machine. `number` counts from 0; `tell` takes lines for people."""

    number: int
    tell: Callable[[str], None]
    hosted: list[int]
    """The stages of all members of this machine, as they are loaded."""

    _loaded: asyncio.Event = field(default_factory=asyncio.Event)

    def besides(self) -> list[int]:
        return self.hosted

    def placed(self, stage: int) -> None:
        self.hosted.append(stage)
        self._loaded.set()

    async def loaded(self) -> None:
        """Returns when the member has its stage."""
        await self._loaded.wait()


async def host_stages(count: int, host: Callable[[Place], Awaitable[str]], tell: Callable[[str], None]) -> str:
    """Serves `count` stages, or as many as there is room for, until the run ends: the trainer's last word."""
    members: list[asyncio.Task[str]] = []
    hosted: list[int] = []
    try:
        for number in range(count):
            said = tell if count == 1 else _numbered(tell, number)
            place = Place(number, said, hosted)
            member = asyncio.ensure_future(host(place))
            loaded = asyncio.ensure_future(place.loaded())
            members.append(member)
            try:
                await asyncio.wait((member, loaded), return_when=asyncio.FIRST_COMPLETED)
            finally:
                loaded.cancel()
            if number and member.done() and isinstance(member.exception(), SwarmError):
                members.pop()
                tell(f"no further stage: {_reason(member.exception())}; serving {number}")
                break
            member.add_done_callback(partial(_say_end, said, members))
            if member.done():
                break
        last_words = await asyncio.gather(*members, return_exceptions=True)
    finally:
        for member in members:
            member.cancel()
        await asyncio.gather(*members, return_exceptions=True)
    for said_last in last_words:
        if isinstance(said_last, BaseException):
            raise said_last
    return str(last_words[0])


def _say_end(tell: Callable[[str], None], members: list["asyncio.Task[str]"], member: "asyncio.Task[str]") -> None:
    """A member may end long before the others do."""
    others = any(not other.done() for other in members)
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
