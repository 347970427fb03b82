"""Scratch space on a real disk: one file without a name, so that it is gone with the process, however that ends.

Owns a thread, on which everything happens in order, and the file (0600, made with the first write). Errors:
`StorageError` for a full disk, for one that fails, and for data that is not what was written.
"""

import asyncio
import os
import secrets
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import StorageError


class DiskSpill:
    """Implements `kept.SpillFile` in a folder, which is made if need be (0700)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "spill")
        self._file = -1

    async def write(self, offset: int, data: bytes) -> int:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._write, offset, data)

    async def read(self, offset: int, length: int, checksum: int) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, offset, length, checksum)

    def shrink(self, end: int) -> None:
        self._thread.submit(self._shrink, end)

    def close(self) -> None:
        """Gives the disk space back, after what is under way. Idempotent."""
        self._thread.shutdown(cancel_futures=True)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    # ---- on the thread

    def _open(self) -> int:
        if self._file < 0:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self._folder / f"spill-{secrets.token_hex(8)}"
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            path.unlink()
        return self._file

    def _write(self, offset: int, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.pwrite(self._open(), rest, offset + len(data) - len(rest)) :]
        except OSError as error:
            raise StorageError(f"{len(data)} bytes cannot be kept on disk in {self._folder}: {error}") from error
        return zlib.crc32(data)

    def _read(self, offset: int, length: int, checksum: int) -> bytes:
        pieces: list[bytes] = []
        missing = length
        try:
            while missing and (piece := os.pread(self._open(), missing, offset + length - missing)):
                pieces.append(piece)
                missing -= len(piece)
        except OSError as error:
            raise StorageError(f"{length} bytes cannot be read back from {self._folder}: {error}") from error
        data = b"".join(pieces)
        if len(data) != length or zlib.crc32(data) != checksum:
            raise StorageError(f"the disk of {self._folder} gave back other bytes than were written")
        return data

    def _shrink(self, end: int) -> None:
        if self._file >= 0:
            os.ftruncate(self._file, end)
