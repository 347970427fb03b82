"""An internet of home links: streams share an uplink and a downlink fairly, as TCP's flows do over time.

The streams on an uplink are sent at once, each at an equal share of its rate (processor sharing), so a heartbeat passes
a tensor of many megabytes, and of two tensors on one link each gets half; the frames of a stream go one after the
other. A frame travels for the latency of the way (both access links, the distance of their regions, jitter) and has
come when its last byte has and the receiver's downlink has passed on all that came before that. How many bytes a
frame stands for is `weigh`'s to say (`sized.py`). It costs a few events a frame, whatever its size and however many
share the link; one that fits into a packet costs one, as it waits for nobody.

What passes through a relay takes its downlink and its uplink as well, one frame of a stream after the other.

A first contact takes some round trips, and a frame those that TCP and its stream make it wait (`tcp.py`).

Not modelled: packet loss and what it does to TCP's window, queues that overflow.
"""

import asyncio
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy

from .nat import Nat, meet
from .network import MemoryNetwork, MemoryStream
from .tcp import DIAL_PAUSES, DIAL_ROUND_TRIPS, FIRST_BYTES, Connection, StreamWindow, sent_again
from .virtual_time import NOBODY

ROUNDING_BYTES = 1e-3
"""A frame of which no more is left has been sent."""

MEMORY_SECONDS, REMEMBERED = 60.0, 32
"""For how long, and how many frames, a downlink looks back: what came before has passed."""

INSTANT_SECONDS = 1e-12

PACKET_BYTES = 1500
"""Frames of no more than this are on the way at once: they would have their share of a link before they were missed."""

Weigh = Callable[[bytes], int]


@dataclass(slots=True, eq=False)
class _Frame:
    """One on its way; `ends`: what each frame of its uplink will have been given when it has been sent."""

    sender: str
    stream: MemoryStream
    content: bytes
    size: float
    began: float
    sent: asyncio.Future[None]
    connection: Connection
    ends: float = 0.0
    sending: bool = False
    """Whether it is the first of its stream, on its way out."""

    gone: bool = True
    """Whether it is on no uplink."""

    onward: "Access | None" = None
    """The relay that sends it on, once it has left its sender."""


@dataclass(eq=False)
class Uplink:
    """Bytes a second (inf: no limit), which the frames on it share equally."""

    rate: float = float("inf")
    carried: float = 0.0
    """Bytes so far."""

    sent: Callable[[_Frame], None] = field(default=lambda frame: None)
    _given: float = 0.0
    """Bytes that a frame which was always on it would have been given."""

    _at: float = 0.0
    _frames: list[tuple[float, int, _Frame]] = field(default_factory=list)
    _count: int = 0
    _number: int = 0
    _timer: asyncio.TimerHandle | None = None

    def change(self, factor: float) -> None:
        """Its rate is `factor` times what it was, from now on."""
        self._advance()
        self.rate *= factor
        self._arm()

    def add(self, frame: _Frame) -> None:
        self._advance()
        frame.began, frame.gone = self._at, False
        frame.ends = self._given + frame.size
        self._number += 1
        heapq.heappush(self._frames, (frame.ends, self._number, frame))
        self._count += 1
        self._arm()

    def remove(self, frame: _Frame) -> None:
        """Nobody waits for it any more: the others have its share."""
        if not frame.gone:
            self._advance()
            frame.gone = True
            self._count -= 1
            self._arm()

    def _advance(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._count:
            passed = (now - self._at) * self.rate
            self._given += passed / self._count
            self.carried += passed
        self._at = now

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._frames and self._frames[0][2].gone:
            heapq.heappop(self._frames)
        if self._frames:
            left = max(0.0, self._frames[0][0] - self._given)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(left * self._count / self.rate, self._due, context=NOBODY)

    def _due(self) -> None:
        self._timer = None
        self._advance()
        if self._frames and not self._frames[0][2].gone:  # it is due, whatever rounding says
            self._given = max(self._given, self._frames[0][0])
        while self._frames and (self._frames[0][2].gone or self._frames[0][0] <= self._given + ROUNDING_BYTES):
            frame = heapq.heappop(self._frames)[2]
            if not frame.gone:
                frame.gone = True
                self._count -= 1
                self.sent(frame)
        self._arm()


@dataclass
class Downlink:
    """Bytes a second (inf: no limit), in the order in which they come; each frame comes evenly."""

    rate: float = float("inf")
    carried: float = 0.0
    _recent: list[tuple[float, float, float]] = field(default_factory=list)
    """Frames: from when to when they came, and their bytes."""

    def take(self, began: float, now: float, size: float) -> float:
        """When all has passed of what came from `began` on and ends now: what has not passed of all that came is, for
        some time since when it was never idle, what came less what could pass since then (Lindley 1952)."""
        self.carried += size
        if self.rate == float("inf") or not size:
            return now
        self._recent = [frame for frame in self._recent if frame[1] > now - MEMORY_SECONDS][1 - REMEMBERED :]
        self._recent.append((began, now, size))
        if sum(bytes_ / max(end - start, bytes_ / self.rate) for start, end, bytes_ in self._recent) <= self.rate:
            return now
        starts, ends, sizes = numpy.array(self._recent).T
        since = starts[:, None]
        # Of what came evenly from its start to its end, the part that came since then.
        shares = numpy.clip((ends - since) / numpy.maximum(ends - starts, INSTANT_SECONDS), 0.0, 1.0)
        came = numpy.where(starts >= since, 1.0, shares) @ sizes
        return now + max(0.0, float((came - (now - starts) * self.rate).max())) / self.rate

    def change(self, factor: float) -> None:
        self.rate *= factor


@dataclass
class Access:
    """How a node is attached; several may share an uplink and a downlink. Seconds, one way. Of packets, which only an
    emulated internet has: `loss`, the share of them that is lost here; `buffer`: seconds of either link's rate."""

    up: Uplink = field(default_factory=Uplink)
    down: Downlink = field(default_factory=Downlink)
    latency: float = 0.01
    jitter: float = 0.0
    region: str | None = None
    loss: float = 0.0
    buffer: float = 0.2
    relay: "Access | None" = None
    """Through which others reach it, and it them."""

    nat: Nat | None = None
    """The router that it is behind."""

    host: "Access | None" = None
    """Through which it meets those whose routers, with its own, let no connection come about."""

    def relay_to(self, other: "Access") -> "Access | None":
        """What lies between: the other's relay, or its own; nothing if that is one of the two."""
        relay = other.relay or self.relay
        return None if relay is self or relay is other else relay

    def between(self, other: "Access") -> "Access | None":
        """As `relay_to`, and for two whose routers do not let them meet."""
        relay = self.relay_to(other)
        if relay is None and not meet(self.nat, other.nat):
            return self.host
        return relay

    def way_to(self, other: "Access", distances: Mapping[tuple[str, str], float]) -> float:
        """Seconds of a packet's way to another one's, without jitter."""
        return self.latency + other.latency + self.distance_to(other, distances)

    def distance_to(self, other: "Access", distances: Mapping[tuple[str, str], float]) -> float:
        """Seconds between their regions, of which `distances` has them by both names in order."""
        if self.region is None or other.region is None or self.region == other.region:
            return 0.0
        return distances.get((min(self.region, other.region), max(self.region, other.region)), 0.0)


@dataclass(frozen=True, slots=True)
class _Way:
    """From one node to another. `distance`: seconds between regions, one after the other if a relay lies between."""

    near: Access
    far: Access
    relay: Access | None
    distance: float

    @property
    def seconds(self) -> float:
        """One way, without jitter."""
        through = 0.0 if self.relay is None else 2 * self.relay.latency
        return self.near.latency + through + self.far.latency + self.distance


@dataclass
class Internet(MemoryNetwork):
    """`accesses`: of every node, by name; `distances`: seconds between two regions, by both their names in order."""

    accesses: dict[str, Access] = field(default_factory=dict)
    distances: Mapping[tuple[str, str], float] = field(default_factory=dict)
    _sending: dict[MemoryStream, list[_Frame]] = field(default_factory=dict)
    _relaying: dict[MemoryStream, list[_Frame]] = field(default_factory=dict)
    """What relays have of a stream; the first is on its way out."""

    _connections: dict[str, dict[str, Connection]] = field(default_factory=dict)
    """By sender and receiver."""

    _ways: dict[str, dict[str, _Way]] = field(default_factory=dict)
    _credits: dict[MemoryStream, StreamWindow] = field(default_factory=dict)
    dial_pauses: Sequence[float] = DIAL_PAUSES
    _unacknowledged: dict[tuple[str, str], float] = field(default_factory=dict)
    """By direction that is cut: since when something is held that was sent there."""

    def forget(self, name: str) -> None:
        self._ways.pop(name, None)
        for ways in self._ways.values():
            ways.pop(name, None)
        for other in self._connections.pop(name, {}):
            self._connections.get(other, {}).pop(name, None)
            for direction in ((name, other), (other, name)):
                self.stalled.pop(direction, None)
                self._unacknowledged.pop(direction, None)

    def dialling(self, caller: str, peer: str) -> float:
        known = peer in self._connections.get(caller, {})
        return 0.0 if known else DIAL_ROUND_TRIPS * self._round_trip(caller, peer)

    def connected(self, caller: str, peer: str) -> None:
        self._connection(caller, peer)
        self._connection(peer, caller)

    def _connection(self, sender: str, receiver: str) -> Connection:
        of_sender = self._connections.setdefault(sender, {})
        found = of_sender.get(receiver)
        if found is None:
            found = of_sender[receiver] = Connection()
        return found

    def _way(self, sender: str, receiver: str) -> _Way:
        of_sender = self._ways.setdefault(sender, {})
        found = of_sender.get(receiver)
        if found is None:
            near, far = self.accesses[sender], self.accesses[receiver]
            relay = near.between(far)
            legs = (near, far) if relay is None else (near, relay, far)
            distance = sum(one.distance_to(next_, self.distances) for one, next_ in pairwise(legs))
            found = of_sender[receiver] = _Way(near, far, relay, distance)
        return found

    def _round_trip(self, sender: str, receiver: str) -> float:
        """Seconds, without jitter."""
        return 2 * self._way(sender, receiver).seconds

    def draw(self, sender: str, receiver: str) -> float:
        way = self._way(sender, receiver)
        if way.relay is None:
            return way.seconds + self._jitter(way.near, way.far)
        return way.seconds + self._jitter(way.near, way.relay) + self._jitter(way.relay, way.far)

    def _draw(self, near: Access, far: Access) -> float:
        return near.way_to(far, self.distances) + self._jitter(near, far)

    def _jitter(self, near: Access, far: Access) -> float:
        jitter = near.jitter + far.jitter
        return self.random.uniform(0.0, jitter) if jitter else 0.0

    async def transmit(self, sender: str, stream: MemoryStream, frame: bytes) -> None:
        if (sender, stream.peer) in self.held:
            self.carry(sender, stream, frame)
            return
        loop, size = asyncio.get_running_loop(), stream.weigh(frame)
        waiting = self._sending.get(stream)
        if size <= PACKET_BYTES and not stream.coming and waiting is None:
            way = self._way(sender, stream.peer)
            way.near.up.carried += size
            way.far.down.carried += size
            connection = self._connection(sender, stream.peer)
            if connection.window > FIRST_BYTES:
                connection.note(loop.time(), 2 * way.seconds)
            comes = max(self._comes(sender, stream), self.stalled.get((sender, stream.peer), 0.0))
            stream.arrive_after(comes - loop.time(), frame)
            return
        moving = self._frame(sender, stream, frame, size)
        if waiting is None:
            waiting = self._sending[stream] = []
            self._begin(moving)
        waiting.append(moving)
        try:
            await moving.sent
        finally:
            self._end(moving)
            was_first = waiting[0] is moving
            waiting.remove(moving)
            if not waiting:
                del self._sending[stream]
            elif was_first and not stream.ended:
                self._begin(waiting[0])

    def _frame(self, sender: str, stream: MemoryStream, content: bytes, size: int) -> _Frame:
        loop = asyncio.get_running_loop()
        connection = self._connection(sender, stream.peer)
        return _Frame(sender, stream, content, float(size), loop.time(), loop.create_future(), connection)

    def _begin(self, frame: _Frame) -> None:
        """It goes out onto its sender's uplink."""
        frame.began, frame.sending = asyncio.get_running_loop().time(), True
        frame.connection.frames += 1
        uplink = self.accesses[frame.sender].up
        if uplink.rate == float("inf"):
            uplink.carried += frame.size
            self._left(frame)
        else:
            uplink.sent = self._left
            uplink.add(frame)

    def _end(self, frame: _Frame) -> None:
        """It goes out no more."""
        if frame.sending:
            frame.sending = False
            frame.connection.frames -= 1
            self.accesses[frame.sender].up.remove(frame)

    def ends(self, stream: MemoryStream) -> None:
        """Nothing more of a stream goes out."""
        for frame in self._sending.get(stream, ()):
            self._end(frame)
            if not frame.sent.done():
                frame.sent.set_result(None)
        for frame in self._relaying.pop(stream, ()):
            assert frame.onward is not None
            frame.onward.up.remove(frame)
        self._credits.pop(stream, None)

    def _left(self, frame: _Frame) -> None:
        """The link has sent its last byte, or would have, were there no acknowledgements to wait for."""
        if frame.onward is not None:
            self._relayed(frame)
            return
        waits = self._wait(frame)
        if waits:
            asyncio.get_running_loop().call_later(waits, self._away, frame, context=NOBODY)
        else:
            self._away(frame)

    def _wait(self, frame: _Frame) -> float:
        round_trip = self._round_trip(frame.sender, frame.stream.peer)
        if not round_trip:
            return 0.0
        now = asyncio.get_running_loop().time()
        took = now - frame.began
        rate = min(frame.size / took if took else float("inf"), self.accesses[frame.stream.peer].down.rate)
        credit = self._credits.get(frame.stream)
        if credit is None:
            credit = self._credits[frame.stream] = StreamWindow()
        return max(
            frame.connection.wait(credit.turn, frame.size, rate, round_trip, frame.began),
            credit.wait(frame.size, rate, round_trip, frame.began),
        )

    def _away(self, frame: _Frame) -> None:
        """Its last byte has left; it comes to the receiver's downlink after the latency of the way."""
        loop = asyncio.get_running_loop()
        if frame.sent.done():  # nobody sends it any more
            return
        frame.sent.set_result(None)
        if (frame.sender, frame.stream.peer) in self.held:
            super().carry(frame.sender, frame.stream, frame.content)
            return
        frame.stream.coming += 1
        near = self.accesses[frame.sender]
        relay = near.between(self.accesses[frame.stream.peer])
        if relay is None:
            self._send_off(frame, self._comes(frame.sender, frame.stream))
            return
        frame.onward = relay
        way = self._draw(near, relay)
        frame.began += way
        loop.call_at(loop.time() + way, self._reach, frame, relay, context=NOBODY)

    def _send_off(self, frame: _Frame, comes: float) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(comes, self._come, frame, frame.began + comes - loop.time(), context=NOBODY)

    # ---- through a relay

    def _reach(self, frame: _Frame, relay: Access) -> None:
        """Its last byte is at the relay, which sends it on when it has sent on those of the stream before."""
        loop = asyncio.get_running_loop()
        through = relay.down.take(frame.began, loop.time(), frame.size)
        if through > loop.time():
            loop.call_at(through, self._queue, frame, relay, context=NOBODY)
        else:
            self._queue(frame, relay)

    def _queue(self, frame: _Frame, relay: Access) -> None:
        if frame.stream.ended:
            return
        waiting = self._relaying.setdefault(frame.stream, [])
        waiting.append(frame)
        if len(waiting) == 1:
            self._send_on(frame, relay)

    def _send_on(self, frame: _Frame, relay: Access) -> None:
        frame.began = asyncio.get_running_loop().time()
        if relay.up.rate == float("inf"):
            relay.up.carried += frame.size
            self._relayed(frame)
            return
        relay.up.sent = self._left
        relay.up.add(frame)

    def _relayed(self, frame: _Frame) -> None:
        """Its last byte has left the relay."""
        relay, stream = frame.onward, frame.stream
        assert relay is not None
        now = asyncio.get_running_loop().time()
        stream.comes = max(now + self._draw(relay, self.accesses[stream.peer]), stream.comes)
        self._send_off(frame, stream.comes)
        waiting = self._relaying.get(stream, [])
        if waiting and waiting[0] is frame:
            waiting.pop(0)
            if waiting:
                self._send_on(waiting[0], relay)
            else:
                del self._relaying[stream]

    def _comes(self, sender: str, stream: MemoryStream) -> float:
        """When what leaves now comes to the other side: never before what has left earlier."""
        now = asyncio.get_running_loop().time()
        stream.comes = max(now + self.draw(sender, stream.peer), stream.comes)
        return stream.comes

    def _come(self, frame: _Frame, began: float) -> None:
        """Its last byte is there; the first one came at `began`."""
        now = asyncio.get_running_loop().time()
        frame.stream.coming -= 1
        passed = self.accesses[frame.stream.peer].down.take(began, now, frame.size)
        through = max(passed, self.stalled.get((frame.sender, frame.stream.peer), 0.0))
        frame.stream.arrive_after(through - now, frame.content)

    def heal(self, one: str, other: str) -> None:
        """Connections have stayed, and nothing comes over one before TCP sends again what it has sent in vain."""
        now = asyncio.get_running_loop().time()
        for direction in ((one, other), (other, one)):
            since = self._unacknowledged.pop(direction, None)
            if since is not None:
                round_trip = self._round_trip(*direction)
                self.stalled[direction] = sent_again(since, now, round_trip) + round_trip / 2
        super().heal(one, other)

    def release(self, sender: str, stream: MemoryStream, frame: bytes | None) -> None:
        """After what has left before it, and is still on its way."""
        if frame is None:
            self.carry(sender, stream, None)
        else:
            self._away(self._frame(sender, stream, frame, stream.weigh(frame)))

    def carry(self, sender: str, stream: MemoryStream, frame: bytes | None) -> float:
        """What is held while a direction is cut, and the end of a stream: they take no room on a link."""
        direction = (sender, stream.peer)
        if direction in self.held:
            self._unacknowledged.setdefault(direction, asyncio.get_running_loop().time())
            return super().carry(sender, stream, frame)
        loop = asyncio.get_running_loop()
        loop.call_at(self._comes(sender, stream), stream.arrive_after, 0.0, frame, context=NOBODY)
        return 0.0
