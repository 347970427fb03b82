"""The files of a checkpoint behind a URL: byte ranges from the network (`ranges.py`) through the weight cache.

Asks for no more than the wanted bytes, in one request for a run of missing parts, and keeps each part as soon as it is
whole, so that a reading that ended begins again where it was. Errors: those of `ranges.py`, and `StorageError` from the
cache.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

from ...errors import ModelError
from .ranges import RangeClient
from .weight_cache import PART_BYTES, WeightCache


class HttpFiles:
    """The files below the client's URL. `source` names them in a manifest: a repository's id, or the URL."""

    is_local = False

    def __init__(self, client: RangeClient, source: str, cache: WeightCache | None = None) -> None:
        self.where = source
        self._client = client
        self._cache = cache or WeightCache()
        self._known: dict[str, bytes] = {}

    def close(self) -> None:
        self._client.close()

    @property
    def received(self) -> int:
        return self._client.received

    def name_of(self, name: str) -> str:
        return self._client.url(name)

    def has(self, name: str) -> bool:
        if name not in self._known:
            known = self._client.look(name)
            if known is None:
                return False
            self._known[name] = known
        return True

    def size(self, name: str) -> int:
        if not self.has(name):
            raise self._client.missing(name)
        return self._client.versions[name].size

    def whole(self, name: str, limit: int) -> bytes:
        return self._client.whole(name, limit)

    def read(self, name: str, start: int, into: memoryview, came: Callable[[int], None]) -> None:
        known = self._known[name] if self.size(name) else b""
        if start + len(into) <= len(known):
            into[:] = known[start : start + len(into)]
            came(len(into))
            return
        key = self._key(name)
        run = 0  # where the parts begin that are missing and not yet asked for
        for begin in range(0, len(into), PART_BYTES):
            part = into[begin : begin + PART_BYTES]
            if key is not None and self._cache.load(key, start + begin, part):
                self._fetch(name, key, start + run, into[run:begin], came)
                came(len(part))
                run = begin + len(part)
        self._fetch(name, key, start + run, into[run:], came)

    def forget(self, wrong: Sequence[tuple[str, int, int]]) -> None:
        for name, start, stop in wrong:
            key = self._key(name)
            if key is not None:
                for begin in range(start, stop, PART_BYTES):
                    self._cache.forget(key, begin, min(PART_BYTES, stop - begin))

    def revision(self, names: Iterable[str]) -> str:
        """A repository's version is its commit; else a digest over the versions of the named files."""
        if self._client.commit:
            return f"{self.where}@{self._client.commit}"
        versions = [(name, self._client.versions[name]) for name in sorted(names)]
        lines = "".join(f"{name} {version.tag} {version.size}\n" for name, version in versions)
        return f"{self.where}@{hashlib.sha256(lines.encode()).hexdigest()}"

    def check_revision(self, revision: str, names: Iterable[str]) -> None:
        here = self.revision(names)
        if revision.rpartition("@")[0] == self.where and revision != here:
            raise ModelError(
                f"{self.where}: its files are not those that the run was started with (here {here}, the run wants "
                f"{revision}): ask the organizer, or pass a folder with the old ones as --model"
            )

    def _key(self, name: str) -> str | None:
        """What the cache knows a file's version by; None where another version could look the same."""
        version = self._client.versions[name]
        if not version.tag:
            return None
        text = f"{self.where}\n{name}\n{version.tag}\n{version.size}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _fetch(self, name: str, key: str | None, start: int, into: memoryview, came: Callable[[int], None]) -> None:
        """Fills `into` from the network, and the cache part by part as each is whole."""

        def filled(before: int, now: int) -> None:
            if key is not None:
                for begin in range(before // PART_BYTES * PART_BYTES, now, PART_BYTES):
                    end = min(begin + PART_BYTES, len(into))
                    if before < end <= now:
                        self._cache.store(key, start + begin, into[begin:end])
            came(now - before)

        self._client.fill(name, start, into, filled)
