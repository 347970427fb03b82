"""The caller's side of a hop: find a peer of the next stage that does the rest of a microbatch, whoever fails on the
way.

Retry is local: a hop that fails is retried here, by the caller that still holds the coded tensor, at another replica;
hints lead past a dead peer to what is done below it. A failure of a stage further down is passed up unchanged, and
superseded, fenced and closed are never retried. An orphaned visit makes no retries.

Errors: `FailedError`, after which the caller's own visit has failed too.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import FailedError, ProtocolError, RefusedError, SilentError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .exchange import Pool
from .neighbours import Neighbours
from .visits import Order

BUSY_PAUSE_SECONDS = 0.05
NO_REPLICA_PAUSE_SECONDS = 0.2
RECONNECT_SECONDS = 1.0
DISTINCT_FAILURES = 2
"""A visit that fails by its own numbers on this many replicas is not tried on a third."""

FINAL = frozenset({"SUPERSEDED", "FENCED", "CLOSED"})
NOT_HERE = frozenset({"NOT_READY", "WRONG_STAGE", "WRONG_RUN", "WRONG_EPOCH", "TRAINER_ALIVE"})
"""Refusals by a peer that does not serve this stage (any more): it is left out until it announces itself anew."""

PASSED_UP = FINAL | {"INPUT_GONE", "GRADIENT_GONE"}


@dataclass
class Hop:
    """Calls peers. `max_payload` bounds what is accepted in return, in bytes."""

    pool: Pool
    neighbours: Neighbours
    max_payload: int
    fenced: Callable[[pb.Term], None] = field(default=lambda term: None)

    async def call(
        self,
        request: pb.Run,
        payload: bytes,
        *,
        order: Callable[[], Order | None],
        hint: Callable[[], Mapping[int, pb.PathEntry]],
        hear: Callable[[Sequence[pb.PathEntry]], None],
        unusable: Collection[str] = (),
    ) -> tuple[pb.Done, bytes]:
        """Has stages `request.first`..`last` done: (Done, its payload).

        `order()` is the caller's own order, None once it is orphaned; `hint()` what it knows of the stages below;
        `hear` is told of every change. `unusable` peers have answered this call before with what could not be used.
        """
        stage = request.first
        tried: dict[str, None] = dict.fromkeys(unusable)
        unfit: dict[str, FailedError | RefusedError] = {}
        attempt = 0
        while True:
            base = order()
            if base is None:
                raise FailedError(stage, "ORPHANED")
            known = hint()
            peer = await self._pick(stage, known, tried)
            if peer is None:
                await self.neighbours.refresh(stage)
                await asyncio.sleep(NO_REPLICA_PAUSE_SECONDS)
                continue
            attempt += 1
            request.ClearField("order")
            request.order.extend((*base, attempt))
            request.ClearField("hint")
            request.hint.extend(known[below] for below in sorted(known) if below > stage)
            tried[peer] = None
            try:
                reply, data = await self._exchange(peer, request, payload, hear)
            except (UnreachableError, WireError):
                self.neighbours.failed(stage, peer)
                continue
            finally:
                attempt = request.order[-1]
            if isinstance(reply, pb.Done):
                return reply, data
            if isinstance(reply, pb.Busy):
                if len(tried) >= self.neighbours.usable(stage):
                    tried = dict.fromkeys(unusable)
                    await self.neighbours.refresh(stage)
                    await asyncio.sleep(max(BUSY_PAUSE_SECONDS, min(reply.retry_after_ms, 1000) / 1000))
                continue
            error = self._judge(stage, peer, reply)
            if error.reason in NOT_HERE:
                self.neighbours.failed(stage, peer)
                continue
            if not isinstance(error, FailedError) or error.reason != "ORPHANED":
                unfit[peer] = error
            if len(unfit) >= min(DISTINCT_FAILURES, max(1, self.neighbours.usable(stage))):
                if isinstance(error, FailedError):
                    raise error
                raise FailedError(stage, error.reason, str(error)) from error

    async def _pick(self, stage: int, known: Mapping[int, pb.PathEntry], tried: Mapping[str, None]) -> str | None:
        hinted = known.get(stage)
        if hinted is not None and hinted.peer not in tried and not self.neighbours.has_failed(stage, hinted.peer):
            await self.neighbours.locate(stage, hinted.peer)
            return hinted.peer
        return await self.neighbours.choose(stage, tried)

    async def _exchange(
        self, peer: str, request: pb.Run, payload: bytes, hear: Callable[[Sequence[pb.PathEntry]], None]
    ) -> tuple[pb.Done | pb.Busy | pb.Refused | pb.Failed, bytes]:
        """One exchange; reconnects once to the same peer, which may be alive though the stream is gone."""
        try:
            return await self._ask(peer, request, payload, hear, fresh=False)
        except SilentError:
            raise
        except UnreachableError:
            request.order[-1] += 1
            try:
                async with asyncio.timeout(RECONNECT_SECONDS) as limit:
                    return await self._ask(peer, request, payload, hear, fresh=True, limit=limit)
            except TimeoutError as error:
                raise UnreachableError(f"{peer} did not take the call within {RECONNECT_SECONDS} s") from error

    async def _ask(
        self,
        peer: str,
        request: pb.Run,
        payload: bytes,
        hear: Callable[[Sequence[pb.PathEntry]], None],
        *,
        fresh: bool,
        limit: asyncio.Timeout | None = None,
    ) -> tuple[pb.Done | pb.Busy | pb.Refused | pb.Failed, bytes]:
        loop = asyncio.get_running_loop()
        async with self.pool.exchange(peer, fresh=fresh) as channel:
            began = loop.time()
            await channel.send(request, payload)
            while True:
                reply, data = await channel.receive(self.max_payload)
                if limit is not None:
                    limit.reschedule(None)
                if isinstance(reply, pb.Progress):
                    hear(reply.changes)
                elif isinstance(reply, pb.Done):
                    self.neighbours.measured(request.first, peer, loop.time() - began)
                    return reply, data
                elif isinstance(reply, pb.Busy | pb.Refused | pb.Failed):
                    return reply, data
                elif not isinstance(reply, pb.Accepted):
                    raise ProtocolError(f"{peer} answered a Run with {reply.DESCRIPTOR.name}")

    def _judge(self, stage: int, peer: str, reply: pb.Refused | pb.Failed) -> FailedError | RefusedError:
        """The error of an unfavourable reply, raised if nobody may retry it here."""
        if isinstance(reply, pb.Failed):
            failed = FailedError(reply.stage, pb.Reason.Name(reply.reason), reply.detail)
            if reply.stage != stage or failed.reason in PASSED_UP:
                raise failed
            return failed
        refused = RefusedError(pb.Reason.Name(reply.reason), reply.detail, peer)
        if reply.HasField("proof"):
            self.fenced(reply.proof)
        if refused.reason in FINAL:
            raise FailedError(stage, refused.reason, refused.detail)
        return refused
