"""A newcomer and its donors on a network in memory: real snapshots of made-up states, in parts of 256 KiB."""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.devices import SimulatedDevice
from swarm_peer.simulations.network import Link, MemoryNetwork, MemoryTransport
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import snapshots
from swarm_peer.swarm.catching_up import BEYOND_EVERY_PART, Snapshot, fetch_snapshot
from swarm_peer.swarm.exchange import Meter, Pool
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.messages import Body
from swarm_peer.swarm.serving import Incoming, serve_exchanges
from swarm_peer.swarm.snapshots import Snapshots
from swarm_peer.swarm.versions import VersionStore

RUN, STAGE = "run", 1
PART = 128 << 10
VERSION = 5
MOST = 256 << 20
SIZE = 32 * PART + 777
PARTS = -(-SIZE // PART)
RATE = 3e6
"""Bytes a second of the newcomer's link; each donor's carries half of that."""

SILENCE = 3.0
Serve = Callable[[Incoming, pb.Fetch], Awaitable[None]]


def state_of(version: int, size: int = SIZE) -> bytes:
    return random.Random(f"{version}/{size}").randbytes(size)


STATES = {version: state_of(version) for version in (4, VERSION, 6)}


class Exporting:
    """As much of a backend as a donor needs: its states are their bytes."""

    def __init__(self) -> None:
        self.exports = 0

    def export(self, state: bytes) -> bytes:
        self.exports += 1
        return state


class Donor:
    """A node that serves a snapshot, honestly unless `lie` answers in its place."""

    def __init__(self, world: "World", name: str, versions: Sequence[int], up: float | None) -> None:
        self.name = name
        self.backend = Exporting()
        self.device = SimulatedDevice(random.Random(name))
        self.snapshots = Snapshots(RUN, STAGE, self.backend, self.device, MOST)  # type: ignore[arg-type]
        self.versions = VersionStore()
        for version in versions:
            self.versions.put(version, STATES[version], b"")
        self.asked: list[int] = []
        """The parts that it was asked for, in that order."""

        self.given = 0
        """Parts that it has sent."""

        self.serving: list[asyncio.Task[Any]] = []
        self.lie: Serve | None = None
        self.after: dict[int, Callable[[], None]] = {}
        """What happens as soon as it has been asked for so many parts."""

        self.meter = Meter()
        self.node: MemoryTransport = world.network.transport(name, Link(up=up))

    async def start(self) -> None:
        await self.node.serve(lambda stream: serve_exchanges(stream, self.meter, lambda: 0, self._dispatch))

    async def _dispatch(self, incoming: Incoming, body: Body, payload: bytes) -> None:
        if isinstance(body, pb.Watch):
            await Heartbeats(pb.Heartbeat).serve(incoming)
            return
        assert isinstance(body, pb.Fetch)
        task = asyncio.current_task()
        assert task is not None
        self.serving.append(task)
        if body.part != BEYOND_EVERY_PART:
            self.asked.append(body.part)
            self.after.pop(len(self.asked), lambda: None)()
        if self.lie is not None:
            await self.lie(incoming, body)
        else:
            await self.snapshots.serve(incoming, body, self.versions)
        self.given += body.part != BEYOND_EVERY_PART

    def kill(self) -> None:
        """From outside: what runs when it is called may be a task of its own, which would then be cancelled first."""
        asyncio.get_running_loop().call_soon(self.node.kill)

    def freeze(self) -> None:
        asyncio.get_running_loop().call_soon(self.node.freeze)


@dataclass
class World:
    """A newcomer, its link, and its donors."""

    latency: float = 0.01
    down: float | None = RATE
    donors: dict[str, Donor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network = MemoryNetwork(latency=(self.latency, self.latency))
        self.meter = Meter()
        self.pool = Pool(self.network.transport("newcomer", Link(down=self.down)), self.meter, silence=SILENCE)

    async def add(self, name: str, versions: Sequence[int] = (VERSION,), up: float | None = RATE / 2) -> Donor:
        made = self.donors[name] = Donor(self, name, versions, up)
        await made.start()
        return made

    async def fetch(self, version: int | None = None, max_bytes: int = SIZE, max_payload: int = MOST) -> Snapshot:
        members = [pb.Member(peer=name) for name in self.donors]
        return await fetch_snapshot(self.pool, members, RUN, STAGE, max_payload, version, max_bytes=max_bytes)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "STATE_PART_BYTES", PART)


def honest(question: pb.Fetch, data: bytes = STATES[VERSION], version: int = VERSION) -> tuple[pb.Fetched, bytes]:
    """What an honest donor of this state answers."""
    parts = -(-len(data) // PART)
    length = -(-len(data) // parts)
    cut = [data[at : at + length] for at in range(0, len(data), length)]
    answer = pb.Fetched(version=version, parts=parts, size=len(data))
    if question.part < parts:
        return answer, cut[question.part]
    answer.digests.extend(hashlib.sha256(part).digest() for part in cut)
    return answer, b""


def in_virtual_time(body: Coroutine[Any, Any, None], limit: float = 1000.0) -> None:
    run(body, limit=limit)


def assert_right(snapshot: Snapshot, version: int = VERSION) -> None:
    assert snapshot.version == version
    assert hashlib.sha256(snapshot.data).digest() == hashlib.sha256(STATES[version]).digest()


def now() -> float:
    return asyncio.get_running_loop().time()
