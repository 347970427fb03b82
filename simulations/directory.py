"""A directory in memory for all nodes of a simulated network: records that expire, answers that take time and may be
old. Implements the seam `swarm.directory.Directory`."""

import asyncio
import random
from dataclasses import dataclass, field
from operator import attrgetter

from ..swarm.directory import Record

KEPT_RECORDS = 8


Entry = tuple[float, float, Record]
"""When it was published, when it expires, what."""


def _in_order(entries: list[Entry]) -> tuple[Record, ...]:
    return tuple(sorted([record for _, _, record in entries], key=attrgetter("peer")))


@dataclass
class MemoryDirectory:
    """Every call takes `delay` seconds; a read sees the records as they were up to `stale` seconds ago (seeded)."""

    delay: float = 0.0
    stale: float = 0.0
    seed: int = 0
    _records: dict[tuple[str, int], dict[str, list[Entry]]] = field(default_factory=dict)
    """By run and stage, then by peer, oldest first."""

    _seen: dict[tuple[str, int], tuple[float, tuple[Record, ...]]] = field(default_factory=dict)
    """The last reading of a stage, and until when it stands if nothing is published: thousands read what few write."""

    _index: dict[str, tuple[float, Record]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(f"directory {self.seed}")

    async def publish(self, record: Record, lifetime: float) -> None:
        await self._take_time()
        now = asyncio.get_running_loop().time()
        kept = self._records.setdefault((record.run, record.stage), {}).setdefault(record.peer, [])
        kept.append((now, now + lifetime, record))
        del kept[:-KEPT_RECORDS]
        self._seen.pop((record.run, record.stage), None)

    async def read(self, run: str, stage: int) -> tuple[Record, ...]:
        await self._take_time()
        now = asyncio.get_running_loop().time()
        everyone = self._records.get((run, stage), {})
        if self.stale:
            at = now - self._random.uniform(0, self.stale)
            seen = [next((entry for entry in reversed(kept) if entry[0] <= at), None) for kept in everyone.values()]
            return _in_order([entry for entry in seen if entry is not None and entry[1] > now])
        until, found = self._seen.get((run, stage), (now, ()))
        if now >= until:
            live = [kept[-1] for kept in everyone.values() if kept[-1][1] > now]
            found = _in_order(live)
            self._seen[run, stage] = min((entry[1] for entry in live), default=now), found
        return found

    async def list_run(self, record: Record, lifetime: float) -> None:
        await self._take_time()
        self._index[record.peer] = asyncio.get_running_loop().time() + lifetime, record

    async def listed_runs(self) -> tuple[Record, ...]:
        await self._take_time()
        now = asyncio.get_running_loop().time()
        return tuple(self._index[peer][1] for peer in sorted(self._index) if self._index[peer][0] > now)

    async def _take_time(self) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
