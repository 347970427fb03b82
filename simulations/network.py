"""A network and a directory in memory, on the running loop's time: streams with latency, peers that can be killed.

Implements the seams `swarm.transport.Transport` and `swarm.directory.Directory`. Frames keep their order within a
stream. Killing a peer ends its streams and cancels everything that it runs, as SIGKILL does; its directory records
stay until they expire.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UnreachableError, WireError
from ..swarm.directory import Record
from ..swarm.transport import MAX_FRAME_BYTES, StreamHandler


class MemoryStream:
    """One end of an in-memory stream. `latency()` gives the seconds until a frame arrives."""

    def __init__(self, peer: str, latency: Callable[[], float]) -> None:
        self.peer = peer
        self.other: MemoryStream
        self.ended = False
        self._latency = latency
        self._frames: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._arrival = 0.0

    async def send(self, frame: bytes) -> None:
        if self.ended or self.other.ended:
            raise UnreachableError(f"the stream to {self.peer} has ended")
        if len(frame) > MAX_FRAME_BYTES:
            raise WireError(f"a frame of {len(frame)} bytes is above the limit of {MAX_FRAME_BYTES}")
        loop = asyncio.get_running_loop()
        # Strictly later than the frame before: the loop's timers keep no order among equals.
        self._arrival = max(math.nextafter(self._arrival, math.inf), loop.time() + self._latency())
        loop.call_at(self._arrival, self.other._arrive, frame)
        await asyncio.sleep(0)

    def _arrive(self, frame: bytes | None) -> None:
        if self.ended:
            return
        if frame is None:
            self.ended = True
        else:
            self._frames.append(frame)
        self._wake.set()

    async def receive(self) -> bytes:
        while not self._frames:
            if self.ended:
                raise UnreachableError(f"the stream to {self.peer} has ended")
            self._wake.clear()
            await self._wake.wait()
        return self._frames.popleft()

    def close(self) -> None:
        if self.ended:
            return
        self.ended = True
        self._wake.set()
        # What is already on its way still arrives; then the other side sees the end.
        loop = asyncio.get_running_loop()
        self._arrival = max(math.nextafter(self._arrival, math.inf), loop.time())
        loop.call_at(self._arrival, self.other._arrive, None)


@dataclass
class MemoryNetwork:
    """All the peers of one simulated network. Latencies are drawn uniformly from `latency` (seconds), seeded."""

    seed: int = 0
    latency: tuple[float, float] = (0.001, 0.005)
    nodes: dict[str, "MemoryTransport"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def transport(self, peer_id: str) -> "MemoryTransport":
        node = MemoryTransport(self, peer_id)
        self.nodes[peer_id] = node
        return node

    def draw(self) -> float:
        return self.random.uniform(*self.latency)


class MemoryTransport:
    """One peer's attachment to the network; also owns that peer's tasks, so that they can be killed together."""

    def __init__(self, network: MemoryNetwork, peer_id: str) -> None:
        self._network = network
        self.peer_id = peer_id
        self.addresses: tuple[str, ...] = (f"memory/{peer_id}",)
        self.killed = False
        self._handler: StreamHandler | None = None
        self._streams: list[MemoryStream] = []
        self._tasks: dict[asyncio.Task[Any], None] = {}

    async def serve(self, handler: StreamHandler) -> None:
        self._handler = handler

    async def open(self, peer: str, addresses: Sequence[str] = ()) -> MemoryStream:
        await asyncio.sleep(self._network.draw())
        other = self._network.nodes.get(peer)
        if other is None or other.killed or other._handler is None or self.killed:
            raise UnreachableError(f"{peer} cannot be reached")
        near = MemoryStream(peer, self._network.draw)
        far = MemoryStream(self.peer_id, self._network.draw)
        near.other, far.other = far, near
        self._streams.append(near)
        other._streams.append(far)
        other.spawn(other._serve(far))
        return near

    async def _serve(self, stream: MemoryStream) -> None:
        assert self._handler is not None
        try:
            await self._handler(stream)
        finally:
            stream.close()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs `work` as this peer: it dies with the peer."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    def kill(self) -> None:
        """Ends the peer at once, in the middle of whatever it does."""
        self.killed = True
        for stream in self._streams:
            stream.close()
        for task in list(self._tasks):
            task.cancel()

    async def close(self) -> None:
        for stream in self._streams:
            stream.close()
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()


class MemoryDirectory:
    """Records of a simulated network, shared by all its peers."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, int, str], tuple[float, Record]] = {}

    async def publish(self, record: Record, lifetime: float) -> None:
        expires = asyncio.get_running_loop().time() + lifetime
        self._records[record.run, record.stage, record.peer] = (expires, record)

    async def read(self, run: str, stage: int) -> tuple[Record, ...]:
        now = asyncio.get_running_loop().time()
        found = [
            record
            for (in_run, at_stage, _), (expires, record) in self._records.items()
            if in_run == run and at_stage == stage and expires > now
        ]
        return tuple(sorted(found, key=lambda record: record.peer))
