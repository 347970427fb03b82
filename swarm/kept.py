"""What the visits of a stage have sent, kept until their step is closed: in memory, then on disk, then not at all.

The newest lie in memory, up to `memory_bytes`; older ones are spilled to one file, up to `spill_bytes`; when that is
full too, the oldest of all are evicted. Whoever needs what was evicted has it computed again, so a disk that is full or
fails costs work and nothing else: what cannot be written or read back counts as evicted, and the file grows no further
until a step is closed.

`put` returns when memory is within its bound again: a visit holds its slot until what it sent is kept. Owns the space
of the file (`extents.py`); talks to the disk through the seam `SpillFile` (`spill_file.py`, and `simulations/`). Raises
nothing of its own.
"""

import asyncio
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..errors import StorageError
from ..protos import swarm_pb2 as pb
from .extents import Extents
from .visits import VisitKey


class SpillFile(Protocol):
    """A file of scratch space, gone with the process. Calls take effect in the order in which they were made."""

    async def write(self, offset: int, data: bytes) -> int:
        """Writes, growing the file if need be; the checksum of the data. Raises `StorageError`."""
        ...

    async def read(self, offset: int, length: int, checksum: int) -> bytes:
        """Reads what was written with this checksum. Raises `StorageError`, also if it is something else."""
        ...

    def shrink(self, end: int) -> None:
        """Gives back what lies at `end` and beyond."""
        ...


class _Key(NamedTuple):
    visit: VisitKey
    kind: int


@dataclass(frozen=True, slots=True, eq=False)
class _Spilled:
    offset: int
    length: int
    checksum: int


class KeptStore:
    """Coded tensors by visit and kind (`pb.Fetch.OUTPUT`, `pb.Fetch.INPUT_GRADIENT`)."""

    def __init__(self, memory_bytes: int, spill_bytes: int, file: SpillFile | None = None) -> None:
        self._memory_bytes = memory_bytes
        self._spill_bytes = spill_bytes if file is not None else 0
        self._file = file
        self._space = Extents(self._spill_bytes)
        self._memory: dict[_Key, bytes] = {}
        self._spilled: dict[_Key, _Spilled] = {}
        self._spilling = asyncio.Lock()
        self.in_memory = 0
        self.spilled = 0
        self.evicted = 0

    @property
    def on_disk(self) -> int:
        """How many bytes of the file are in use, gaps included."""
        return self._space.end

    async def put(self, visit: VisitKey, kind: int, data: bytes) -> None:
        """Keeps data, unless it is kept already."""
        key = _Key(visit, kind)
        if key in self._memory or key in self._spilled:
            return
        self._memory[key] = data
        self.in_memory += len(data)
        async with self._spilling:
            while self.in_memory > self._memory_bytes:
                await self._spill(next(iter(self._memory)))

    async def get(self, visit: VisitKey, kind: int) -> bytes | None:
        """What was kept; None if it was evicted or never there."""
        key = _Key(visit, kind)
        if key in self._memory:
            return self._memory[key]
        where = self._spilled.get(key)
        if where is None or self._file is None:
            return None
        try:
            return await self._file.read(where.offset, where.length, where.checksum)
        except StorageError:
            if self._spilled.get(key) is where:
                self._forget(key)
                self.evicted += 1
            return None

    async def _spill(self, key: _Key) -> None:
        """Moves an item from memory to the file, or evicts it; one at a time."""
        data = self._memory[key]
        written: _Spilled | None = None
        offset = self._room(len(data))
        if offset is not None and self._file is not None:
            try:
                written = _Spilled(offset, len(data), await self._file.write(offset, data))
            except StorageError:
                self._space.give_back(offset, len(data))
                self._space.limit = self._space.end
        if self._memory.get(key) is not data:  # its step was closed meanwhile
            if written is not None:
                self._space.give_back(written.offset, written.length)
            return
        self._forget(key)
        if written is None:
            self.evicted += 1
        else:
            self._spilled[key] = written
            self.spilled += 1

    def _room(self, length: int) -> int | None:
        """Space in the file, at the cost of what has been there longest; None if it could never be had."""
        if length > self._space.limit:
            return None
        while (offset := self._space.take(length)) is None:
            self._forget(next(iter(self._spilled)))
            self.evicted += 1
        return offset

    def _forget(self, key: _Key) -> None:
        data = self._memory.pop(key, None)
        if data is not None:
            self.in_memory -= len(data)
        where = self._spilled.pop(key, None)
        if where is not None:
            self._space.give_back(where.offset, where.length)

    def drop(self, visit: VisitKey) -> None:
        """Forgets what one visit sent."""
        self._drop([_Key(visit, kind) for kind in (pb.Fetch.OUTPUT, pb.Fetch.INPUT_GRADIENT)])

    def close(self, epoch: int, closed: int) -> None:
        """Lets go of the steps below `closed`."""
        self._drop(
            [key for key in (*self._memory, *self._spilled) if (key.visit.epoch, key.visit.step) < (epoch, closed)]
        )
        self._space.limit = self._spill_bytes

    def clear(self) -> None:
        self._drop([*self._memory, *self._spilled])

    def _drop(self, keys: list[_Key]) -> None:
        before = self._space.end
        for key in keys:
            self._forget(key)
        if self._space.end < before and self._file is not None:
            self._file.shrink(self._space.end)
