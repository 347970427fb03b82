"""A network in memory, on the running loop's time: nodes, links and streams between them, and what can go wrong.

Implements the seam `swarm.transport.Transport`. A frame takes its turn on the sender's uplink, travels for a latency
drawn anew for each frame, and takes its turn on the receiver's downlink; `send` returns when the frame has left, so
streams that share a link take turns of a frame, which is how bandwidth is shared. Frames keep their order within a
stream; acknowledgements are not modelled, nor are limits on what a receiver has not read yet.

Faults: `kill` ends a node as SIGKILL does, in the middle of whatever it runs, or silently, as one that is switched off;
`freeze` stops it as SIGSTOP does, and its connections stay; `cut` lets nothing through in one direction or both: frames
are held, as TCP sends them again, and arrive after `heal`; `stall` holds a link for a while. A killed node's name may
be used again by a new one.
"""

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UnreachableError, WireError
from ..swarm.transport import MAX_FRAME_BYTES, Contact, Contacts, StreamHandler
from .virtual_time import NOBODY, OWNER, VirtualTimeLoop

DIAL_PAUSES = (0.5,) * 10
"""Seconds between the attempts to reach somebody who does not answer."""


class MemoryStream:
    """One end of an in-memory stream: what `local` sends reaches the end at `peer`."""

    def __init__(self, network: "MemoryNetwork", local: str, peer: str, contact: Contact) -> None:
        self.peer = peer
        self.contact = contact
        self.other: MemoryStream
        self.ended = False
        self.relayed = False
        self._network = network
        self._local = local
        self._frames: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._arrives_in = NOBODY
        """Whose it is when a frame arrives: with `_take` it is this node's."""

        self._arrival = 0.0
        self.weigh = network.weigher()
        self.comes = 0.0
        """When what has left last comes to the other side's link, for a network that looks at links."""

        self.coming = 0
        """Frames that have left and have not come to the other side's link."""

    async def send(self, frame: bytes) -> None:
        if self.ended:
            raise UnreachableError(f"the stream to {self.peer} has ended")
        if len(frame) > MAX_FRAME_BYTES:
            raise WireError(f"a frame of {len(frame)} bytes is above the limit of {MAX_FRAME_BYTES}")
        await self._network.transmit(self._local, self, frame)

    def post(self, frame: bytes) -> bool:
        return not self.ended and self._network.post(self._local, self, frame)

    def arrive_after(self, seconds: float, frame: bytes | None) -> None:
        """Has a frame, or the end (None), come out at the other side; never before what was sent earlier."""
        loop = asyncio.get_running_loop()
        self._arrival = max(self._arrival, loop.time() + seconds)
        loop.call_at(self._arrival, self.other._arrive, frame, context=self.other._arrives_in)

    def _arrive(self, frame: bytes | None) -> None:
        if self.ended:
            return
        if frame is None:
            self.ended = True
            self._network.ends(self)
        elif self._take is not None and self._reader is not None and not self._reader.done():
            self._hand_over(frame, self._take, self._reader)
            return
        else:
            self._frames.append(frame)
        self._wake()

    def _hand_over(self, frame: bytes, take: Callable[[bytes], bool], waiting: asyncio.Future[None]) -> None:
        self.contact.heard = asyncio.get_running_loop().time()
        try:
            if not take(frame):
                waiting.set_result(None)
        except WireError as error:
            waiting.set_exception(error)

    async def each(self, take: Callable[[bytes], bool]) -> None:
        while self._frames:
            if not take(await self.receive()):
                return
        if not self.ended:
            self._reader = asyncio.get_running_loop().create_future()
            self._take, self._arrives_in = take, contextvars.copy_context()
            try:
                await self._reader
            finally:
                self._take, self._arrives_in, self._reader = None, NOBODY, None
        if self.ended:
            raise UnreachableError(f"the stream to {self.peer} has ended")

    async def receive(self) -> bytes:
        while not self._frames:
            if self.ended:
                raise UnreachableError(f"the stream to {self.peer} has ended")
            reader = self._reader = asyncio.get_running_loop().create_future()
            try:
                await reader
            finally:
                if self._reader is reader:  # a later one may wait by the time an earlier one has been cancelled
                    self._reader = None
        self.contact.heard = asyncio.get_running_loop().time()
        return self._frames.popleft()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def close(self, *, silent: bool = False) -> None:
        """Ends both sides of it; with `silent` only this one."""
        if self.ended:
            return
        self.ended = True
        self._network.ends(self)
        self._wake()
        if not silent:
            self._network.carry(self._local, self, None)


@dataclass
class Link:
    """A node's attachment: bytes a second up and down (None: no limit), and when each direction is free again."""

    up: float | None = None
    down: float | None = None
    up_free: float = 0.0
    down_free: float = 0.0


@dataclass
class MemoryNetwork:
    """All the nodes of one simulated network. Latencies are drawn uniformly from `latency` (seconds), seeded."""

    seed: int = 0
    latency: tuple[float, float] = (0.001, 0.005)
    nodes: dict[str, "MemoryTransport"] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    weigher: Callable[[], Callable[[bytes], int]] = field(default=lambda: len)
    """For each direction of a stream, what tells how many bytes a frame stands for."""

    held: dict[tuple[str, str], list[tuple[MemoryStream, bytes | None]]] = field(default_factory=dict)
    """What has been sent in directions that are cut."""

    stalled: dict[tuple[str, str], float] = field(default_factory=dict)
    dial_pauses: Sequence[float] = DIAL_PAUSES

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def transport(self, peer_id: str, link: Link | None = None) -> "MemoryTransport":
        """A new node; one of the same name must have been killed before."""
        before = self.nodes.get(peer_id)
        if before is not None:
            before.is_back()
        self.forget(peer_id)
        node = MemoryTransport(self, peer_id)
        self.nodes[peer_id] = node
        if link is not None:
            self.links[peer_id] = link
        return node

    def draw(self, sender: str, receiver: str) -> float:
        """What a frame takes from one to the other, in seconds."""
        return self.random.uniform(*self.latency)

    def dialling(self, caller: str, peer: str) -> float:
        """Seconds until a stream is open."""
        return self.draw(caller, peer)

    def connected(self, caller: str, peer: str) -> None:
        """A stream is open between two nodes."""

    def forget(self, name: str) -> None:
        """A node has no connections any more."""

    # ---- what frames do

    async def transmit(self, sender: str, stream: MemoryStream, frame: bytes) -> None:
        """Returns when a frame has left the sender."""
        leaves_in = self.carry(sender, stream, frame)
        if leaves_in:
            await asyncio.sleep(leaves_in)

    def post(self, sender: str, stream: MemoryStream, frame: bytes) -> bool:
        """Sends a small frame, for which nobody waits; whether it could."""
        self.carry(sender, stream, frame)
        return True

    def ends(self, stream: MemoryStream) -> None:
        """A stream takes nothing any more; what is under way of it, a network that knows of that may drop."""

    def carry(self, sender: str, stream: MemoryStream, frame: bytes | None) -> float:
        """Sends a frame on its way; the seconds until it has left the sender."""
        direction = (sender, stream.peer)
        if direction in self.held:
            self.held[direction].append((stream, frame))
            return 0.0
        now = asyncio.get_running_loop().time()
        left, arrives = self._pass(sender, stream.peer, 0 if frame is None else stream.weigh(frame), now)
        arrives = max(arrives, self.stalled.get(direction, 0.0))
        stream.arrive_after(arrives - now, frame)
        return left - now

    def _pass(self, sender: str, receiver: str, size: int, now: float) -> tuple[float, float]:
        """When `size` bytes have left the sender, and when they have arrived."""
        near, far = self.links.get(sender), self.links.get(receiver)
        left = now
        if near is not None and near.up is not None:
            left = near.up_free = max(now, near.up_free) + size / near.up
        arrives = left + (self.draw(sender, receiver) if size else 0.0)
        if far is not None and far.down is not None:
            arrives = far.down_free = max(arrives, far.down_free) + size / far.down
        return left, arrives

    # ---- faults

    def cut(self, one: str, other: str, *, both: bool = True) -> None:
        """Lets nothing through from `one` to `other`, and with `both` nothing back either."""
        self.held.setdefault((one, other), [])
        if both:
            self.held.setdefault((other, one), [])

    def heal(self, one: str, other: str) -> None:
        """Both directions work again; what was held arrives."""
        for direction in ((one, other), (other, one)):
            for stream, frame in self.held.pop(direction, []):
                self.release(direction[0], stream, frame)

    def release(self, sender: str, stream: MemoryStream, frame: bytes | None) -> None:
        """Sends on what was held."""
        stream.arrive_after(self.draw(sender, stream.peer), frame)

    def is_cut(self, one: str, other: str) -> bool:
        return (one, other) in self.held or (other, one) in self.held

    def answers(self, caller: str, peer: str) -> bool:
        """Whether a caller hears anything, be it that nobody is there."""
        node = self.nodes.get(peer)
        return not self.is_cut(caller, peer) and not (node is not None and node.silent)

    def stall(self, one: str, other: str, seconds: float) -> None:
        """Nothing that is sent from now on between two nodes arrives before `seconds` are over."""
        until = asyncio.get_running_loop().time() + seconds
        self.stalled[one, other] = self.stalled[other, one] = until


class MemoryTransport:
    """One node's attachment to the network; also owns that node's tasks: they are killed and frozen together."""

    def __init__(self, network: MemoryNetwork, peer_id: str) -> None:
        self._network = network
        self.peer_id = peer_id
        self.contacts = Contacts()
        self.addresses: tuple[str, ...] = (f"memory/{peer_id}",)
        self.killed = False
        self.silent = False
        """Whether nothing answers for it, not even that it is gone."""

        self._handler: StreamHandler | None = None
        self._streams: list[MemoryStream] = []
        self._most_streams = MAX_KEPT_ENDED
        """As soon as there are more, those that have ended are let go."""

        self._tasks: dict[asyncio.Task[Any], None] = {}

    async def serve(self, handler: StreamHandler) -> None:
        self._handler = handler

    async def open(self, peer: str, addresses: Sequence[str] = ()) -> MemoryStream:
        await asyncio.sleep(self._network.dialling(self.peer_id, peer))
        for pause in self._network.dial_pauses:
            if self._network.answers(self.peer_id, peer):
                break
            await asyncio.sleep(pause)
        other = self._network.nodes.get(peer)
        gone = other is None or other.killed or other._handler is None or self.killed
        if other is None or gone or self._network.is_cut(self.peer_id, peer):
            raise UnreachableError(f"{peer} cannot be reached")
        self._network.connected(self.peer_id, peer)
        near = MemoryStream(self._network, self.peer_id, peer, self.contacts.of(peer))
        far = MemoryStream(self._network, peer, self.peer_id, other.contacts.of(self.peer_id))
        near.other, far.other = far, near
        self._keep(near)
        other._keep(far)
        other.spawn(other._serve(far))
        return near

    def _keep(self, stream: MemoryStream) -> None:
        if len(self._streams) > self._most_streams:
            self._streams = [kept for kept in self._streams if not kept.ended]
            self._most_streams = max(MAX_KEPT_ENDED, 2 * len(self._streams))
        self._streams.append(stream)

    async def _serve(self, stream: MemoryStream) -> None:
        assert self._handler is not None
        try:
            await self._handler(stream)
        finally:
            stream.close()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs `work` as this node: it dies and freezes with it."""
        context = contextvars.copy_context()
        context.run(OWNER.set, self.peer_id)
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None), context=NOBODY)
        return task

    def kill(self, *, silent: bool = False) -> None:
        """Ends the node at once, in the middle of whatever it does. With `silent` as a machine does that is switched
        off: its streams do not end at the other side before there is another node of its name."""
        self.killed, self.silent = True, silent
        for stream in self._streams:
            stream.close(silent=silent)
        if not silent:
            self._network.forget(self.peer_id)
        for task in list(self._tasks):
            task.cancel()
        self.thaw()

    def is_back(self) -> None:
        """Another node has its name: what is sent on old streams is answered with their end."""
        if self.silent:
            self.silent = False
            for stream in self._streams:
                self._network.carry(self.peer_id, stream, None)

    def freeze(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.freeze(self.peer_id)

    def thaw(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.thaw(self.peer_id)

    async def close(self) -> None:
        """Ends the node: whoever reaches for it finds nobody, until there is another one of its name."""
        self._handler = None
        for stream in self._streams:
            stream.close()
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()


MAX_KEPT_ENDED = 64
