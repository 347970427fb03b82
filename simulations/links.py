"""How a node is attached: its uplink, its downlink, and its way to another one.

The frames on an uplink share it equally (processor sharing); a downlink passes on what comes in the order in which it
comes. Knows no protocol: what TCP adds is `tcp.py`'s, what a frame goes through `internet.py`'s.
"""

import asyncio
import heapq
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import numpy

from .nat import Nat, meet
from .network import MemoryStream
from .tcp import Connection
from .virtual_time import NOBODY

ROUNDING_BYTES = 1e-3
"""A frame of which no more is left has been sent."""

MEMORY_SECONDS, REMEMBERED = 60.0, 32
"""For how long, and how many frames, a downlink looks back: what came before has passed."""

INSTANT_SECONDS = 1e-12


@dataclass(slots=True, eq=False)
class Frame:
    """One on its way; `ends`: what each frame of its uplink will have been given when it has been sent;
    `handed_over`: its sender need not wait for it any more."""

    sender: str
    stream: MemoryStream
    content: bytes
    size: float
    began: float
    handed_over: asyncio.Future[None]
    connection: Connection
    ends: float = 0.0
    sending: bool = False
    """Whether it is the first of its stream, on its way out."""

    gone: bool = True
    """Whether it is on no uplink."""

    onward: "Access | None" = None
    """The relay that sends it on, once it has left its sender."""

    def hand_over(self) -> None:
        if not self.handed_over.done():
            self.handed_over.set_result(None)


@dataclass(eq=False)
class Uplink:
    """Bytes a second (inf: no limit), which the frames on it share equally."""

    rate: float = float("inf")
    carried: float = 0.0
    """Bytes so far."""

    sent: Callable[[Frame], None] = field(default=lambda frame: None)
    _given: float = 0.0
    """Bytes that a frame which was always on it would have been given."""

    _at: float = 0.0
    _frames: list[tuple[float, int, Frame]] = field(default_factory=list)
    _count: int = 0
    _number: int = 0
    _timer: asyncio.TimerHandle | None = None

    def change(self, factor: float) -> None:
        """Its rate is `factor` times what it was, from now on."""
        self._advance()
        self.rate *= factor
        self._arm()

    def add(self, frame: Frame) -> None:
        self._advance()
        frame.began, frame.gone = self._at, False
        frame.ends = self._given + frame.size
        self._number += 1
        heapq.heappush(self._frames, (frame.ends, self._number, frame))
        self._count += 1
        self._arm()

    def remove(self, frame: Frame) -> None:
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
        times = self._possibly_busy_since(now)
        if not times:
            return now
        starts, ends, sizes = numpy.array(self._recent).T
        since = numpy.array(times)[:, None]
        # Of what came evenly from its start to its end, the part that came since then.
        shares = numpy.clip((ends - since) / numpy.maximum(ends - starts, INSTANT_SECONDS), 0.0, 1.0)
        came = numpy.where(starts >= since, 1.0, shares) @ sizes
        return now + max(0.0, float((came - (now - since[:, 0]) * self.rate).max())) / self.rate

    def _possibly_busy_since(self, now: float) -> list[float]:
        """When frames began since when more may have come than could pass, be all counted that had not come by then."""
        ends = [end for _, end, _ in self._recent]
        newest = list(accumulate(size for _, _, size in reversed(self._recent)))
        rate, last = self.rate, len(ends) - 1
        return [start for start, _, _ in self._recent if newest[last - bisect_left(ends, start)] > (now - start) * rate]

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
class Way:
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
