"""A simulated disk: what is spilled lies in memory, takes a duration to write and read, and the disk may be full."""

import asyncio
import zlib
from dataclasses import dataclass, field

from ..errors import StorageError


@dataclass
class MemorySpill:
    """Implements `swarm.kept.SpillFile`. `capacity`: bytes that the disk has left; `seconds`: of one write or read."""

    capacity: float = float("inf")
    seconds: float = 0.002
    _data: bytearray = field(default_factory=bytearray)

    async def write(self, offset: int, data: bytes) -> int:
        if offset + len(data) > self.capacity:
            raise StorageError(f"a simulated disk of {self.capacity} bytes is full")
        self._data.extend(bytes(max(0, offset + len(data) - len(self._data))))
        self._data[offset : offset + len(data)] = data
        await asyncio.sleep(self.seconds)
        return zlib.crc32(data)

    async def read(self, offset: int, length: int, checksum: int) -> bytes:
        data = bytes(self._data[offset : offset + length])
        await asyncio.sleep(self.seconds)
        if zlib.crc32(data) != checksum:
            raise StorageError("a simulated disk gave back other bytes than were written")
        return data

    def shrink(self, end: int) -> None:
        del self._data[end:]
