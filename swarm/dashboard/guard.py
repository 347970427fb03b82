"""Keeps clients from holding a server up: whoever does not finish a request in time, or idles, is cut off.

aiohttp bounds the size of what it reads, not the time. The guard knows every connection from its beginning, is told
when a request is whole and when it is answered, and looks at all of them once a second.

Errors: none.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

REQUEST_SECONDS = 10.0
"""From a connection's beginning to its first whole request."""

IDLE_SECONDS = 30.0
"""From an answer to the next whole request."""

MAX_CONNECTIONS = 8192


@dataclass(slots=True)
class _Client:
    since: float
    answering: int = 0
    answered: bool = False


class Guard:
    """`protocols()` makes the server's protocol for a connection."""

    def __init__(self, protocols: Callable[[], Any]) -> None:
        self._protocols = protocols
        self._clients: dict[Any, _Client] = {}

    def accept(self) -> Any:
        """The protocol of a new connection."""
        protocol = self._protocols()
        self._clients[protocol] = _Client(asyncio.get_running_loop().time())
        return protocol

    def began(self, protocol: Any) -> None:
        """A whole request has come."""
        client = self._clients.get(protocol)
        if client is not None:
            client.answering += 1

    def ended(self, protocol: Any) -> None:
        """It is answered."""
        client = self._clients.get(protocol)
        if client is not None:
            client.answering -= 1
            client.answered, client.since = True, asyncio.get_running_loop().time()

    @property
    def connections(self) -> int:
        return len(self._clients)

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(1.0)
            self.look()

    def look(self) -> None:
        """Forgets connections that are closed, and closes those that take too long, and the newest of too many."""
        now = asyncio.get_running_loop().time()
        excess = len(self._clients) - MAX_CONNECTIONS
        for protocol, client in reversed(list(self._clients.items())):
            transport = protocol.transport
            if transport is None or transport.is_closing():
                # Not connected yet, or no more: a new one has a second to be.
                if now - client.since > 1.0 and not client.answering:
                    del self._clients[protocol]
                continue
            limit = IDLE_SECONDS if client.answered else REQUEST_SECONDS
            if (not client.answering and now - client.since > limit) or excess > 0:
                excess -= 1
                del self._clients[protocol]
                transport.abort()
