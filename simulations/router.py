"""The internet between emulated machines: a thread that moves packets from TUN device to TUN device as links would.

A packet leaves its sender's uplink when those before it have, or is dropped if they take longer than the buffer holds;
it takes the latency of the way (`internet.py` has the same), is lost at the rate of either end, and passes the
receiver's downlink likewise; if there is a relay between, its links first. Packets of two nodes are not reordered.

`Router.busiest` is the share of a core that it took in its busiest seconds: above `MOST_BUSY` it is late itself, and
what it emulated counts for nothing.
"""

import contextlib
import heapq
import os
import random
import select
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..errors import EmulationError
from .links import Access, Downlink, Uplink

MOST_BUSY = 0.7
WINDOW_SECONDS = 5.0
"""Over which its share of a core is taken."""

PACKET_BYTES = 65536
BATCH = 64
"""Packets read from one device before the next one's turn."""


@dataclass(eq=False)
class Port:
    """One node's: its address (IPv4, four bytes), its TUN device, and how it is attached."""

    address: bytes
    tun: int
    access: Access
    name: str


@dataclass
class Router:
    """`distances`: seconds between two regions, by both their names in order."""

    distances: Mapping[tuple[str, str], float] = field(default_factory=dict)
    seed: int = 0
    dropped: int = 0
    """Packets for which a buffer was too full."""

    lost: int = 0
    busiest: float = 0.0
    _ports: dict[bytes, Port] = field(default_factory=dict)
    _cuts: list[Callable[[Port, Port], bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._poll = select.epoll()
        self._by_tun: dict[int, Port] = {}
        self._due: list[tuple[float, int, Port, Port, bytes, int]] = []
        """When, from whom, to whom, what, and how many links are behind it."""

        self._number = 0
        self._free: dict[int, float] = {}
        """When a link has sent all that it holds, by the link's id."""

        self._comes: dict[tuple[Port, Port, int], float] = {}
        self._lock = threading.Lock()
        self._ending, self._ended = os.pipe()
        self._poll.register(self._ending, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="router", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Returns when it has ended; closes every device."""
        os.write(self._ended, b"\0")
        self._thread.join()
        for tun in self._by_tun:
            os.close(tun)
        for end in (self._ending, self._ended):
            os.close(end)
        self._poll.close()

    def attach(self, port: Port) -> None:
        """A node's packets come and go from now on; one of the same address before it is gone."""
        before = self._ports.get(port.address)
        if before is not None:
            self.detach(before)
        with self._lock:
            self._ports[port.address] = self._by_tun[port.tun] = port
        self._poll.register(port.tun, select.EPOLLIN)

    def detach(self, port: Port) -> None:
        """Nothing comes from it or goes to it any more."""
        with self._lock:
            if self._ports.get(port.address) is not port:
                return
            del self._ports[port.address]
            with contextlib.suppress(OSError):
                self._poll.unregister(port.tun)
            del self._by_tun[port.tun]
            os.close(port.tun)

    def cut(self, between: Callable[[Port, Port], bool]) -> Callable[[], None]:
        """Drops all packets from one port to another of which this is true; the answer ends that."""
        self._cuts = [*self._cuts, between]

        def heal() -> None:
            self._cuts = [cut for cut in self._cuts if cut is not between]

        return heal

    # ---- the thread

    def _run(self) -> None:
        began, worked = time.monotonic(), time.thread_time()
        while True:
            wait = -1.0 if not self._due else max(0.0, self._due[0][0] - time.monotonic())
            ready = self._poll.poll(wait)
            with self._lock:
                for tun, _ in ready:
                    if tun == self._ending:
                        return
                    port = self._by_tun.get(tun)
                    if port is not None:
                        self._take(port)
                self._go_on()
            now = time.monotonic()
            if now - began >= WINDOW_SECONDS:
                self.busiest = max(self.busiest, (time.thread_time() - worked) / (now - began))
                began, worked = now, time.thread_time()

    def _take(self, port: Port) -> None:
        for _ in range(BATCH):
            try:
                packet = os.read(port.tun, PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:  # its process is gone
                with contextlib.suppress(OSError):
                    self._poll.unregister(port.tun)
                return
            if packet and packet[0] >> 4 == 4:
                self._send(port, packet)

    def _send(self, sender: Port, packet: bytes) -> None:
        receiver = self._ports.get(packet[16:20])
        if receiver is None or any(cut(sender, receiver) for cut in self._cuts):
            return
        near, far = sender.access, receiver.access
        loss = near.loss + far.loss
        if loss and self._chance.random() < loss:
            self.lost += 1
            return
        self._pass(sender, receiver, packet, 0)

    def _pass(self, sender: Port, receiver: Port, packet: bytes, behind: int) -> None:
        """Takes a packet on its way, of which so many links are behind it, as far as it comes now."""
        links = _links(sender.access, receiver.access)
        while behind < len(links):
            link, holder, towards = links[behind]
            through = self._through(link, holder.buffer, len(packet))
            if through is None:
                return
            link.carried += len(packet)
            behind += 1
            if towards is not None:
                through = self._arrives(through, (sender, receiver, behind), holder, towards)
            if through > time.monotonic():
                self._number += 1
                heapq.heappush(self._due, (through, self._number, sender, receiver, packet, behind))
                return
        if self._by_tun.get(receiver.tun) is receiver:
            with contextlib.suppress(OSError):  # its process is gone, or takes no more
                os.write(receiver.tun, packet)

    def _arrives(self, leaves: float, way: tuple[Port, Port, int], near: Access, far: Access) -> float:
        """When what leaves one link comes to the next, in the order of what left before."""
        jitter = near.jitter + far.jitter
        comes = leaves + near.way_to(far, self.distances) + (self._chance.uniform(0.0, jitter) if jitter else 0.0)
        comes = self._comes[way] = max(comes, self._comes.get(way, 0.0))
        return comes

    def _through(self, link: Uplink | Downlink, buffer: float, size: int) -> float | None:
        """When a packet has passed a link; None if there is no room for it."""
        now = time.monotonic()
        if link.rate == float("inf"):
            return now
        begins = max(now, self._free.get(id(link), 0.0))
        if begins - now > buffer:
            self.dropped += 1
            return None
        self._free[id(link)] = begins + size / link.rate
        return begins + size / link.rate

    def _go_on(self) -> None:
        """Does what is due."""
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, sender, receiver, packet, behind = heapq.heappop(self._due)
            self._pass(sender, receiver, packet, behind)


def _links(near: Access, far: Access) -> tuple[tuple[Uplink | Downlink, Access, Access | None], ...]:
    """What a packet passes: each link, whose it is, and to whom it leads over the internet, if not into its holder."""
    relay = near.relay_to(far)
    if relay is None:
        return (near.up, near, far), (far.down, far, None)
    return (near.up, near, relay), (relay.down, relay, None), (relay.up, relay, far), (far.down, far, None)


def check_router(busiest: float) -> None:
    """Raises `EmulationError` if a router took so much of a core that nothing it emulated counts."""
    if busiest > MOST_BUSY:
        raise EmulationError(
            f"the router took {busiest:.0%} of a core; above {MOST_BUSY:.0%} it is late itself, and nothing of this "
            "counts. Fewer peers, slower links or larger packets (--mtu) help"
        )
