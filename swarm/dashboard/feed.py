"""The live feed: one document a tick, made once for all who look, and what has changed since the tick before.

A tick is made when the chronicle has something new, at most once a second. Each is a JSON merge patch, framed once and
written straight to every listener's transport. A listener that does not take it in is dropped, never waited for: it
comes back by itself and begins with the whole document.

Errors: none.
"""

import asyncio
import gzip
import json
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any

from ..chronicle import Chronicle
from ..merge_patch import difference
from ..run_view import view

TICK_SECONDS = 1.0
KEEPALIVE_SECONDS = 15.0
REMEMBERED_TICKS = 120
"""Patches that a listener who comes again can still be told."""

MAX_WAITING_BYTES = 256 << 10
"""What may wait in the transport of a listener. More means that he does not take it in."""

RETRY_MS = 2000


def event_bytes(kind: str, identity: str, data: bytes) -> bytes:
    """One server-sent event, framed as a chunk of HTTP/1.1."""
    return chunk(b"event: %s\nid: %s\nretry: %d\ndata: %s\n\n" % (kind.encode(), identity.encode(), RETRY_MS, data))


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def to_json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, default=str).encode()


class Feed:
    """The ticks of one chronicle. `identity` tells this server's ticks from those of the one before it."""

    def __init__(self, chronicle: Chronicle) -> None:
        self._chronicle = chronicle
        self.identity = secrets.token_hex(4)
        self.tick = 0
        self.document: dict[str, Any] = {}
        self.listeners: dict[asyncio.Transport, Callable[[], None]] = {}
        self.dropped = 0
        self._patches: deque[tuple[int, bytes]] = deque(maxlen=REMEMBERED_TICKS)
        self._whole: tuple[int, bytes, bytes] = (-1, b"", b"")
        self._told = -1
        self.refresh()

    async def run(self) -> None:
        """Makes ticks. Never returns."""
        quiet = 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self.refresh():
                quiet = 0.0
                continue
            quiet += TICK_SECONDS
            if quiet >= KEEPALIVE_SECONDS:
                quiet = 0.0
                self._send(chunk(b": still here\n\n"))

    def refresh(self) -> bool:
        """Makes a tick if there is anything new; says whether there was."""
        state = self._chronicle.state
        if state.sequence == self._told:
            return False
        self._told = state.sequence
        document = {**view(state), "live": True}
        patch = difference(self.document, document)
        self.document = document
        self.tick += 1
        framed = event_bytes("patch", self._name(self.tick), to_json(patch))
        self._patches.append((self.tick, framed))
        self._send(framed)
        return True

    def _name(self, tick: int) -> str:
        return f"{self.identity}-{tick}"

    def whole(self) -> tuple[bytes, bytes]:
        """The document as JSON, plain and compressed: made once a tick, when somebody asks."""
        if self._whole[0] != self.tick:
            plain = to_json(self.document)
            self._whole = self.tick, plain, gzip.compress(plain, 5)
        return self._whole[1:]

    def catch_up(self, last: str) -> bytes:
        """What a listener is told first: the patches since the tick `last`, if they are remembered, else everything."""
        identity, _, number = last.rpartition("-")
        if identity == self.identity and number.isdecimal() and len(number) < 12:
            since = int(number)
            if since <= self.tick and (not self._patches or self._patches[0][0] <= since + 1):
                return b"".join(framed for tick, framed in self._patches if tick > since)
        return event_bytes("snapshot", self._name(self.tick), self.whole()[0])

    def listen(self, transport: asyncio.Transport, dropped: Callable[[], None]) -> None:
        """Writes every tick from now on; `dropped` is called if the listener does not take them in."""
        self.listeners[transport] = dropped

    def leave(self, transport: asyncio.Transport) -> None:
        self.listeners.pop(transport, None)

    def _send(self, framed: bytes) -> None:
        for transport in list(self.listeners):
            if transport.is_closing() or transport.get_write_buffer_size() > MAX_WAITING_BYTES:
                self.dropped += 1
                self.listeners.pop(transport)()
                transport.abort()
            else:
                transport.write(framed)
