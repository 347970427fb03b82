"""Whether others reach a node, and what a node does that nobody reaches; on real p2pd processes but for what a lying or
broken node would say."""

import asyncio
import socket
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hivemind.utils.multiaddr import Multiaddr
from swarm_peer.errors import SwarmError, UnreachableError, WireError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.network import MemoryNetwork
from swarm_peer.simulations.virtual_time import run as run_virtual
from swarm_peer.swarm import p2p_transport, reach
from swarm_peer.swarm.addresses import any_port, dialable, is_relayed
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.p2p_transport import P2PTransport
from swarm_peer.swarm.reach import RELAY_BYTES, ask, call_back, host_in, is_only_here, listens, relays
from swarm_peer.swarm.transport import Stream

from tests.p2p import Run, folder, run, two

__all__ = ["folder", "run"]

STARTS = 5
EVERYWHERE = ("/ip4/0.0.0.0/tcp/0",)

PEER, RELAY = (Identity.from_seed(name).peer_id for name in ("peer", "relay"))
THROUGH = f"/ip4/203.0.113.7/tcp/4001/p2p/{RELAY}/p2p-circuit"


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("/ip4/203.0.113.7/tcp/4001", "203.0.113.7"),
        ("/ip6/2001:db8::7/udp/4001/quic", "2001:db8::7"),
        (THROUGH, ""),
        ("/dns4/example.org/tcp/4001", ""),
        ("", ""),
    ],
)
def test_a_host_is_read_from_a_direct_address(address: str, host: str) -> None:
    assert host_in(address) == host


def test_an_address_through_a_relay_is_coded_as_p2pd_reads_it() -> None:
    """/ip4, /tcp, /p2p with the relay's id as the multihash that it is, /p2p-circuit."""
    (coded,) = dialable(PEER, [f"{THROUGH}/p2p/{PEER}"])
    before, code, after = coded.partition(b"\xa5\x03\x26\x00\x24")
    assert before == bytes([4, 203, 0, 113, 7, 6, 15, 161])
    assert code
    assert after.endswith(b"\xa2\x02")
    assert is_relayed(coded)
    (direct,) = dialable(PEER, [f"/ip4/203.0.113.7/tcp/41474/p2p/{PEER}"])  # 0xa202
    assert direct == bytes(Multiaddr("/ip4/203.0.113.7/tcp/41474").to_bytes())
    assert not is_relayed(direct)


def test_any_port_keeps_the_rest_of_an_address() -> None:
    assert any_port("/ip4/0.0.0.0/tcp/4001") == "/ip4/0.0.0.0/tcp/0"
    assert any_port("/ip6/::/tcp/4001") == "/ip6/::/tcp/0"


def test_a_libp2p_node_is_told_from_what_else_listens(run: Run, folder: Path) -> None:
    async def body() -> None:
        node = await P2PTransport.create(Identity.generate(), socket_folder=folder)
        port = int(node.addresses[0].split("/")[4])
        assert await listens("127.0.0.1", port)
        await node.close()
        assert not await listens("127.0.0.1", port)

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example.org ESMTP\r\n")
            writer.close()

        other = await asyncio.start_server(greet, "127.0.0.1", 0)
        assert not await listens("127.0.0.1", other.sockets[0].getsockname()[1])
        other.close()

    run(body())


def test_in_a_private_network_nobody_can_tell(run: Run, folder: Path) -> None:
    async def body() -> None:
        async with two(folder) as (server, client):
            await client.connect(server.peer_id, server.addresses)
            assert await client.is_reached(server.addresses) is None
            assert await client.is_reached([]) is None

    run(body())


def _asked(port: int, seen: str, reached: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[bool | None, list[object]]:
    """What is told to one who asks about a port, and whom the other side has called."""
    called: list[object] = []

    async def call(host: str, port: int) -> bool:
        called.append((host, port))
        return reached

    monkeypatch.setattr(reach, "listens", call)

    async def answer(stream: Stream) -> None:
        await call_back(stream, seen)

    async def body() -> bool | None:
        network = MemoryNetwork()
        near, far = network.transport("near"), network.transport("far")
        await far.serve(answer)
        return await ask(await near.open("far"), port)

    return run_virtual(body()), called


@pytest.mark.parametrize("reached", [True, False])
def test_who_is_asked_calls_the_port_where_the_question_comes_from(
    reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, called = _asked(4001, "/ip4/8.8.4.4/tcp/55555", reached, monkeypatch)
    assert told is reached
    assert called == [("8.8.4.4", 4001)]


@pytest.mark.parametrize("seen", ["/ip4/192.168.1.7/tcp/55555", "/ip4/127.0.0.1/tcp/1", THROUGH])
def test_nothing_is_called_in_a_private_network_or_through_a_relay(seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _asked(4001, seen, True, monkeypatch) == (None, [])


@pytest.mark.parametrize("port", [0, 1 << 16, 1 << 31])
def test_what_is_no_port_is_not_called(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _asked(port, "/ip4/8.8.4.4/tcp/55555", True, monkeypatch) == (False, [])


def test_what_is_no_question_and_no_answer_is_refused() -> None:
    async def garbage(stream: Stream) -> None:
        await stream.send(b"\xff")
        await stream.receive()

    async def body() -> None:
        network = MemoryNetwork()
        near, far = network.transport("near"), network.transport("far")
        await far.serve(garbage)
        with pytest.raises(WireError, match="no answer"):
            await ask(await near.open("far"), 4001)
        heard = asyncio.get_running_loop().create_future()
        await far.serve(lambda stream: _reports(call_back(stream, ""), heard))
        await (await near.open("far")).send(b"\xff")
        with pytest.raises(WireError, match="no question"):
            await heard

    run_virtual(body())


async def _reports(work: Awaitable[None], heard: asyncio.Future[None]) -> None:
    try:
        await work
    except SwarmError as error:
        heard.set_exception(error)


def test_who_says_nothing_is_not_waited_for() -> None:
    async def body() -> None:
        network = MemoryNetwork()
        near, far = network.transport("near"), network.transport("far")
        heard = asyncio.get_running_loop().create_future()
        await far.serve(lambda stream: _reports(call_back(stream, ""), heard))
        await near.open("far")
        with pytest.raises(UnreachableError, match="asks nothing"):
            await heard
        await far.serve(lambda stream: asyncio.sleep(60))
        with pytest.raises(UnreachableError, match="does not answer"):
            await ask(await near.open("far"), 4001)

    run_virtual(body())


def _answered(content: bytes) -> bool:
    near, far = socket.socketpair()

    async def body() -> bool:
        reader, writer = await asyncio.open_connection(sock=near)
        answer = await relays(reader, writer)
        writer.close()
        return answer

    with far:
        far.sendall(content)
        far.shutdown(socket.SHUT_WR)
        answer = asyncio.run(body())
        assert far.recv(100) == b"\x02\x08\x00"  # RESERVE
    return answer


def _framed(answer: pb.RelayAnswer) -> bytes:
    content = answer.SerializeToString()
    return bytes([len(content)]) + content


def test_a_relay_is_worth_it_if_it_takes_us_and_lets_enough_pass() -> None:
    limit = pb.RelayLimit(seconds=3600, bytes=RELAY_BYTES)
    assert _answered(_framed(pb.RelayAnswer(type=2, status=100)))
    assert _answered(_framed(pb.RelayAnswer(type=2, status=100, limit=limit)))
    assert _answered(_framed(pb.RelayAnswer(type=2, status=100, limit=pb.RelayLimit(seconds=60))))
    assert not _answered(_framed(pb.RelayAnswer(type=2, status=200)))
    assert not _answered(_framed(pb.RelayAnswer(type=2, status=100, limit=pb.RelayLimit(bytes=1 << 17))))


@pytest.mark.parametrize(
    "content", [b"", b"\x03\x08", b"\xff\xff\xff\xff\xff", b"\x02\xff\xff", b"\x80\x7f" + b"x" * 20_000]
)
def test_what_is_no_answer_of_a_relay_is_none(content: bytes) -> None:
    assert not _answered(content)


def test_who_relays_lets_enough_pass_whenever_it_is_started(run: Run, folder: Path) -> None:
    """Two parts of p2pd race at its start; the wrong one's limit is 128 KiB."""

    async def body() -> None:
        client = await P2PTransport.create(Identity.generate(), socket_folder=folder)
        for _ in range(STARTS):
            relay = await P2PTransport.create(Identity.generate(), socket_folder=folder, listen=EVERYWHERE, relays=True)
            await client.connect(relay.peer_id, relay.addresses)
            assert await client.relays_among(relay.addresses) == list(relay.addresses)
            await relay.close()
        await client.close()

    run(body())


def test_who_finds_no_relay_is_told_what_to_do(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "RELAY_BYTES", 1 << 60)

    async def body() -> None:
        async with two(folder) as (server, client):
            await client.connect(server.peer_id, server.addresses)
            with pytest.raises(UnreachableError, match="Forward a port"):
                await client.relays_among(server.addresses)

    run(body())


def test_a_relay_of_which_too_little_is_heard_is_started_again(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, relays_enough = [], P2PTransport._relays_enough

    async def doubted(relay: P2PTransport, *where: Any) -> bool:
        told.append((relay.p2p._child.pid, await relays_enough(relay, *where)))
        return len(told) > 2 and told[-1][1]

    async def body() -> None:
        monkeypatch.setattr(P2PTransport, "_relays_enough", doubted)
        async with AsyncExitStack() as stack:
            relay = await P2PTransport.create(
                Identity.from_seed("relay"), socket_folder=folder, listen=EVERYWHERE, relays=True
            )
            stack.push_async_callback(relay.close)
            client = await P2PTransport.create(Identity.generate(), socket_folder=folder)
            stack.push_async_callback(client.close)
            await client.connect(relay.peer_id, relay.addresses)
            assert await client.relays_among(relay.addresses) == list(relay.addresses)
            assert relay.p2p._child.pid == told[-1][0]

    run(body())
    assert len({process for process, _ in told}) == len(told) >= 3


@pytest.mark.parametrize(
    ("addresses", "local"),
    [
        ((), True),
        (("/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"), True),
        (("/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1"), False),
        (("/dns4/example.org/tcp/1",), False),
    ],
)
def test_who_is_only_here_need_not_relay(addresses: tuple[str, ...], local: bool) -> None:
    assert is_only_here(addresses) == local


def test_a_node_dials_from_another_port_than_it_listens_on(run: Run, folder: Path) -> None:
    """Two that dial each other at once from those would have one connection of which both are the dialler: it fails."""

    async def body() -> None:
        async with two(folder) as (server, client):
            await client.connect(server.peer_id, server.addresses)
            (seen,) = {str(address) for peer in await server.p2p.list_peers() for address in peer.addrs}
            assert host_in(seen) == "127.0.0.1"
            assert seen.split("/")[4] != client.addresses[0].split("/")[4]

    run(body())


def test_the_port_listened_on_is_dialled_from_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(p2p_transport.REUSE_PORT, raising=False)
    assert p2p_transport._environment(relays=True, meets=False) == ["GOMAXPROCS=1", "LIBP2P_TCP_REUSEPORT=false"]
    assert p2p_transport._environment(relays=False, meets=True) == []
    monkeypatch.setenv(p2p_transport.REUSE_PORT, "true")
    assert p2p_transport._environment(relays=False, meets=False) == []
