"""Streams to a process that was killed, on real p2pd processes and either event loop."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from swarm_peer.errors import UnreachableError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm import exchange
from swarm_peer.swarm.addresses import peer_in
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.p2p_transport import P2PTransport

from tests.p2p import Run, echo, folder, run

__all__ = ["folder", "run"]

SERVER = """
import asyncio, sys
from pathlib import Path
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.p2p_transport import P2PTransport

async def echo(stream):
    while True:
        await stream.send(await stream.receive())

async def main():
    transport = await P2PTransport.create(Identity.generate(), socket_folder=Path(sys.argv[1]))
    await transport.serve(echo)
    print(transport.p2p._child.pid, transport.addresses[0], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def echo_server(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """A process that serves `echo`, and what it says: its daemon's number and an address."""
    command = [sys.executable, "-W", "ignore", "-c", SERVER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server, server.stdout.readline().split()
        finally:
            server.kill()


def test_killed_server_ends_the_stream_and_its_daemon(run: Run, folder: Path) -> None:
    async def body(server: "subprocess.Popen[str]", said: list[str]) -> None:
        daemon, address = said
        client = await P2PTransport.create(Identity.generate(), socket_folder=folder)
        peer = peer_in(address)
        stream = await client.open(peer, [address])
        await stream.send(b"alive")
        assert await stream.receive() == b"alive"
        alive = os.pidfd_open(int(daemon))
        server.send_signal(signal.SIGKILL)
        async with asyncio.timeout(5.0):
            with pytest.raises(UnreachableError):
                await stream.receive()
        ended, _, _ = select.select([alive], [], [], 10.0)
        os.close(alive)
        assert ended, "the killed server's p2pd lives on"
        with pytest.raises(UnreachableError):
            await client.open(peer, [address])
        await client.close()

    with echo_server(folder) as (server, said):
        run(body(server, said))


def test_streams_to_a_killed_peer_are_given_up_though_nobody_asks_for_it_again(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept ones are descriptors, and over weeks many peers come and go."""
    monkeypatch.setattr(exchange, "TIDY_SECONDS", 0.5)

    async def ask(pool: exchange.Pool, peer: str) -> None:
        async with pool.exchange(peer) as channel:
            await channel.send(pb.Watch())
            await channel.receive(0)

    async def body(server: "subprocess.Popen[str]", said: list[str]) -> None:
        address = said[1]
        goes = peer_in(address)
        client = await P2PTransport.create(Identity.generate(), socket_folder=folder)
        stays = await P2PTransport.create(Identity.generate(), socket_folder=folder)
        await stays.serve(echo)
        addresses = {goes: (address,), stays.peer_id: stays.addresses}
        pool = exchange.Pool(client, exchange.Meter(), addresses)
        await ask(pool, stays.peer_id)
        await asyncio.sleep(1.0)
        before = len(os.listdir("/proc/self/fd"))
        await asyncio.gather(*(ask(pool, goes) for _ in range(4)))
        assert len(os.listdir("/proc/self/fd")) >= before + 4
        server.send_signal(signal.SIGKILL)
        async with asyncio.timeout(60.0):
            while len(os.listdir("/proc/self/fd")) > before + 1:  # a Watch may just be ending
                await ask(pool, stays.peer_id)
                await asyncio.sleep(1.0)
        pool.close()
        await client.close()
        await stays.close()

    with echo_server(folder) as (server, said):
        run(body(server, said))
