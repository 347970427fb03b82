"""The seam to the network: streams of bounded frames between authenticated peers.

A peer is known by its peer id: libp2p's text form of its Ed25519 public key, proven by the transport's handshake.
Implementations: `p2p_transport.py` (libp2p through hivemind's daemon) and `simulations/network.py` (in memory, virtual
time). A stream is a reliable, ordered, two-way pipe of frames; what frames mean is not known here.

Errors: `UnreachableError` when the other side cannot be reached or the stream has ended, `WireError` for a frame above
`MAX_FRAME_BYTES` (the stream is closed then; nothing of that size is ever allocated).
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakValueDictionary

MAX_FRAME_BYTES = (1 << 20) + (1 << 16)
"""Largest frame: 1 MiB of tensor payload and room for its envelope."""


@dataclass(slots=True, weakref_slot=True)
class Contact:
    """What all streams with one peer have in common, as they share a connection. `heard`: when anything last came on
    any of them, by the loop's clock, `said`: when anything was last sent; `turn`: held by who sends a call."""

    heard: float = -math.inf
    said: float = -math.inf
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Contacts:
    """With each peer. What is small and says that a peer lives waits in line with what is large: whatever comes of its
    streams says that it lives."""

    def __init__(self) -> None:
        self._contacts: WeakValueDictionary[str, Contact] = WeakValueDictionary()

    def of(self, peer: str) -> Contact:
        """The same one for as long as anybody holds it."""
        contact = self._contacts.get(peer)
        if contact is None:
            contact = self._contacts[peer] = Contact()
        return contact


class Stream(Protocol):
    """One end of a pipe of frames."""

    @property
    def contact(self) -> Contact:
        """What it has in common with the other streams to the same peer."""
        ...

    @property
    def peer(self) -> str:
        """The authenticated peer id of the other end."""
        ...

    @property
    def relayed(self) -> bool:
        """Whether it leads through a relay: when it was opened, neither end reached the other directly."""
        ...

    @property
    def ended(self) -> bool:
        """Whether either side has ended it, as far as is known here, and nothing is left to be received."""
        ...

    async def send(self, frame: bytes) -> None:
        """Sends one frame, waiting while the other side is slow. Raises `UnreachableError`, `WireError`."""
        ...

    def post(self, frame: bytes) -> bool:
        """Sends a small frame without waiting. False if that cannot be: the stream has ended, or what was sent before
        has not left yet; then it is not sent."""
        ...

    async def receive(self) -> bytes:
        """The next frame. Raises `UnreachableError` at the end of the stream, `WireError` for one too large."""
        ...

    async def each(self, take: Callable[[bytes], bool]) -> None:
        """Has `take` called with every frame as soon as it is there, until that returns False. Raises as `receive`
        does, and `WireError` if `take` does."""
        ...

    def close(self) -> None:
        """Ends the stream at once, for both sides; frames on their way may be lost. Idempotent."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]


class Transport(Protocol):
    """Opens streams to peers and serves those that peers open. `contacts`: with those it has streams with."""

    contacts: Contacts

    @property
    def peer_id(self) -> str: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses under which this peer can be reached (multiaddrs ending in /p2p/<peer id>)."""
        ...

    async def serve(self, handler: StreamHandler) -> None:
        """From now on runs `handler(stream)` in a task of its own for each incoming stream, and closes the stream after
        it; a later handler takes the place of the one before."""
        ...

    async def open(self, peer: str, addresses: Sequence[str] = ()) -> Stream:
        """A new stream to `peer`, dialled under `addresses` if it is not connected. Raises `UnreachableError`."""
        ...

    async def close(self) -> None:
        """Closes every stream and cancels the handlers. Idempotent."""
        ...
