"""Who is taken for silent, between real p2pd processes on a thin link."""

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.loopback_proxy import ProxyNet
from swarm_peer.swarm.exchange import Incoming, Meter, Pool, serve_exchanges, serve_watch
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.messages import Body
from swarm_peer.swarm.p2p_transport import P2PTransport

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
        await serve_watch(incoming, pb.Heartbeat)
    else:
        await incoming.channel.send(pb.PartResult(), payload)


async def ask(pool: Pool, peer: str) -> bytes:
    async with pool.exchange(peer) as channel:
        await channel.send(pb.Part(), TENSOR)
        _, reply = await channel.receive(len(TENSOR))
        return reply


def test_a_peer_whose_heartbeats_wait_behind_a_tensor_is_not_silent(folder: Path) -> None:
    """All streams of two peers share one connection, and both directions of it are full."""

    async def body(net: ProxyNet) -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(LIMIT):
            made = []
            for name in ("a", "b"):
                transport = await P2PTransport.create(
                    Identity.from_seed(name),
                    socket_folder=folder / name,
                    listen=(net.listen_for(name),),
                    announce=(net.address_for(name),),
                )
                stack.push_async_callback(transport.close)
                await transport.serve(lambda stream: serve_exchanges(stream, Meter(), lambda: len(TENSOR), answer))
                made.append(transport)
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
