"""One attempt of a hop: an exchange with one replica about one visit, from Run to the answer that ends it.

It connects again once to the same peer, which may be alive though the stream is gone; tells what it hears of the path;
and keeps the books of the call: the peer's load, and how long it has spent in its own phases (`hedging.PhaseClock`).

Errors: `UnreachableError`, `WireError`. What the answer means is for `hop.py` to say.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ..errors import ProtocolError, SilentError, UnreachableError
from ..protos import swarm_pb2 as pb
from .exchange import Pool
from .hedging import PhaseClock
from .neighbours import Call

RECONNECT_SECONDS = 1.0
"""Until there is a stream again. What is sent on it may take much longer."""

Answer: TypeAlias = pb.Done | pb.Busy | pb.Refused | pb.Failed


@dataclass(eq=False)
class Attempt:
    """`request` is this attempt's own; `again()` is the last entry of its order should it be sent again."""

    pool: Pool
    call: Call
    request: pb.Run
    payload: bytes
    max_payload: int
    hear: Callable[[Sequence[pb.PathEntry]], None]
    again: Callable[[], int]
    is_hedge: bool = False
    clock: PhaseClock = field(default=PhaseClock(None))
    arrived: float | None = None
    """When the callee said first that it has the whole call."""

    way_from: float | None = field(init=False)
    """When the call was on its way; None while it waits for its turn behind others to the same peer."""

    def __post_init__(self) -> None:
        self.way_from = self.call.began

    @property
    def peer(self) -> str:
        return self.call.peer

    async def run(self) -> tuple[Answer, bytes]:
        """The answer that ends the exchange, and its payload."""
        try:
            try:
                return await self._exchange(None)
            except SilentError:
                raise
            except UnreachableError:
                self.request.order[-1] = self.again()
                try:
                    async with asyncio.timeout(RECONNECT_SECONDS) as limit:
                        return await self._exchange(limit)
                except TimeoutError as error:
                    raise UnreachableError(
                        f"{self.peer} could not be reached again within {RECONNECT_SECONDS} s"
                    ) from error
        finally:
            self.call.end()

    async def _exchange(self, limit: asyncio.Timeout | None) -> tuple[Answer, bytes]:
        """One exchange; a second one comes with a `limit` until it has a stream, and takes no kept one."""
        loop = asyncio.get_running_loop()
        async with self.pool.exchange(self.peer, fresh=limit is not None) as channel:
            if limit is not None:
                limit.reschedule(None)
            sent_from = loop.time()
            if self.payload and self.arrived is None:
                self.way_from = None

            def begins() -> None:
                nonlocal sent_from
                sent_from = loop.time()
                if self.arrived is None:
                    self.way_from = sent_from

            reply, data = await channel.ask(self.request, self.payload, self.max_payload, begins=begins)
            while True:
                if isinstance(reply, pb.Accepted | pb.Progress | pb.Busy | pb.Done) and reply.HasField("load"):
                    self.call.told(reply.load)
                if isinstance(reply, pb.Accepted):
                    self.call.accepted(loop.time() - sent_from)
                    if self.arrived is None:
                        self.arrived = loop.time()
                        self.clock = PhaseClock(self.arrived)
                if isinstance(reply, pb.Accepted | pb.Progress):
                    self._follow(reply.changes, loop.time())
                    self.hear(reply.changes)
                elif isinstance(reply, pb.Done):
                    now = loop.time()
                    self.call.succeeded(now, self._taken(now) if self.clock.computed else None)
                    return reply, data
                elif isinstance(reply, pb.Busy | pb.Refused | pb.Failed):
                    return reply, data
                else:
                    raise ProtocolError(f"{self.peer} answered a Run with {reply.DESCRIPTOR.name}")
                reply, data = await channel.receive(self.max_payload)

    @property
    def stands_still(self) -> bool:
        """Whether its callee has it, and does nothing itself: the clock does not run."""
        return self.arrived is not None and self.clock.since is None

    def way(self) -> float:
        """Seconds for its way there."""
        return 0.0 if self.arrived is None or self.way_from is None else self.arrived - self.way_from

    def _taken(self, now: float) -> float:
        """Seconds for its way there and its callee's own phases."""
        return self.clock.own(now) + self.way()

    def _follow(self, changes: Sequence[pb.PathEntry], now: float) -> None:
        for entry in changes:
            if entry.stage == self.request.first:
                self.clock = self.clock.entered(entry.phase, now)
                self.call.entered(entry.phase)
