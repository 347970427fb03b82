"""Reads files below a URL by HTTP byte ranges (RFC 9110, section 14): one thread, one server, and where it sends to.

Goes on where a connection broke. Every response must be of the version that was seen first (ETag or Last-Modified, and
size), so that bytes of two versions never mix. A token goes to the first server's own origin only: a redirect to
another host loses it.

Errors: `UnreachableError` for a host that cannot be reached or a connection that keeps breaking; `ModelError` for what
a server refuses, does not have, has changed or cannot serve by range.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlsplit

import httpx2

from ...errors import ModelError, UnreachableError

T = TypeVar("T")

HEAD_BYTES = 8
"""What a first look at a file brings with it."""
SMALL_BYTES = 8 << 20
"""A file up to this size is taken whole from a server without ranges."""

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
    """What tells one version of a file from another. `tag`: empty where the server gives none; `condition`: for
    If-Range, or empty."""

    tag: str
    size: int
    condition: str


class RangeClient:
    """`base`: a URL that ends with a slash. `hub`: the page of a repository of the Hub, where its licence can be
    accepted; then `base` ends in a revision, and is pinned to the commit that the first answer names (`commit`).
    `versions`: of the files looked at; `received`: bytes that came, also those that were of no use.
    """

    def __init__(
        self,
        base: str,
        *,
        hub: str = "",
        token: str = "",
        patience: Patience | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base = base
        self.commit = ""
        self.versions: dict[str, Version] = {}
        self.received = 0
        self._hub = hub
        self._patience = patience or Patience()
        self._pause = pause
        headers = {"Accept-Encoding": "identity", "User-Agent": "swarm-peer"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        limits = httpx2.Timeout(self._patience.silence, connect=self._patience.connect)
        self._client = httpx2.Client(headers=headers, timeout=limits, follow_redirects=True, max_redirects=5)

    def close(self) -> None:
        self._client.close()

    def url(self, name: str) -> str:
        return self.base + quote(name)

    def look(self, name: str) -> bytes | None:
        """Notes a file's version: its first 8 bytes, a small file's whole content from a server without ranges, None
        for a file that is not there."""
        return self._patiently(lambda: self._look(name))

    def whole(self, name: str, limit: int) -> bytes:
        """A file of at most `limit` bytes."""
        return self._patiently(lambda: self._whole(name, limit))

    def fill(self, name: str, start: int, into: memoryview, came: Callable[[int, int], None]) -> None:
        """Fills `into` with the bytes from `start` on of a file that was looked at; `came(before, filled)` hears of
        each step."""
        filled, failures = 0, 0
        while filled < len(into):
            since = filled
            try:
                with self._range(name, start + filled, start + len(into)) as chunks:
                    for chunk in chunks:
                        if len(chunk) > len(into) - filled:
                            raise ModelError(f"{self.url(name)}: the server sent more bytes than asked for")
                        self.received += len(chunk)
                        into[filled : filled + len(chunk)] = chunk
                        before, filled = filled, filled + len(chunk)
                        came(before, filled)
                if filled < len(into):
                    raise UnreachableError(f"the response ended at byte {start + filled} of {start + len(into)}")
            except (UnreachableError, httpx2.TransportError) as error:
                failures = 1 if filled - since >= _PROGRESS_BYTES else failures + 1
                self._wait(failures, error)

    def missing(self, name: str) -> ModelError:
        return ModelError(f"{self.url(name)}: is not there (404); check the name of the model, or its address")

    def _patiently(self, work: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return work()
            except (UnreachableError, httpx2.TransportError) as error:
                failures += 1
                self._wait(failures, error)

    def _wait(self, failures: int, error: Exception) -> None:
        """Before the next attempt. Raises `UnreachableError` after the last."""
        if failures >= self._patience.attempts:
            raise UnreachableError(
                f"cannot reach {urlsplit(self.base).netloc}: check the network, or pass a local folder as --model "
                f"({failures} attempts; the last said: {error or type(error).__name__})"
            ) from error
        self._pause(self._patience.first_wait * 2 ** (failures - 1))

    def _look(self, name: str) -> bytes | None:
        with self._response(name, {"Range": f"bytes=0-{HEAD_BYTES - 1}"}) as response:
            if response.status_code == 404:
                return None
            if response.status_code == 416:
                raise ModelError(f"{self.url(name)}: is empty; fetch or upload it again")
            if response.status_code == 206:
                self._see(name, response, _total(response, self.url(name)))
                return self._body(name, response, HEAD_BYTES)
            length = response.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > SMALL_BYTES:
                raise ModelError(
                    f"{self.url(name)}: the server does not serve byte ranges (it answered 200, {length or 'unknown'} "
                    "bytes; wanted 206): use a server that does, or download the model and pass its folder as --model"
                )
            content = self._body(name, response, SMALL_BYTES)
            self._see(name, response, len(content))
            return content

    def _whole(self, name: str, limit: int) -> bytes:
        with self._response(name, {}) as response:
            if response.status_code == 404:
                raise self.missing(name)
            if response.status_code != 200:
                raise ModelError(f"{self.url(name)}: the server answered {response.status_code}; wanted 200")
            content = self._body(name, response, limit)
            self._see(name, response, len(content))
            return content

    def _body(self, name: str, response: httpx2.Response, limit: int) -> bytes:
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            self.received += len(chunk)
            if len(content) > limit:
                raise ModelError(f"{self.url(name)}: is larger than {limit} bytes; that is not what is expected there")
        return bytes(content)

    @contextmanager
    def _range(self, name: str, start: int, stop: int) -> Iterator[Iterator[bytes]]:
        """The bytes [start, stop) of the version that is known, as they come."""
        known = self.versions[name]
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if known.condition:
            headers["If-Range"] = known.condition
        with self._response(name, headers) as response:
            if response.status_code == 404:
                raise self.missing(name)
            if response.status_code != 206:
                # After a 206 to the first look, 200 says that the version is another, 416 that there is less of it.
                raise self._changed(name, f"the server answered {response.status_code} to a byte range; wanted 206")
            self._see(name, response, _total(response, self.url(name)))
            if not response.headers["Content-Range"].startswith(f"bytes {start}-"):
                raise ModelError(
                    f"{self.url(name)}: the server sent {response.headers['Content-Range']!r}; "
                    f"wanted bytes {start}-{stop - 1}"
                )
            yield response.iter_raw()

    @contextmanager
    def _response(self, name: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """A response whose status is one to go on with: 200, 206, 404 or 416."""
        url = self.url(name)
        try:
            with self._client.stream("GET", url, headers=dict(headers)) as response:
                status = response.status_code
                if status in _LATER:
                    raise UnreachableError(f"the server answered {status}")
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
        commit = _said(response, "X-Repo-Commit")
        if self._hub and not self.commit and commit.isalnum():
            self.commit = commit
            root, _, _ = self.base.rstrip("/").rpartition("/")
            self.base = f"{root}/{commit}/"

    def _see(self, name: str, response: httpx2.Response, size: int) -> None:
        """Notes a file's version, or refuses one that is not the one noted."""
        linked = _said(response, "X-Linked-ETag")
        tag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
        # The Hub names the content itself; the tags of the hosts that it sends to may differ among them.
        condition = "" if linked or tag.startswith("W/") else tag or date
        came = Version(linked or tag or date, size, condition)
        known = self.versions.setdefault(name, came)
        if (known.tag, known.size) != (came.tag, came.size):
            raise self._changed(name, f"it was {known.tag} of {known.size} bytes, now it is {came.tag} of {came.size}")

    def _changed(self, name: str, why: str) -> ModelError:
        return ModelError(f"{self.url(name)}: changed while it was read: {why}; start again")

    def _refused(self, url: str, status: int) -> ModelError:
        if self._hub:
            return ModelError(
                f"{url}: the Hub refuses it ({status}): it does not exist, or its licence must be accepted first, "
                f"at {self._hub}; then set HF_TOKEN to an access token of yours that may read it"
            )
        return ModelError(f"{url}: the server refuses it ({status}); wanted an address that needs no password")


def _said(response: httpx2.Response, header: str) -> str:
    """What the server itself, not one that it sends to, said in a header; a renamed repository takes it two answers."""
    hops = [*response.history, response]
    own = (hop for hop in hops if hop.url.host == hops[0].url.host and hop.url.port == hops[0].url.port)
    return next((str(hop.headers[header]) for hop in own if header in hop.headers), "")


def _total(response: httpx2.Response, where: str) -> int:
    """The whole file's size, from Content-Range."""
    span = response.headers.get("Content-Range", "")
    unit, _, total = span.rpartition("/")
    if not unit.startswith("bytes ") or not total.isdecimal():
        raise ModelError(f"{where}: the server sent Content-Range {span!r}; wanted the span and the file's size")
    return int(total)
