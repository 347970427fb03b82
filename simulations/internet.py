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
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .links import Access, Frame, Way
from .network import MemoryNetwork, MemoryStream
from .tcp import DIAL_PAUSES, DIAL_ROUND_TRIPS, FIRST_BYTES, QUEUE_BYTES, Connection, StreamWindow, sent_again
from .virtual_time import NOBODY

PACKET_BYTES = 1500
"""Frames of no more than this are on the way at once: they would have their share of a link before they were missed."""


@dataclass
class Internet(MemoryNetwork):
    """`accesses`: of every node, by name; `distances`: seconds between two regions, by both their names in order."""

    accesses: dict[str, Access] = field(default_factory=dict)
    distances: Mapping[tuple[str, str], float] = field(default_factory=dict)
    _sending: dict[MemoryStream, list[Frame]] = field(default_factory=dict)
    _relaying: dict[MemoryStream, list[Frame]] = field(default_factory=dict)
    """What relays have of a stream; the first is on its way out."""

    _connections: defaultdict[str, dict[str, Connection]] = field(default_factory=lambda: defaultdict(dict))
    """By sender and receiver."""

    _ways: defaultdict[str, dict[str, Way]] = field(default_factory=lambda: defaultdict(dict))
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
        of_sender = self._connections[sender]
        found = of_sender.get(receiver)
        if found is None:
            found = of_sender[receiver] = Connection()
        return found

    def _way(self, sender: str, receiver: str) -> Way:
        of_sender = self._ways[sender]
        found = of_sender.get(receiver)
        if found is None:
            near, far = self.accesses[sender], self.accesses[receiver]
            relay = near.between(far)
            legs = (near, far) if relay is None else (near, relay, far)
            distance = sum(one.distance_to(next_, self.distances) for one, next_ in pairwise(legs))
            found = of_sender[receiver] = Way(near, far, relay, distance)
        return found

    def _round_trip(self, sender: str, receiver: str) -> float:
        """Seconds, without jitter."""
        return 2 * self._way(sender, receiver).seconds

    def draw(self, sender: str, receiver: str) -> float:
        return self._take(self._way(sender, receiver))

    def _take(self, way: Way) -> float:
        """What a frame takes on a way, drawn anew."""
        if way.relay is None:
            return way.seconds + self._jitter(way.near, way.far)
        return way.seconds + self._jitter(way.near, way.relay) + self._jitter(way.relay, way.far)

    def _draw(self, near: Access, far: Access) -> float:
        return near.way_to(far, self.distances) + self._jitter(near, far)

    def _jitter(self, near: Access, far: Access) -> float:
        jitter = near.jitter + far.jitter
        return self.random.uniform(0.0, jitter) if jitter else 0.0

    async def transmit(self, sender: str, stream: MemoryStream, frame: bytes) -> None:
        waiting = self._sending.get(stream)
        if waiting is None and (sender, stream.peer) in self.held:
            self.carry(sender, stream, frame)
            return
        size = stream.weigh(frame)
        if waiting is None and self._passes_at_once(sender, stream, frame, size):
            return
        moving = self._frame(sender, stream, frame, size)
        if waiting is None:
            self._begin_with(moving)
        else:
            waiting.append(moving)
        try:
            await moving.handed_over
        except asyncio.CancelledError:
            self._end(moving)
            raise

    def post(self, sender: str, stream: MemoryStream, frame: bytes) -> bool:
        if stream in self._sending:
            return False
        if (sender, stream.peer) in self.held:
            self.carry(sender, stream, frame)
            return True
        size = stream.weigh(frame)
        if not self._passes_at_once(sender, stream, frame, size):
            self._begin_with(self._frame(sender, stream, frame, size))
        return True

    def _passes_at_once(self, sender: str, stream: MemoryStream, frame: bytes, size: int) -> bool:
        """Sends a frame on its way if it fits into a packet, and nothing of its stream is before it."""
        if size > PACKET_BYTES or stream.coming:
            return False
        now, way = asyncio.get_running_loop().time(), self._way(sender, stream.peer)
        way.near.up.carried += size
        way.far.down.carried += size
        connection = self._connection(sender, stream.peer)
        if connection.window > FIRST_BYTES:
            connection.note(now, 2 * way.seconds)
        stream.comes = comes = max(now + self._take(way), stream.comes)
        if self.stalled:
            comes = max(comes, self.stalled.get((sender, stream.peer), 0.0))
        stream.arrive_after(comes - now, frame)
        return True

    def _frame(self, sender: str, stream: MemoryStream, content: bytes, size: int) -> Frame:
        loop = asyncio.get_running_loop()
        connection = self._connection(sender, stream.peer)
        return Frame(sender, stream, content, float(size), loop.time(), loop.create_future(), connection)

    def _begin_with(self, frame: Frame) -> None:
        """As the first of its stream."""
        self._sending[frame.stream] = [frame]
        self._begin(frame)

    def _begin(self, frame: Frame) -> None:
        """It goes out onto its sender's uplink."""
        frame.began, frame.sending = asyncio.get_running_loop().time(), True
        frame.connection.frames += 1
        frame.connection.queued += frame.size
        if frame.connection.queued <= QUEUE_BYTES:
            frame.hand_over()
        uplink = self.accesses[frame.sender].up
        if uplink.rate == float("inf"):
            uplink.carried += frame.size
            self._left(frame)
        else:
            uplink.sent = self._left
            uplink.add(frame)

    def _stop(self, frame: Frame) -> None:
        """It goes out no more."""
        if frame.sending:
            frame.sending = False
            frame.connection.frames -= 1
            frame.connection.queued -= frame.size
            self.accesses[frame.sender].up.remove(frame)

    def _end(self, frame: Frame) -> None:
        """It has gone out, or will not: the next one of its stream may."""
        self._stop(frame)
        waiting = self._sending.get(frame.stream, [])
        if frame in waiting:
            was_first = waiting[0] is frame
            waiting.remove(frame)
            if not waiting:
                del self._sending[frame.stream]
            elif was_first:
                self._begin(waiting[0])

    def ends(self, stream: MemoryStream) -> None:
        """Nothing more of a stream goes out."""
        for frame in self._sending.pop(stream, ()):
            self._stop(frame)
            frame.hand_over()
        for frame in self._relaying.pop(stream, ()):
            assert frame.onward is not None
            frame.onward.up.remove(frame)
        self._credits.pop(stream, None)

    def _left(self, frame: Frame) -> None:
        """The link has sent its last byte, or would have, were there no acknowledgements to wait for."""
        if frame.onward is not None:
            self._relayed(frame)
            return
        waits = self._wait(frame)
        if waits:
            asyncio.get_running_loop().call_later(waits, self._away, frame, context=NOBODY)
        else:
            self._away(frame)

    def _wait(self, frame: Frame) -> float:
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

    def _away(self, frame: Frame) -> None:
        """Its last byte has left."""
        if frame.sending:
            self._end(frame)
            frame.hand_over()
            self._travel(frame)

    def _travel(self, frame: Frame) -> None:
        """It comes to the receiver's downlink after the latency of the way."""
        loop = asyncio.get_running_loop()
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

    def _send_off(self, frame: Frame, comes: float) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(comes, self._come, frame, frame.began + comes - loop.time(), context=NOBODY)

    # ---- through a relay

    def _reach(self, frame: Frame, relay: Access) -> None:
        """Its last byte is at the relay, which sends it on when it has sent on those of the stream before."""
        loop = asyncio.get_running_loop()
        through = relay.down.take(frame.began, loop.time(), frame.size)
        if through > loop.time():
            loop.call_at(through, self._queue, frame, relay, context=NOBODY)
        else:
            self._queue(frame, relay)

    def _queue(self, frame: Frame, relay: Access) -> None:
        if frame.stream.ended:
            return
        waiting = self._relaying.setdefault(frame.stream, [])
        waiting.append(frame)
        if len(waiting) == 1:
            self._send_on(frame, relay)

    def _send_on(self, frame: Frame, relay: Access) -> None:
        frame.began = asyncio.get_running_loop().time()
        if relay.up.rate == float("inf"):
            relay.up.carried += frame.size
            self._relayed(frame)
            return
        relay.up.sent = self._left
        relay.up.add(frame)

    def _relayed(self, frame: Frame) -> None:
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

    def _come(self, frame: Frame, began: float) -> None:
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
            self._travel(self._frame(sender, stream, frame, stream.weigh(frame)))

    def carry(self, sender: str, stream: MemoryStream, frame: bytes | None) -> float:
        """What is held while a direction is cut, and the end of a stream: they take no room on a link."""
        direction = (sender, stream.peer)
        if direction in self.held:
            self._unacknowledged.setdefault(direction, asyncio.get_running_loop().time())
            return super().carry(sender, stream, frame)
        loop = asyncio.get_running_loop()
        loop.call_at(self._comes(sender, stream), stream.arrive_after, 0.0, frame, context=NOBODY)
        return 0.0
