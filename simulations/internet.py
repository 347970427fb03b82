"""An internet of home links: streams share an uplink and a downlink fairly, as TCP's flows do over time.

A frame is sent in bursts. On the sender's uplink the streams that have something to send take turns of a burst; each
burst travels for the latency of the way (both access links, the distance of their regions, jitter), and takes its turn
on the receiver's downlink as it comes. So a heartbeat passes a tensor of many megabytes, and of two tensors on one link
each gets half. How many bytes a frame stands for is `weigh`'s to say (`sized.py`).

Not modelled: packet loss and what it does to TCP's window, slow start, acknowledgements, queues that overflow.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .network import MemoryNetwork, MemoryStream
from .virtual_time import NOBODY

BURST_BYTES = 1 << 16
BURSTS_A_FRAME = 16
"""A larger frame is sent in so many bursts, each of which costs two events."""

Weigh = Callable[[bytes], int]


@dataclass(slots=True)
class _Frame:
    """One on its way; `left`: bytes still to be sent."""

    sender: str
    stream: MemoryStream
    content: bytes
    burst: float
    left: float
    sent: asyncio.Future[None]


@dataclass
class Uplink:
    """Bytes a second (inf: no limit), shared by the frames in `queue`, a burst each in turn."""

    rate: float = float("inf")
    carried: float = 0.0
    """Bytes so far."""

    queue: deque[_Frame] = field(default_factory=deque)
    busy: bool = False


@dataclass
class Downlink:
    rate: float = float("inf")
    carried: float = 0.0
    free: float = 0.0
    """When it has passed on all that has come so far."""


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

    def distance_to(self, other: "Access", distances: Mapping[tuple[str, str], float]) -> float:
        """Seconds between their regions, of which `distances` has them by both names in order."""
        if self.region is None or other.region is None or self.region == other.region:
            return 0.0
        return distances.get((min(self.region, other.region), max(self.region, other.region)), 0.0)


@dataclass
class Internet(MemoryNetwork):
    """`accesses`: of every node, by name; `distances`: seconds between two regions, by both their names in order."""

    accesses: dict[str, Access] = field(default_factory=dict)
    distances: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def draw(self, sender: str, receiver: str) -> float:
        near, far = self.accesses[sender], self.accesses[receiver]
        way = near.latency + far.latency + near.distance_to(far, self.distances)
        jitter = near.jitter + far.jitter
        return way + self.random.uniform(0.0, jitter) if jitter else way

    async def transmit(self, sender: str, stream: MemoryStream, frame: bytes) -> None:
        if (sender, stream.peer) in self.held:
            self.carry(sender, stream, frame)
            return
        size = float(stream.weigh(frame))
        uplink = self.accesses[sender].up
        sent = asyncio.get_running_loop().create_future()
        burst = max(BURST_BYTES, size / BURSTS_A_FRAME)
        uplink.queue.append(_Frame(sender, stream, frame, burst, size, sent))
        if not uplink.busy:
            self._serve(uplink)
        if not sent.done():
            await sent

    def _serve(self, uplink: Uplink) -> None:
        """Has the next burst leave; those who no longer wait for their frame are passed over."""
        loop = asyncio.get_running_loop()
        while uplink.queue:
            frame = uplink.queue.popleft()
            if frame.sent.cancelled() or frame.stream.ended:
                if not frame.sent.done():
                    frame.sent.set_result(None)
                continue
            size = min(frame.left, frame.burst)
            if uplink.rate == float("inf"):
                self._leave(uplink, frame, size)
                continue
            uplink.busy = True
            loop.call_later(size / uplink.rate, self._left, uplink, frame, size, context=NOBODY)
            return
        uplink.busy = False

    def _left(self, uplink: Uplink, frame: _Frame, size: float) -> None:
        self._leave(uplink, frame, size)
        self._serve(uplink)

    def _leave(self, uplink: Uplink, frame: _Frame, size: float) -> None:
        """A burst has left; it comes to the receiver's downlink after the latency of the way."""
        uplink.carried += size
        frame.left -= size
        last = frame.left <= 0
        if last:
            if not frame.sent.done():
                frame.sent.set_result(None)
        else:
            uplink.queue.append(frame)
        loop = asyncio.get_running_loop()
        loop.call_at(self._comes(frame.sender, frame.stream), self._come, frame, size, last, context=NOBODY)

    def _comes(self, sender: str, stream: MemoryStream) -> float:
        """When what leaves now comes to the other side: never before what has left earlier."""
        now = asyncio.get_running_loop().time()
        stream.comes = max(now + self.draw(sender, stream.peer), stream.comes)
        return stream.comes

    def _come(self, frame: _Frame, size: float, last: bool) -> None:
        now = asyncio.get_running_loop().time()
        downlink = self.accesses[frame.stream.peer].down
        downlink.carried += size
        downlink.free = max(now, downlink.free) + size / downlink.rate
        if last:
            through = max(downlink.free, self.stalled.get((frame.sender, frame.stream.peer), 0.0))
            frame.stream.arrive_after(through - now, frame.content)

    def carry(self, sender: str, stream: MemoryStream, frame: bytes | None) -> float:
        """What is held while a direction is cut, and the end of a stream: they take no room on a link."""
        if (sender, stream.peer) in self.held:
            return super().carry(sender, stream, frame)
        loop = asyncio.get_running_loop()
        loop.call_at(self._comes(sender, stream), stream.arrive_after, 0.0, frame, context=NOBODY)
        return 0.0
