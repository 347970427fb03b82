"""The files of a checkpoint behind a URL, read by HTTP byte ranges (RFC 9110, section 14) through the weight cache.

Asks for no more than the wanted bytes, in one request a run of missing parts, and goes on where a connection broke.
Every response must be of the version that was seen first (ETag or Last-Modified, and length), so that bytes of two
versions never mix. A token goes to the Hub's own origin only: a redirect to another host loses it.

Errors: `UnreachableError` for a host that cannot be reached or a connection that keeps breaking, `ModelError` for what
a server refuses, does not have, has changed or cannot serve by range, `StorageError` from the cache.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlsplit

import httpx2

from ...errors import ModelError, UnreachableError
from .weight_cache import PART_BYTES, WeightCache

T = TypeVar("T")

SMALL_BYTES = 8 << 20
"""A file up to this size is taken whole from a server without ranges."""

_HEAD_BYTES = 8
_PROGRESS_BYTES = 1 << 20
_LATER = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Patience:
    """`attempts`: failures in a row, each with less than 1 MiB between; the waits between them double from
    `first_wait`. All in seconds."""

    connect: float = 10.0
    silence: float = 30.0
    attempts: int = 5
    first_wait: float = 0.5


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one version of a file from another. `condition`: for If-Range; empty where a server gave none."""

    tag: str
    size: int
    condition: str


class _Broken(Exception):
    """A connection ended before what was asked for, or the server wants to be asked later."""


class HttpFiles:
    """Files below `base`, a URL that ends with a slash. `source` names them in a manifest; `hub` is the page of a
    repository of the Hub, where its licence can be accepted, and then `base` ends in a revision.
    """

    is_local = False

    def __init__(
        self,
        base: str,
        *,
        source: str | None = None,
        hub: str = "",
        token: str = "",
        cache: WeightCache | None = None,
        patience: Patience | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.where = base
        self._source = base if source is None else source
        self._hub = hub
        self._cache = cache or WeightCache()
        self._patience = patience or Patience()
        self._pause = pause
        self._commit = ""
        self._versions: dict[str, Version] = {}
        self._small: dict[str, bytes] = {}
        self._heads: dict[str, bytes] = {}
        headers = {"Accept-Encoding": "identity", "User-Agent": "swarm-peer"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        limits = httpx2.Timeout(self._patience.silence, connect=self._patience.connect)
        self._client = httpx2.Client(headers=headers, timeout=limits, follow_redirects=True, max_redirects=5)

    def close(self) -> None:
        self._client.close()

    def name_of(self, name: str) -> str:
        return self.where + quote(name)

    def has(self, name: str) -> bool:
        if name in self._versions:
            return True
        return self._patiently(lambda: self._look(name))

    def size(self, name: str) -> int:
        if not self.has(name):
            raise self._missing(name)
        return self._versions[name].size

    def whole(self, name: str, limit: int) -> bytes:
        return self._patiently(lambda: self._whole(name, limit))

    def read(self, name: str, start: int, into: memoryview, came: Callable[[int], None]) -> None:
        if not self.has(name):
            raise self._missing(name)
        known = self._small.get(name) or self._heads.get(name, b"")
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

    def forget(self, name: str, start: int, stop: int) -> None:
        key = self._key(name)
        self._small.pop(name, None)
        if key is not None:
            for begin in range(start, stop, PART_BYTES):
                self._cache.forget(key, begin, min(PART_BYTES, stop - begin))

    def revision(self, names: Iterable[str]) -> str:
        return f"{self._source}@{self._commit or self._fingerprint(names)}"

    def check_revision(self, revision: str, names: Iterable[str]) -> None:
        source, _, version = revision.rpartition("@")
        if source == self._source and f"{source}@{version}" != self.revision(names):
            raise ModelError(
                f"{self.where}: its files are not those that the run was started with (version {version}, here "
                f"{self.revision(names).rpartition('@')[2]}): ask the organizer, or pass a folder with the old ones"
            )

    def _fingerprint(self, names: Iterable[str]) -> str:
        """Of the versions of all named files."""
        versions = ((name, self._versions[name]) for name in sorted(names))
        lines = "".join(f"{name} {version.tag} {version.size}\n" for name, version in versions)
        return hashlib.sha256(lines.encode()).hexdigest()

    def _key(self, name: str) -> str | None:
        """What the cache knows a file's version by; None where another version could look the same."""
        version = self._versions[name]
        if not version.tag:
            return None
        text = f"{self._source}\n{self._commit}\n{name}\n{version.tag}\n{version.size}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _fetch(self, name: str, key: str | None, start: int, into: memoryview, came: Callable[[int], None]) -> None:
        """Fills `into` from the network, and the cache part by part as each is whole."""
        filled, failures = 0, 0
        while filled < len(into):
            since = filled
            try:
                with self._range(name, start + filled, start + len(into)) as chunks:
                    for chunk in chunks:
                        if len(chunk) > len(into) - filled:
                            raise ModelError(f"{self.name_of(name)}: the server sent more bytes than asked for")
                        into[filled : filled + len(chunk)] = chunk
                        before, filled = filled, filled + len(chunk)
                        if key is not None:
                            self._keep(key, start, into, before, filled)
                        came(len(chunk))
                if filled < len(into):
                    raise _Broken(f"the response ended at byte {start + filled} of {start + len(into)}")
            except (_Broken, httpx2.TransportError) as error:
                failures = 1 if filled - since >= _PROGRESS_BYTES else failures + 1
                self._wait(failures, error)

    def _keep(self, key: str, start: int, into: memoryview, before: int, filled: int) -> None:
        """Stores the parts of `into` that became whole between two fillings."""
        first = before // PART_BYTES * PART_BYTES
        for begin in range(first, filled, PART_BYTES):
            end = min(begin + PART_BYTES, len(into))
            if before < end <= filled:
                self._cache.store(key, start + begin, into[begin:end])

    def _look(self, name: str) -> bool:
        """Asks for a file's first bytes to learn its version; False if it is not there."""
        with self._response(name, {"Range": f"bytes=0-{_HEAD_BYTES - 1}"}) as response:
            if response.status_code == 404:
                return False
            if response.status_code == 416:
                raise ModelError(f"{self.name_of(name)}: is empty; fetch or upload it again")
            if response.status_code == 200:
                self._take_small(name, response)
                return True
            self._see(name, response, _total(response, self.name_of(name)))
            self._heads[name] = self._body(name, response, _HEAD_BYTES)
            return True

    def _whole(self, name: str, limit: int) -> bytes:
        with self._response(name, {}) as response:
            if response.status_code == 404:
                raise self._missing(name)
            if response.status_code != 200:
                raise ModelError(f"{self.name_of(name)}: the server answered {response.status_code}; wanted 200")
            content = self._body(name, response, limit)
            self._see(name, response, len(content))
            return content

    def _body(self, name: str, response: httpx2.Response, limit: int) -> bytes:
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > limit:
                raise ModelError(
                    f"{self.name_of(name)}: is larger than {limit} bytes; that is not what is expected there"
                )
        return bytes(content)

    def _take_small(self, name: str, response: httpx2.Response) -> None:
        """A server without ranges sends a whole file, which is taken if it is small."""
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > SMALL_BYTES:
            raise ModelError(
                f"{self.name_of(name)}: the server does not serve byte ranges (it answered 200, {length or 'unknown'} "
                "bytes; wanted 206): use a server that does, or download the model and pass its folder as --model"
            )
        content = self._body(name, response, SMALL_BYTES)
        self._see(name, response, len(content))
        self._small[name] = content

    @contextmanager
    def _range(self, name: str, start: int, stop: int) -> Iterator[Iterator[bytes]]:
        """The bytes [start, stop) of the version that is known, as they come."""
        known = self._versions[name]
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if known.condition:
            headers["If-Range"] = known.condition
        with self._response(name, headers) as response:
            if response.status_code == 404:
                raise self._missing(name)
            if response.status_code != 206:
                # With If-Range a 200 says that the version is another; 416 that there is less of it.
                raise self._changed(name, f"the server answered {response.status_code} to a byte range; wanted 206")
            self._see(name, response, _total(response, self.name_of(name)))
            if not response.headers["Content-Range"].startswith(f"bytes {start}-"):
                raise ModelError(
                    f"{self.name_of(name)}: the server sent {response.headers['Content-Range']!r}; "
                    f"wanted bytes {start}-{stop - 1}"
                )
            yield response.iter_raw()

    @contextmanager
    def _response(self, name: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """A response whose status is one to go on with: 200, 206, 404 or 416."""
        url = self.name_of(name)
        try:
            with self._client.stream("GET", url, headers=dict(headers)) as response:
                status = response.status_code
                if status in _LATER:
                    raise _Broken(f"the server answered {status}")
                if status in (401, 403):
                    raise self._refused(url, status)
                if status not in (200, 206, 404, 416):
                    raise ModelError(f"{url}: the server answered {status}; check the address")
                if url.startswith("https:") and response.url.scheme != "https":
                    raise ModelError(f"{url}: leads to {response.url.host} without encryption; wanted https throughout")
                self._pin(response)
                yield response
        except (httpx2.TooManyRedirects, httpx2.InvalidURL) as error:
            raise ModelError(f"{url}: cannot be followed: {error}") from error

    def _pin(self, response: httpx2.Response) -> None:
        """From its first answer on, a repository is read at the commit that the Hub named there."""
        if not self._hub or self._commit:
            return
        commit = [*response.history, response][0].headers.get("X-Repo-Commit", "")
        if commit.isalnum():
            self._commit = commit
            root, _, _ = self.where.rstrip("/").rpartition("/")
            self.where = f"{root}/{commit}/"

    def _see(self, name: str, response: httpx2.Response, size: int) -> None:
        """Notes a file's version, or refuses one that is not the one noted."""
        linked = [*response.history, response][0].headers.get("X-Linked-ETag", "")
        tag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
        # The Hub names the content itself; the tags of the hosts that it sends to may differ among them.
        condition = "" if linked or tag.startswith("W/") else tag or date
        came = Version(linked or tag or date, size, condition)
        known = self._versions.setdefault(name, came)
        if (known.tag, known.size) != (came.tag, came.size):
            raise self._changed(name, f"it was {known.tag} with {known.size} bytes, now {came.tag} with {came.size}")

    def _patiently(self, work: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return work()
            except (_Broken, httpx2.TransportError) as error:
                failures += 1
                self._wait(failures, error)

    def _wait(self, failures: int, error: Exception) -> None:
        """Before the next attempt. Raises `UnreachableError` after the last."""
        host = urlsplit(self.where).netloc
        if failures >= self._patience.attempts:
            raise UnreachableError(
                f"cannot reach {host}: check the network, or pass a local folder as --model "
                f"({failures} attempts; the last said: {error or type(error).__name__})"
            ) from error
        self._pause(self._patience.first_wait * 2 ** (failures - 1))

    def _missing(self, name: str) -> ModelError:
        return ModelError(f"{self.name_of(name)}: is not there (404); check the name of the model, or its address")

    def _changed(self, name: str, why: str) -> ModelError:
        return ModelError(f"{self.name_of(name)}: changed while it was read: {why}; start again")

    def _refused(self, url: str, status: int) -> ModelError:
        if self._hub:
            return ModelError(
                f"{url}: the Hub refuses it ({status}): it does not exist, or its licence must be accepted first, "
                f"at {self._hub}; then set HF_TOKEN to an access token of yours that may read it"
            )
        return ModelError(f"{url}: the server refuses it ({status}); wanted an address that needs no password")


def _total(response: httpx2.Response, where: str) -> int:
    """The whole file's size, from Content-Range."""
    span = response.headers.get("Content-Range", "")
    unit, _, total = span.rpartition("/")
    if not unit.startswith("bytes ") or not total.isdecimal():
        raise ModelError(f"{where}: the server sent Content-Range {span!r}; wanted the span and the file's size")
    return int(total)
