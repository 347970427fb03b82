"""Named files that can be read by range: what a checkpoint is read from. Here those of a folder; `http_files.py` has
those behind a URL.

Errors: `ModelError` for a file that is missing, unreadable or too large.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from ...errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_READ_BYTES = 4 << 20


class Files(Protocol):
    """A source of a checkpoint; `where` names it in errors. Used by one thread at a time."""

    where: str
    is_local: bool

    @property
    def received(self) -> int:
        """Bytes that came over the network, besides those of the run's own exchanges."""
        ...

    def name_of(self, name: str) -> str:
        """A file's path or URL, for errors."""
        ...

    def has(self, name: str) -> bool: ...

    def whole(self, name: str, limit: int) -> bytes:
        """A file of at most `limit` bytes. Raises `ModelError`."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file. Raises `ModelError`."""
        ...

    def read(self, name: str, start: int, into: memoryview, came: Callable[[int], None]) -> None:
        """Fills `into` with the bytes from `start` on; `came` hears how many each time some come."""
        ...

    def forget(self, wrong: Sequence[tuple[str, int, int]]) -> None:
        """Bytes that were read at once, as (file, start, stop), proved wrong: drops what is kept of them."""
        ...

    def revision(self, names: Iterable[str]) -> str:
        """`source@version` of the named files, once they have been looked at; empty for a folder."""
        ...

    def check_revision(self, revision: str, names: Iterable[str]) -> None:
        """Raises `ModelError` if `revision` is of this very source, at another version."""
        ...

    def close(self) -> None: ...


class FolderFiles:
    """The files of a folder."""

    is_local = True
    received = 0

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder

    def name_of(self, name: str) -> str:
        return str(self._folder / name)

    def has(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def whole(self, name: str, limit: int) -> bytes:
        path = self._folder / name
        try:
            with path.open("rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
        if len(content) > limit:
            raise ModelError(f"{path}: is larger than {limit} bytes; that is not what is expected there")
        return content

    def size(self, name: str) -> int:
        try:
            return (self._folder / name).stat().st_size
        except OSError as error:
            raise ModelError(f"{self._folder / name}: cannot be read: {error.strerror}") from error

    def read(self, name: str, start: int, into: memoryview, came: Callable[[int], None]) -> None:
        path, filled = self._folder / name, 0
        try:
            with path.open("rb") as file:
                file.seek(start)
                while filled < len(into):
                    count = file.readinto(into[filled : filled + _READ_BYTES])
                    if not count:
                        raise ModelError(f"{path}: ended at byte {start + filled}: it became shorter while being read")
                    filled += count
                    came(count)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error

    def forget(self, wrong: Sequence[tuple[str, int, int]]) -> None:
        """Nothing is kept of a folder."""

    def revision(self, names: Iterable[str]) -> str:
        return ""

    def check_revision(self, revision: str, names: Iterable[str]) -> None:
        """A folder has no revision."""

    def close(self) -> None:
        """Nothing is left open."""
