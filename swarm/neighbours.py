"""What a caller knows of the replicas of the stages that it calls: the last good reading, and its own experience.

Reads come from the directory (peers) or from the roster (trainer); when one fails the last snapshot stands. What is
known and who may be chosen is the pure `routing.py`; whom to choose is one of `POLICIES`, named by the manifest.

Of a large stage a peer goes by some replicas only, drawn by lot: connections and their heartbeats would grow with the
square of the swarm otherwise. The least loaded of a few is nearly as good as that of all (Mitzenmacher 2001, "The power
of two choices in randomized load balancing").
"""

import asyncio
import heapq
import random
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from ..errors import UnreachableError
from ..protos import swarm_pb2 as pb
from . import loads, routing
from .directory import Record
from .exchange import Pool
from .least_work import Forecast, forecasts, least_work
from .round_robin import round_robin
from .routing import PLACES, Place, Policy, Wiring

VIEW = 8
"""Replicas of a stage by which a peer goes, if there are so many that are not banned. The trainer goes by all."""

REFRESH_SECONDS = 0.25
"""The directory is not read more often than this, a stage."""

POLICIES: dict[str, Policy] = {"least-work": least_work, "round-robin": round_robin}

BELOW_SMOOTHING = 0.2
"""Weight of the newest expectation of the next stage, as this peer tells its own callers."""

ReadStage = Callable[[int], Awaitable[tuple[Record, ...]]]


@dataclass(eq=False)
class Call:
    """One open call of ours, from its sending to its end; every change of it changes what is known of the peer."""

    neighbours: "Neighbours"
    stage: int
    peer: str
    began: float
    expected: float
    place: Place | None = Place.SENT

    def accepted(self, seconds: float) -> None:
        """The callee has taken the call, `seconds` after it was sent."""
        self.neighbours.change(self.stage, lambda wiring: routing.accepted(wiring, self.peer, seconds))
        self._move(Place.AHEAD)

    def entered(self, phase: pb.Phase) -> None:
        """The callee says that it has entered a phase."""
        self._move(PLACES.get(phase))

    def told(self, load: pb.Load) -> None:
        self.neighbours.told(self.stage, self.peer, load)

    def succeeded(self, now: float, own_seconds: float | None) -> None:
        """Done came; `own_seconds`: what the callee took for its own phases, None if it had done them before."""
        self.neighbours.change(self.stage, lambda wiring: routing.succeeded(wiring, self.peer, now - self.began))
        if own_seconds is not None:
            self.neighbours.change(
                self.stage, lambda wiring: routing.compared(wiring, self.peer, own_seconds, self.expected)
            )

    def failed(self, now: float) -> None:
        self.neighbours.pool.forget(self.peer)
        self.neighbours.change(self.stage, lambda wiring: routing.failed(wiring, self.peer, self.began, now))

    def overtaken(self, now: float) -> None:
        """Its hedge was done first."""
        self.neighbours.change(self.stage, lambda wiring: routing.overtaken(wiring, self.peer, self.began, now))

    def end(self) -> None:
        """The exchange is over, however it ended."""
        self._move(None)

    def _move(self, place: Place | None) -> None:
        before, self.place = self.place, place
        if before is not None:
            self.neighbours.change(self.stage, lambda wiring: routing.moved(wiring, self.peer, before, place))
        elif place is not None:
            self.place = None


class Neighbours:
    """Snapshots and wirings by stage. `draw` breaks ties; `view`: replicas of a stage to go by, at the most."""

    def __init__(
        self, read: ReadStage, pool: Pool, draw: random.Random, policy: Policy, view: int = sys.maxsize
    ) -> None:
        self._read = read
        self.pool = pool
        self._draw = draw
        self._policy = policy
        self._view = view
        self._lots: dict[int, dict[str, float]] = {}
        self._wirings: dict[int, Wiring] = {}
        self._read_at: dict[int, float] = {}
        self._below: dict[int, float] = {}
        pool.on_heartbeat = self._heartbeat

    async def refresh(self, stage: int) -> None:
        """Reads a stage again, unless that was just done; keeps the last snapshot if that fails."""
        now = asyncio.get_running_loop().time()
        if now - self._read_at.get(stage, -REFRESH_SECONDS) < REFRESH_SECONDS:
            return
        self._read_at[stage] = now
        try:
            records = await self._read(stage)
        except UnreachableError:
            return
        self.show(stage, records)

    def show(self, stage: int, records: Sequence[Record]) -> None:
        """Takes in a reading of a stage; one without any record says nothing."""
        if not records:
            return
        now = asyncio.get_running_loop().time()
        viewed = records if len(records) <= self._view else self._viewed(stage, records, now)
        self._wirings[stage] = routing.observe(self._wirings.get(stage, Wiring()), viewed, now)
        self.pool.addresses.update((record.peer, record.addresses) for record in records)

    def _viewed(self, stage: int, records: Sequence[Record], now: float) -> list[Record]:
        """The first by lot of those that are not banned; and those that are, as what is held against them stands."""
        before = self._lots.get(stage, {})
        lots = {peer: before[peer] if peer in before else self._draw.random() for peer in [one.peer for one in records]}
        self._lots[stage] = lots
        banned = {replica.peer for replica in self._replicas(stage) if replica.ban.holds(now)}
        well = [record for record in records if record.peer not in banned]
        chosen = heapq.nsmallest(self._view, well, key=lambda record: lots[record.peer])
        return [*chosen, *(record for record in records if record.peer in banned)]

    async def choose(self, stage: int, excluded: Collection[str]) -> str | None:
        """The peer for the next visit: one that is `excluded` or banned only if there is nobody else."""
        if stage not in self._wirings:
            await self.refresh(stage)
        now = asyncio.get_running_loop().time()
        chosen = routing.choose(self._wirings.get(stage, Wiring()), self._policy, excluded, now, self._draw)
        return None if chosen is None else chosen.peer

    def another(self, stage: int, excluded: Collection[str]) -> str | None:
        """A peer to hedge with: neither `excluded` nor banned."""
        now = asyncio.get_running_loop().time()
        chosen = routing.another(self._wirings.get(stage, Wiring()), self._policy, excluded, now, self._draw)
        return None if chosen is None else chosen.peer

    def call(self, stage: int, peer: str) -> Call:
        """Notes that a call begins."""
        now = asyncio.get_running_loop().time()
        expected = self._forecasts(stage, now)
        call = Call(self, stage, peer, now, expected[peer].own if peer in expected else 0.0)
        if expected:
            best = min(forecast.total for forecast in expected.values())
            known = self._below.get(stage, best)
            self._below[stage] = known + BELOW_SMOOTHING * (best - known)
        self.change(stage, lambda wiring: routing.called(wiring, peer, now))
        return call

    def below(self, stage: int) -> float:
        """Seconds that a visit from `stage` on is expected to take, at its best replica; 0 before any."""
        return self._below.get(stage, 0.0)

    def _forecasts(self, stage: int, now: float) -> dict[str, Forecast]:
        replicas = self._replicas(stage)
        pool = [replica for replica in replicas if not replica.ban.holds(now)] or list(replicas)
        return {replica.peer: one for replica, one in zip(pool, forecasts(pool, now), strict=True)}

    def usable(self, stage: int) -> int:
        """How many replicas are known that are not banned."""
        now = asyncio.get_running_loop().time()
        return sum(not replica.ban.holds(now) for replica in self._replicas(stage))

    def peers(self, stage: int) -> list[str]:
        """The replicas that are known."""
        return [replica.peer for replica in self._replicas(stage)]

    def known(self, stage: int) -> int:
        """How many replicas are known, banned or not."""
        return len(self._replicas(stage))

    def is_banned(self, stage: int, peer: str) -> bool:
        now = asyncio.get_running_loop().time()
        return any(replica.peer == peer and replica.ban.holds(now) for replica in self._replicas(stage))

    def _replicas(self, stage: int) -> Collection[routing.Replica]:
        return self._wirings.get(stage, Wiring()).replicas.values()

    def change(self, stage: int, change: Callable[[Wiring], Wiring]) -> None:
        """Applies one of the changes of `routing.py` to what is known of a stage."""
        if stage in self._wirings:
            self._wirings[stage] = change(self._wirings[stage])

    def told(self, stage: int, peer: str, message: pb.Load) -> None:
        """A replica says how loaded it is."""
        load = loads.from_message(message)
        if load is not None:
            now = asyncio.get_running_loop().time()
            self.change(stage, lambda wiring: routing.told(wiring, peer, load, now))

    def _heartbeat(self, peer: str, beat: pb.Heartbeat) -> None:
        if beat.HasField("load"):
            for stage in [stage for stage, wiring in self._wirings.items() if peer in wiring.replicas]:
                self.told(stage, peer, beat.load)

    def gone(self, stage: int, peer: str) -> None:
        """A peer is known to be lost: it is left out until a record shows it again."""
        self.pool.forget(peer)
        self.change(stage, lambda wiring: routing.gone(wiring, peer))

    async def locate(self, stage: int, peer: str) -> None:
        """Makes sure that the addresses of a peer of `stage` are known, if the directory has them."""
        if peer not in self.pool.addresses:
            await self.refresh(stage)
