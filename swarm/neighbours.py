"""What a caller knows of the replicas of the stages that it calls: the last good reading, and its own experience.

Reads come from the directory (peers) or from the roster (trainer); when one fails the last snapshot stands. Choices are
the pure policy of `routing.py`.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection

from ..errors import UnreachableError
from . import routing
from .directory import Record
from .exchange import Pool

REFRESH_SECONDS = 0.25
"""The directory is not read more often than this, a stage."""

ReadStage = Callable[[int], Awaitable[tuple[Record, ...]]]


class Neighbours:
    """Snapshots and wirings by stage. `draw` breaks ties."""

    def __init__(self, read: ReadStage, pool: Pool, draw: random.Random) -> None:
        self._read = read
        self._pool = pool
        self._draw = draw
        self._records: dict[int, dict[str, Record]] = {}
        self._wirings: dict[int, routing.Wiring] = {}
        self._read_at: dict[int, float] = {}

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
        if not records:
            return
        self._records[stage] = {record.peer: record for record in records}
        self._wirings[stage] = routing.observe(self._wirings.get(stage, routing.Wiring()), records)
        self._pool.addresses.update((record.peer, record.addresses) for record in records)

    async def choose(self, stage: int, excluded: Collection[str]) -> str | None:
        if stage not in self._wirings:
            await self.refresh(stage)
        peer, self._wirings[stage] = routing.choose(self._wirings.get(stage, routing.Wiring()), excluded, self._draw)
        return peer

    def usable(self, stage: int) -> int:
        """How many replicas are known that have not failed."""
        wiring = self._wirings.get(stage, routing.Wiring())
        return sum(peer not in wiring.failed for peer in wiring.candidates)

    def has_failed(self, stage: int, peer: str) -> bool:
        return peer in self._wirings.get(stage, routing.Wiring()).failed

    def measured(self, stage: int, peer: str, seconds: float) -> None:
        if stage in self._wirings:
            self._wirings[stage] = routing.measured(self._wirings[stage], peer, seconds)

    def failed(self, stage: int, peer: str) -> None:
        """Leaves a peer out until its record shows that it has spoken again."""
        self._pool.forget(peer)
        record = self._records.get(stage, {}).get(peer)
        if stage in self._wirings and record is not None:
            self._wirings[stage] = routing.failed(self._wirings[stage], peer, record.sequence)

    async def locate(self, stage: int, peer: str) -> None:
        """Makes sure that the addresses of a peer of `stage` are known, if the directory has them."""
        if peer not in self._pool.addresses:
            await self.refresh(stage)
