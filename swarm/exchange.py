"""Exchanges: one question and its answers on a stream that outlives it.

`Channel` sends and receives messages with their payloads, in chunks, bounded. `Pool` keeps idle streams per peer, so
that an exchange reuses a stream whose congestion window has grown; the other side is `serving.py`. What is answered
before its payload has come is not sent to its end. Every byte is metered.

Liveness is a connection's, not an exchange's: while exchanges with a peer are open, the pool keeps one `Watch` with it,
which brings a heartbeat whenever nothing else does for a second; a peer of which nothing comes for the limit, on
whichever stream, has all its exchanges cut at once.

Errors: `UnreachableError` (`SilentError` for a peer that is connected but silent), `WireError`; a stream on which
anything went wrong is closed, never reused.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import ProtocolError, SilentError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .deadline import Deadline
from .messages import Body, pack, payload_length, unpack
from .transport import Contact, Stream, Transport

CHUNK_BYTES = 1 << 20
IDLE_STREAMS = 8
"""Kept a peer, unless more visits may be open there at once: opening one anew costs several round trips."""

HEARTBEAT_SECONDS = 1.0
"""Where no manifest says otherwise (`pipeline.heartbeat`)."""

FIRST_CONTACT = 2
"""How many times the limit on silence it may take to reach a peer for the first time: with four round trips until a
stream is open, and a relay between two ways of 300 ms, that is 5 s."""

REWATCH_SECONDS = 0.5
"""Pause before a Watch that ended is asked for again."""
RELAYED_SECONDS = 10.0
"""How old a stream through a relay may be that is used again: by then there may be a direct way."""
TIDY_SECONDS = 20.0
"""How often idle streams are looked through for such as the other side has ended, or nobody has needed since."""


@dataclass(slots=True)
class Meter:
    """Bytes of frames, by what they carry. `sent` and `received` count everything."""

    sent: int = 0
    received: int = 0
    activation: int = 0
    gradient: int = 0
    reduce: int = 0


_CATEGORY: Mapping[type[Body], str] = {
    pb.Run: "activation",
    pb.Done: "gradient",
    pb.Part: "reduce",
    pb.PartResult: "reduce",
}


class Channel:
    """Messages and payloads over one stream. One sender and one receiver at a time."""

    def __init__(self, stream: Stream, meter: Meter) -> None:
        self.opened = asyncio.get_running_loop().time()
        self._stream = stream
        self._meter = meter
        self._broken_off = False
        """Whether the rest of a payload stays here, which an empty chunk is to say before anything else is sent."""

        self._declined = False
        """Whether a payload was answered before it had come, so that an empty chunk may end it."""

        self._since = self._silence = 0.0
        self._waits = self._was_silent = False
        """Since when a message is waited for, how long the peer may be silent meanwhile, whether one is waited for now,
        and whether the peer was silent for longer."""

        self._deadline: Deadline | None = None

    @property
    def peer(self) -> str:
        return self._stream.peer

    async def send(
        self,
        body: Body,
        payload: bytes | memoryview = b"",
        *,
        category: str | None = None,
        begins: Callable[[], None] = lambda: None,
    ) -> None:
        """Sends a message and its payload; `category` (a field of `Meter`) overrides what the bytes count as;
        `begins` is told when it is the payload's turn.

        Calls go to a peer one after the other. Sent at once they share a connection and come late, all of them, and
        together; and so what follows from them begins together again, while other links are idle.
        """
        if payload:
            body.payload = len(payload)  # type: ignore[union-attr]
        if self._broken_off:
            self._broken_off = False
            await self._send_one(pb.Chunk())
        total = await self._send_one(body)
        view = memoryview(payload)
        try:
            if payload:
                async with self._stream.contact.turn if isinstance(body, pb.Run) else nullcontext():
                    begins()
                    for offset in range(0, len(payload), CHUNK_BYTES):
                        total += await self._send_one(pb.Chunk(data=bytes(view[offset : offset + CHUNK_BYTES])))
        finally:
            self._meter.sent += total
            category = category or _CATEGORY.get(type(body))
            if category:
                setattr(self._meter, category, getattr(self._meter, category) + total)

    def post(self, frame: bytes) -> bool:
        """Sends a packed message of a few bytes without waiting; whether that could be (`Stream.post`)."""
        posted = self._stream.post(frame)
        if posted:
            self._meter.sent += len(frame)
            self._stream.contact.said = asyncio.get_running_loop().time()
        return posted

    async def ask(
        self, body: Body, payload: bytes, max_payload: int, *, begins: Callable[[], None] = lambda: None
    ) -> tuple[Body, bytes]:
        """Sends a question and its payload; the first answer and that one's payload. If that comes before all of the
        question has left, the rest stays."""
        if not payload:
            await self.send(body)
            return await self.receive(max_payload)
        sending = asyncio.ensure_future(self.send(body, payload, begins=begins))
        answer = asyncio.ensure_future(self.receive(max_payload))
        try:
            await asyncio.wait((sending, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await sending
            elif not sending.done():
                sending.cancel()
                await asyncio.wait((sending,))
                self._broken_off = True
            return await answer
        finally:
            for task in (sending, answer):
                task.cancel()
                task.add_done_callback(_ignore)

    async def _send_one(self, body: Body) -> int:
        """The bytes of its frame."""
        frame = pack(body)
        await self._stream.send(frame)
        self._stream.contact.said = asyncio.get_running_loop().time()
        return len(frame)

    async def receive(
        self, max_payload: int, at_once: Callable[[Body, str], Body | None] = lambda body, sender: None
    ) -> tuple[Body, bytes]:
        """The next message and its payload. Raises `WireError` for a payload above `max_payload` bytes.

        `at_once` may answer a message before its payload has come: then that is not wanted, and the next message is
        waited for.
        """
        while True:
            body = await self._receive_one()
            if isinstance(body, pb.Chunk):
                if self._declined and not body.data:  # it had sent all of it before it heard
                    self._declined = False
                    continue
                raise ProtocolError(f"{self.peer} sent a chunk that belongs to no message")
            self._declined = False
            length = payload_length(body)
            if length > max_payload:
                raise WireError(f"{self.peer} announces {length} bytes of payload; at most {max_payload} are accepted")
            if not length:
                return body, b""
            answer = at_once(body, self.peer)
            if answer is None:
                return body, b"".join([data async for data in self._payload(length)])
            await self.send(answer)
            self._declined = True
            async for _ in self._payload(length):
                pass

    async def _payload(self, length: int) -> AsyncIterator[bytes]:
        """What comes of it; of one that was declined perhaps not all."""
        missing = length
        while missing:
            chunk = await self._receive_one()
            if isinstance(chunk, pb.Chunk) and self._declined and not chunk.data:
                self._declined = False
                return
            if not isinstance(chunk, pb.Chunk) or not 0 < len(chunk.data) <= missing:
                raise ProtocolError(f"{self.peer} sent a payload that does not add up to {length} bytes")
            missing -= len(chunk.data)
            yield chunk.data

    async def receive_while_heard(self, silence: float) -> Body:
        """The next message, which has no payload. Raises `SilentError` when nothing at all has come from the peer for
        so many seconds, on this stream or another: the message may wait in line behind much else. The stream is closed
        then."""
        self._since, self._silence, self._waits = asyncio.get_running_loop().time(), silence, True
        if self._deadline is None:
            self._deadline = Deadline(self._ends, self._give_up, careful=True)
        self._deadline.arm()
        try:
            body, _ = await self.receive(0)
            return body
        except UnreachableError as error:
            if self._was_silent:
                raise SilentError(f"{self.peer} has been silent for {silence} s") from error
            raise
        finally:
            self._waits = False

    async def each(self, take: Callable[[Body], bool]) -> None:
        """Has `take` called with every message as soon as it is there, until that returns False; none has a payload.
        Raises as `receive` does."""

        def unpacked(frame: bytes) -> bool:
            self._meter.received += len(frame)
            return take(unpack(frame, self.peer))

        await self._stream.each(unpacked)

    def _ends(self) -> float:
        """When nothing will have come for too long; at once if nobody waits."""
        return max(self._since, self._stream.contact.heard) + self._silence if self._waits else 0.0

    def _give_up(self) -> None:
        if self._waits:
            self._was_silent = True
            self.close()

    async def _receive_one(self) -> Body:
        frame = await self._stream.receive()
        self._meter.received += len(frame)
        return unpack(frame, self.peer)

    @property
    def contact(self) -> Contact:
        return self._stream.contact

    @property
    def ended(self) -> bool:
        return self._stream.ended

    @property
    def relayed(self) -> bool:
        return self._stream.relayed

    def close(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._stream.close()


@dataclass
class _Link:
    """What is going on with one peer: idle streams, the last used one last, and how many there were at the fewest; the
    limits of the open exchanges, and since when it is watched."""

    contact: Contact
    idle: list[Channel] = field(default_factory=list)
    fewest_idle: int = 0
    open: dict[asyncio.Timeout, None] = field(default_factory=dict)
    since: float = 0.0
    watcher: "asyncio.Task[None] | None" = None
    deadline: Deadline | None = None
    reached: float = -math.inf
    """When the first stream to it was open."""

    def ends(self, silence: float) -> float:
        """When it will have been silent for too long. A first contact takes several round trips before anything can
        come: it may take longer."""
        last = max(self.contact.heard, self.reached)
        return self.since + FIRST_CONTACT * silence if last == -math.inf else max(self.since, last) + silence


@dataclass
class Pool:
    """Streams to peers, reused from exchange to exchange. `addresses` says where peers can be dialled, `silence` how
    many seconds a peer with open exchanges may be silent, `idle` how many streams to a peer are kept in between."""

    transport: Transport
    meter: Meter
    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    silence: float = 3.0
    idle: int = IDLE_STREAMS
    on_heartbeat: Callable[[str, pb.Heartbeat], None] = field(default=lambda peer, beat: None)
    _links: dict[str, _Link] = field(default_factory=dict)
    _tidied: float = 0.0

    @asynccontextmanager
    async def exchange(self, peer: str, *, fresh: bool = False) -> AsyncIterator[Channel]:
        """A channel for one exchange; leaving the block normally says that the last answer has been received.

        With `fresh` no kept stream is used. Raises `UnreachableError`, `SilentError`.
        """
        self._tidy()
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = _Link(self.transport.contacts.of(peer))
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._watch(peer, link, limit)
                async with self._channel(peer, link, fresh) as channel:
                    yield channel
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise SilentError(f"{peer} has been silent for {self.silence} s") from error
        finally:
            link.open.pop(limit, None)

    @asynccontextmanager
    async def _channel(self, peer: str, link: _Link, fresh: bool) -> AsyncIterator[Channel]:
        channel = link.idle.pop() if link.idle and not fresh else await self._open(peer)
        link.fewest_idle = min(link.fewest_idle, len(link.idle))
        try:
            yield channel
        except BaseException:
            channel.close()
            raise
        age = asyncio.get_running_loop().time() - channel.opened
        if len(link.idle) < self.idle and not channel.ended and not (channel.relayed and age > RELAYED_SECONDS):
            link.idle.append(channel)
        else:
            channel.close()

    async def _open(self, peer: str) -> Channel:
        stream = await self.transport.open(peer, self.addresses.get(peer, ()))
        link = self._links.get(peer)
        if link is not None and link.reached == -math.inf:
            link.reached = asyncio.get_running_loop().time()
            if link.deadline is not None:
                link.deadline.arm()  # which ends earlier from now on
        return Channel(stream, self.meter)

    def _watch(self, peer: str, link: _Link, limit: asyncio.Timeout) -> None:
        link.open[limit] = None
        if link.watcher is None:
            link.since = asyncio.get_running_loop().time()
            link.watcher = asyncio.create_task(self._listen(peer, link))
            if link.deadline is None:
                link.deadline = Deadline(partial(link.ends, self.silence), partial(self._cut, peer, link), careful=True)
            link.deadline.arm()

    def _cut(self, peer: str, link: _Link) -> None:
        """A peer has been silent too long: ends the exchanges with it, and the Watch."""
        if link.open:
            now = asyncio.get_running_loop().time()
            for limit in link.open:
                limit.reschedule(now)
            link.open.clear()
            self.forget(peer)
        if link.watcher is not None:
            link.watcher.cancel()
            link.watcher = None

    async def _listen(self, peer: str, link: _Link) -> None:
        """Keeps a Watch with a peer for as long as exchanges are open."""

        def take(beat: Body) -> bool:
            if isinstance(beat, pb.Heartbeat):
                self.on_heartbeat(peer, beat)
            return bool(link.open)

        channel: Channel | None = None
        try:
            while link.open:
                try:
                    if channel is None:
                        channel = await self._open(peer)
                        await channel.send(pb.Watch())
                    await channel.each(take)
                except (UnreachableError, WireError):
                    # Exchanges that have ended say so themselves; those that have not may go on.
                    if channel is not None:
                        channel.close()
                    channel = None
                    await asyncio.sleep(REWATCH_SECONDS)
        finally:
            if link.watcher is asyncio.current_task():
                link.watcher = None
            if channel is not None:
                channel.close()

    def _tidy(self) -> None:
        """Gives up idle streams that have ended: of a peer that is gone for good nobody asks for one, and each is a
        descriptor at both ends as long as it is kept. And those that were not needed since the last time: what it took
        to ask for much at once is kept no longer than it is of use."""
        now = asyncio.get_running_loop().time()
        if now < self._tidied + TIDY_SECONDS:
            return
        self._tidied = now
        for peer, link in list(self._links.items()):
            kept = [channel for channel in link.idle[link.fewest_idle :] if not channel.ended]
            for channel in [channel for channel in link.idle if channel not in kept]:
                channel.close()
            link.idle, link.fewest_idle = kept, len(kept)
            if not link.idle and not link.open and link.watcher is None:
                del self._links[peer]

    def forget(self, peer: str) -> None:
        """Closes the idle streams to a peer that is gone."""
        link = self._links.get(peer)
        if link is not None:
            for channel in link.idle:
                channel.close()
            link.idle.clear()

    def close(self) -> None:
        for peer, link in self._links.items():
            self.forget(peer)
            if link.watcher is not None:
                link.watcher.cancel()
                link.watcher = None
            if link.deadline is not None:
                link.deadline.cancel()


def _ignore(ended: "asyncio.Future[Any]") -> None:
    """Its error is of no interest."""
    if not ended.cancelled():
        ended.exception()
