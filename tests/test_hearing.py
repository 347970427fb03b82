"""Who is taken for silent, and who hears that he asks in vain, between real p2pd processes on a thin link."""

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.loopback_proxy import ProxyNet
from swarm_peer.swarm.exchange import Channel, Meter, Pool
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.messages import Body
from swarm_peer.swarm.p2p_transport import P2PTransport
from swarm_peer.swarm.serving import Incoming, serve_exchanges

from tests.p2p import LIMIT, folder

__all__ = ["folder"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")

RATE = 1e5
"""Bytes a second, each way."""

SILENCE = 2.0
TENSOR = os.urandom(600_000)
"""Which takes three times as long as anybody may be silent."""


async def answer(incoming: Incoming, body: Body, payload: bytes) -> None:
    if isinstance(body, pb.Watch):
        await Heartbeats(pb.Heartbeat).serve(incoming)
    else:
        await incoming.channel.send(pb.PartResult(), payload)


async def ask(pool: Pool, peer: str) -> bytes:
    async with pool.exchange(peer) as channel:
        await channel.send(pb.Part(), TENSOR)
        _, reply = await channel.receive(len(TENSOR))
        return reply


async def two(net: ProxyNet, folder: Path, stack: AsyncExitStack) -> list[P2PTransport]:
    """Peers whose links go through proxies; until the end of `stack`."""
    made = []
    for name in ("a", "b"):
        transport = await P2PTransport.create(
            Identity.from_seed(name),
            socket_folder=folder / name,
            listen=(net.listen_for(name),),
            announce=(net.address_for(name),),
        )
        stack.push_async_callback(transport.close)
        made.append(transport)
    return made


def test_a_peer_whose_heartbeats_wait_behind_a_tensor_is_not_silent(folder: Path) -> None:
    """All streams of two peers share one connection, and both directions of it are full."""

    async def body(net: ProxyNet) -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(LIMIT):
            made = await two(net, folder, stack)
            for transport in made:
                await transport.serve(lambda stream: serve_exchanges(stream, Meter(), lambda: len(TENSOR), answer))
            a, b = made
            await a.connect(b.peer_id, b.addresses)
            net.thin("a", "b", RATE)
            net.thin("b", "a", RATE)
            pools = [Pool(transport, Meter(), silence=SILENCE) for transport in made]
            assert await asyncio.gather(ask(pools[0], b.peer_id), ask(pools[1], a.peer_id)) == [TENSOR, TENSOR]
            for pool in pools:
                pool.close()

    with ProxyNet() as net:
        asyncio.run(body(net))


def test_a_call_in_vain_ends_long_before_its_tensor_has_gone(folder: Path) -> None:
    """And the stream that it was on is good for the next one."""
    tensor, rate, meter = bytes(32 << 20), 4e6, Meter()

    def busy(body: Body, sender: str) -> Body | None:
        return pb.Busy() if isinstance(body, pb.Run) and body.step == 0 else None

    async def body(net: ProxyNet) -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(LIMIT):
            a, b = await two(net, folder, stack)
            await b.serve(lambda stream: serve_exchanges(stream, Meter(), lambda: len(tensor), answer, at_once=busy))
            await a.connect(b.peer_id, b.addresses)
            net.thin("a", "b", rate)
            channel = Channel(await a.open(b.peer_id, b.addresses), meter)
            first, _ = await channel.ask(pb.Run(step=0), tensor, 0)
            second, came = await channel.ask(pb.Run(step=1), b"tensor", 10)
            assert isinstance(first, pb.Busy)
            assert isinstance(second, pb.PartResult)
            assert came == b"tensor"
            channel.close()

    with ProxyNet() as net:
        asyncio.run(body(net))
    assert meter.sent < len(tensor) / 2
