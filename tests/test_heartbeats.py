"""Heartbeats for many who watch, and streams whose frames are taken as they come, in virtual time."""

import asyncio

import pytest
from swarm_peer.errors import UnreachableError, WireError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.network import MemoryNetwork
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.exchange import Channel, Meter
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.messages import Body, pack
from swarm_peer.swarm.serving import Incoming, serve_exchanges
from swarm_peer.swarm.transport import Stream


class Callee:
    """Answers Watch, and counts the heartbeats it makes; `channels`: of those who watch, by name."""

    def __init__(self, network: MemoryNetwork, seconds: float = 1.0) -> None:
        self.transport = network.transport("callee")
        self.made: list[float] = []
        self.channels: dict[str, Channel] = {}
        self.heartbeats = Heartbeats(self._make, lambda: seconds)

    def _make(self) -> pb.Heartbeat:
        self.made.append(asyncio.get_running_loop().time())
        return pb.Heartbeat(load=pb.Load(forward=len(self.made)))

    async def _dispatch(self, incoming: Incoming, body: Body, payload: bytes) -> None:
        self.channels[incoming.peer] = incoming.channel
        await self.heartbeats.serve(incoming)

    async def serve(self) -> None:
        meter = Meter()
        await self.transport.serve(lambda stream: serve_exchanges(stream, meter, lambda: 0, self._dispatch))


async def watch(network: MemoryNetwork, name: str, came: list[float]) -> Stream:
    """A caller that watches from now on, and when its heartbeats come."""
    loop, transport = asyncio.get_running_loop(), network.transport(name)
    stream = await transport.open("callee")
    await stream.send(pack(pb.Watch()))

    def take(frame: bytes) -> bool:
        came.append(round(loop.time(), 3))
        return True

    transport.spawn(stream.each(take))
    return stream


def test_one_message_serves_all_who_need_one_and_nobody_waits_longer_than_the_time_of_one() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency=(0.0, 0.0))
        callee = Callee(network)
        await callee.serve()
        came: dict[str, list[float]] = {name: [] for name in "abc"}
        streams = [await watch(network, name, came[name]) for name in "ab"]
        await asyncio.sleep(0.3)
        streams.append(await watch(network, "c", came["c"]))
        await asyncio.sleep(3.1)
        assert came["a"] == came["b"] == [0.0, 1.0, 2.0, 3.0]
        assert came["c"] == [0.3, 1.25, 2.25, 3.25]
        assert len(callee.made) == 3 + 3 + 3  # at once to each of three, then for a and b together, and for c
        assert callee.channels["c"].contact.said == 3.25

        for stream in streams:
            stream.close()
        await asyncio.sleep(5.0)
        assert len(callee.made) == 9
        assert len(came["a"]) == 4
        await watch(network, "d", late := [])
        await asyncio.sleep(2.5)
        assert late == [8.4, 9.4, 10.4]

    run(main(), limit=100.0)


def test_who_is_told_something_else_needs_no_heartbeat() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency=(0.0, 0.0))
        callee = Callee(network, seconds=2.0)
        await callee.serve()
        came: list[float] = []
        await watch(network, "caller", came)
        for _ in range(3):
            await asyncio.sleep(1.3)
            await callee.channels["caller"].send(pb.Progress())
        await asyncio.sleep(3.0)
        assert came == [0.0, 1.3, 2.6, 3.9, 6.0]

    run(main(), limit=100.0)


def test_a_frozen_caller_takes_what_came_when_it_thaws_and_a_killed_one_takes_nothing() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency=(0.0, 0.0))
        await (callee := Callee(network)).serve()
        came: dict[str, list[float]] = {"frozen": [], "killed": []}
        for name in came:
            await watch(network, name, came[name])
        await asyncio.sleep(1.5)
        network.nodes["frozen"].freeze()
        network.nodes["killed"].kill()
        await asyncio.sleep(3.0)
        assert came == {"frozen": [0.0, 1.0], "killed": [0.0, 1.0]}
        network.nodes["frozen"].thaw()
        await asyncio.sleep(0.1)
        assert came == {"frozen": [0.0, 1.0, 4.5, 4.5, 4.5], "killed": [0.0, 1.0]}
        callee.transport.freeze()
        await asyncio.sleep(2.0)
        callee.transport.thaw()
        await asyncio.sleep(0.1)
        assert came["frozen"][5:] == [6.6]

    run(main(), limit=100.0)


def test_what_takes_frames_ends_when_it_wants_no_more_and_with_the_stream() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency=(0.0, 0.0))
        callee, caller = network.transport("callee"), network.transport("caller")
        theirs: list[Stream] = []

        async def serve(stream: Stream) -> None:
            theirs.append(stream)
            await asyncio.sleep(1000.0)

        await callee.serve(serve)
        stream = await caller.open("callee")
        await asyncio.sleep(0.1)
        taken: list[bytes] = []

        def take(frame: bytes) -> bool:
            taken.append(frame)
            if frame == b"garbage":
                raise WireError("that is none")
            return len(taken) % 2 == 1

        for frame in (b"early", b"1", b"2"):
            assert theirs[0].post(frame)
        await asyncio.sleep(0.1)
        await stream.each(take)
        assert taken == [b"early", b"1"]
        ending = asyncio.create_task(stream.each(take))
        await asyncio.sleep(0.1)
        for frame in (b"3", b"4"):
            assert theirs[0].post(frame)
        await ending
        assert taken == [b"early", b"1", b"2", b"3"]
        assert await stream.receive() == b"4"
        ending = asyncio.create_task(stream.each(take))
        await asyncio.sleep(0.1)
        theirs[0].post(b"garbage")
        with pytest.raises(WireError):
            await ending
        ending = asyncio.create_task(stream.each(take))
        await asyncio.sleep(0.1)
        theirs[0].close()
        with pytest.raises(UnreachableError):
            await ending
        assert not theirs[0].post(b"too late")

    run(main(), limit=100.0)
