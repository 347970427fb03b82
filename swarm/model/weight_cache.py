"""Parts of remote checkpoints on disk, so that a range is fetched once: shared by all processes of a user, bounded.

A part is one file: the bytes, then their CRC-32. It is written under another name and renamed, so that no half-written
part is ever seen; one that fails its CRC counts as absent. Beyond the limit the least recently used parts go, but none
that this process has used since it began nor any that another process is reading. What does not fit is not kept.

Errors: `StorageError` for a disk that is full or fails while writing, `UsageError` for a limit that is no number. A
part that cannot be read counts as absent.
"""

import fcntl
import os
import shutil
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

from ...errors import StorageError, UsageError
from ..sources import cache_folder

PART_BYTES = 16 << 20
DEFAULT_LIMIT = 50 * 10**9
SPARE_BYTES = 512 << 20
"""Free space that is left to the rest of the machine."""

_CRC_BYTES = 4
_TEMPORARY = ".writing-"
_RECOUNT = 64
"""Parts written before the folder is counted again: other processes write there too."""


def limit_from_environment() -> int:
    """$SWARM_PEER_CACHE_GB in bytes, else 50 GB. Raises `UsageError`."""
    given = os.environ.get("SWARM_PEER_CACHE_GB")
    if not given:
        return DEFAULT_LIMIT
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise UsageError(f"SWARM_PEER_CACHE_GB is {given!r}; wanted how many GB to keep, 0 for none")
    return int(limit * 10**9)


class WeightCache:
    """The parts in one folder. `limit`: bytes of them all; by default as the environment says."""

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = cache_folder() / "weights" if folder is None else folder
        self.limit = limit_from_environment() if limit is None else limit
        self._used: set[Path] = set()
        self._total = 0
        self._until_recount = 0

    def load(self, key: str, start: int, into: memoryview) -> bool:
        """Fills `into` with the part of file `key` that begins at `start`; whether it was there and whole."""
        path = self._path(key, start, len(into))
        try:
            with path.open("rb", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                filled = 0
                while count := file.readinto(into[filled:]):
                    filled += count
                check = file.read(_CRC_BYTES + 1)
                os.utime(file.fileno())
        except OSError:
            return False
        if filled != len(into) or check != zlib.crc32(into).to_bytes(_CRC_BYTES, "little"):
            self._remove(path)
            return False
        self._used.add(path)
        return True

    def store(self, key: str, start: int, content: memoryview) -> None:
        """Keeps the part of file `key` that begins at `start`, if it fits. Raises `StorageError`."""
        size = len(content) + _CRC_BYTES
        if size > self.limit:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._make_room(size):
                return
            path = self._path(key, start, len(content))
            self._write(path, content)
        except OSError as error:
            raise self._full(f"{size} bytes cannot be written: {error.strerror}") from error
        self._used.add(path)
        self._total += size

    def forget(self, key: str, start: int, size: int) -> None:
        """Drops the part, whoever wrote it: its bytes are not what they should be."""
        self._remove(self._path(key, start, size))

    def _path(self, key: str, start: int, size: int) -> Path:
        return self.folder / f"{key}.{start}-{start + size}"

    def _full(self, why: str) -> StorageError:
        return StorageError(
            f"{self.folder}: {why}; free some space there, set SWARM_PEER_HOME to a folder on a larger disk, "
            "or SWARM_PEER_CACHE_GB=0 to keep no weights on disk"
        )

    def _write(self, path: Path, content: memoryview) -> None:
        while True:
            descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=self.folder)
            try:
                with open(descriptor, "wb", buffering=0) as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if not os.fstat(file.fileno()).st_nlink:
                        continue  # another process took it, not yet locked, for a dead writer's
                    for block in (content, zlib.crc32(content).to_bytes(_CRC_BYTES, "little")):
                        written = 0
                        while written < len(block):
                            written += file.write(block[written:])
                    os.replace(name, path)
                    return
            finally:
                Path(name).unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        """Whether `size` more bytes may be written, after removing what is older. Raises `StorageError`."""
        if self._until_recount == 0:
            self._total = sum(found.st_size for found in self._parts().values())
            self._until_recount = _RECOUNT
        self._until_recount -= 1
        if self._fits(size):
            return True
        parts = self._parts()
        self._total = sum(found.st_size for found in parts.values())
        for path in sorted(parts, key=lambda part: parts[part].st_mtime_ns):
            if path not in self._used and self._remove(path):
                self._total -= parts[path].st_size
                if self._fits(size):
                    return True
        free = shutil.disk_usage(self.folder).free
        if free < size + SPARE_BYTES:
            raise self._full(f"the disk has {free >> 20} MiB left, and {SPARE_BYTES >> 20} MiB are to stay free")
        return False

    def _fits(self, size: int) -> bool:
        return self._total + size <= self.limit and shutil.disk_usage(self.folder).free >= size + SPARE_BYTES

    def _parts(self) -> dict[Path, os.stat_result]:
        """The parts there are; removes what dead writers left."""
        found = {}
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another process made room as well
                if entry.name.startswith(_TEMPORARY):
                    self._remove(Path(entry.path))
                else:
                    found[Path(entry.path)] = entry.stat()
        return found

    def _remove(self, path: Path) -> bool:
        """Unlinks a file unless somebody holds it; whether it is gone."""
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True
