"""Heartbeats for all who watch this peer, as its answers to Watch (`exchange.py`).

One timer serves them all, and what a heartbeat says is put together once for all who need one at the time: a peer of a
large swarm is watched by dozens, each second.
"""

import asyncio
from collections.abc import Callable

from ..protos import swarm_pb2 as pb
from .exchange import HEARTBEAT_SECONDS, Channel
from .messages import pack
from .serving import Incoming
from .transport import Contact

TICKS = 4
"""So often in the time of one heartbeat it is looked who needs one."""


class Heartbeats:
    """Each who watches is sent one, made by `make`, whenever nothing else was sent to it for `seconds()`, give or take
    half a tick."""

    def __init__(
        self, make: Callable[[], pb.Heartbeat], seconds: Callable[[], float] = lambda: HEARTBEAT_SECONDS
    ) -> None:
        self._make = make
        self._seconds = seconds
        self._watching: dict[Channel, Contact] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def serve(self, incoming: Incoming) -> None:
        """Answers a Watch until the caller goes away: then raises `UnreachableError`."""
        await incoming.channel.send(self._make())
        self._watching[incoming.channel] = incoming.channel.contact
        if self._timer is None:
            self._tick_later()
        try:
            await incoming.race(asyncio.Event())
        finally:
            del self._watching[incoming.channel]
            if not self._watching and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _tick_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds() / TICKS, self._tick)

    def _tick(self) -> None:
        self._tick_later()
        said_before = asyncio.get_running_loop().time() - self._seconds() * (1 - 1 / (2 * TICKS))
        quiet = [channel for channel, contact in self._watching.items() if contact.said < said_before]
        if quiet:
            frame = pack(self._make())
            for channel in quiet:
                channel.post(frame)
