"""Real p2pd processes whose only way to each other is a loopback proxy."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from swarm_peer.errors import UnreachableError, UsageError
from swarm_peer.simulations.loopback_proxy import ProxyNet
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.p2p_transport import P2PTransport
from swarm_peer.swarm.transport import Stream

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")

LIMIT = 60.0
"""Seconds for one test: only reached by a hang."""

QUIET_SECONDS = 0.3
"""How long nothing may come over a cut link: a broken cut lets an answer through within milliseconds."""


@pytest.fixture
def net() -> Iterator[ProxyNet]:
    with ProxyNet() as made:
        yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: a socket's path has about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="lp-") as name:
        yield Path(name)


def run(body: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT):
            await body

    asyncio.run(limited())


async def node(net: ProxyNet, folder: Path, name: str) -> P2PTransport:
    made = await P2PTransport.create(
        Identity.from_seed(name),
        socket_folder=folder / name,
        listen=(net.listen_for(name),),
        announce=(net.address_for(name),),
    )
    await made.serve(echo)
    return made


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


@asynccontextmanager
async def nodes(net: ProxyNet, folder: Path, *names: str) -> AsyncIterator[list[P2PTransport]]:
    made = [await node(net, folder, name) for name in names]
    try:
        yield made
    finally:
        for transport in made:
            await transport.close()


async def asked(stream: Stream, question: bytes) -> bytes:
    await stream.send(question)
    return await stream.receive()


async def asked_afresh(caller: P2PTransport, callee: P2PTransport, question: bytes) -> bytes:
    return await asked(await caller.open(callee.peer_id, callee.addresses), question)


async def opened(caller: P2PTransport, peer: str, address: str) -> Stream:
    """A stream to a peer that has been dead: libp2p dials it again some seconds after a dial that failed."""
    while True:
        try:
            return await caller.open(peer, (address,))
        except UnreachableError as error:
            if "backoff" not in str(error):
                raise
            await asyncio.sleep(0.1)


async def is_silent(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """The work as a task, after it has been seen not to end."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=QUIET_SECONDS)
    assert not done
    return task


def test_all_that_peers_say_goes_through_the_proxy_of_their_pair(net: ProxyNet, folder: Path) -> None:
    async def body() -> None:
        async with nodes(net, folder, "a", "b", "c") as (a, b, c):
            assert [address.rpartition("/p2p/")[0] for address in b.addresses] == [net.address_for("b")]
            data = os.urandom(1 << 20)
            assert await asked(await a.open(b.peer_id, b.addresses), data) == data
            assert min(net.carried("a", "b"), net.carried("b", "a")) > len(data)
            assert net.carried("a", "c") == net.carried("c", "b") == 0
            # Whoever dialled: the connection that `a` has made serves `b` as well.
            carried = net.carried("b", "a")
            assert await asked(await b.open(a.peer_id), data) == data
            assert net.carried("b", "a") > carried + len(data)
            assert await asked(await c.open(b.peer_id, b.addresses), data) == data
            assert net.carried("c", "b") > len(data)
            assert net.refused == 0

    run(body())


def test_a_cut_is_silence_and_healing_goes_on_with_what_was_held(net: ProxyNet, folder: Path) -> None:
    async def body() -> None:
        async with nodes(net, folder, "a", "b", "c") as (a, b, c):
            kept = await a.open(b.peer_id, b.addresses)
            assert await asked(kept, b"before") == b"before"
            net.cut("b", "a")
            waiting = await is_silent(asked(kept, b"held"))
            fresh = await is_silent(asked_afresh(a, b, b"fresh"))
            # Others are not concerned.
            assert await asked(await c.open(b.peer_id, b.addresses), b"c") == b"c"
            net.heal("a", "b")
            assert await waiting == b"held"
            assert await fresh == b"fresh"

    run(body())


@pytest.mark.parametrize("cut", [("a", "b"), ("b", "a")])
def test_a_one_way_cut_stops_one_way(net: ProxyNet, folder: Path, cut: tuple[str, str]) -> None:
    async def body() -> None:
        async with nodes(net, folder, "a", "b") as (a, b):
            kept = await a.open(b.peer_id, b.addresses)
            await asked(kept, b"before")
            net.cut(*cut, both=False)
            before = net.carried("a", "b"), net.carried("b", "a")
            waiting = await is_silent(asked(kept, bytes(1000)))
            there, back = net.carried("a", "b") - before[0], net.carried("b", "a") - before[1]
            # The way that is not cut also carries what libp2p says of itself.
            assert there == 0 if cut == ("a", "b") else there > 1000 and back == 0
            net.heal(*cut)
            assert await waiting == bytes(1000)

    run(body())


def test_nobody_connects_over_a_cut_link(net: ProxyNet, folder: Path) -> None:
    async def body() -> None:
        async with nodes(net, folder, "a", "b") as (a, b):
            net.cut("a", "b")
            opening = await is_silent(asked_afresh(a, b, b"x"))
            assert net.carried("a", "b") == net.carried("b", "a") == 0
            net.heal("a", "b")
            assert await opening == b"x"

    run(body())


def test_a_stall_ends_by_itself(net: ProxyNet, folder: Path) -> None:
    async def body() -> None:
        async with nodes(net, folder, "a", "b") as (a, b):
            kept = await a.open(b.peer_id, b.addresses)
            await asked(kept, b"before")
            began = asyncio.get_running_loop().time()
            net.stall("a", "b", 2 * QUIET_SECONDS)
            waiting = await is_silent(asked(kept, b"held"))
            assert await waiting == b"held"
            assert asyncio.get_running_loop().time() - began >= 2 * QUIET_SECONDS

    run(body())


def test_delay_and_rate_are_felt_and_can_change(net: ProxyNet, folder: Path) -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()

        async def seconds(question: bytes) -> float:
            began = loop.time()
            assert await asked(kept, question) == question
            return loop.time() - began

        async with nodes(net, folder, "a", "b") as (a, b):
            kept = await a.open(b.peer_id, b.addresses)
            await seconds(b"warm")
            net.delay("a", "b", 0.2)
            assert await seconds(b"x") >= 0.4
            net.delay("a", "b", 0.0)
            net.thin("a", "b", 100_000)
            assert await seconds(bytes(20_000)) >= 0.4
            net.thin("a", "b", 0)
            # Without its limit this would take over two hours.
            net.thin("a", "b", 100)
            waiting = await is_silent(seconds(os.urandom(1 << 20)))
            net.thin("a", "b", 0)
            await waiting

    run(body())


def test_all_that_comes_to_a_process_shares_its_downlink(net: ProxyNet, folder: Path) -> None:
    async def body() -> None:
        async with nodes(net, folder, "a", "b", "c") as (a, b, c):
            streams = [await c.open(peer.peer_id, peer.addresses) for peer in (a, b)]
            for stream in streams:
                await asked(stream, b"x")
            net.narrow("c", 100_000)
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*(asked(stream, bytes(20_000)) for stream in streams))
            # 40,000 bytes come to it, of which 2,000 may come at once; what it sends is not held up.
            assert asyncio.get_running_loop().time() - began >= 0.36
            net.narrow("c", 0)
            # With the limit this would take 20 s.
            await asyncio.gather(*(asked(stream, bytes(1_000_000)) for stream in streams))

    run(body())


def test_many_segments_are_in_flight_at_once() -> None:
    """Through 0.5 s each way, one after the other they would take longer than a test may: there are at least 128."""

    async def body(net: ProxyNet) -> None:
        listening = net.listen_for("b").split("/")
        announced = net.address_for("b").split("/")
        sender = net.listen_for("a").split("/")
        data = os.urandom(8 << 20)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"right" if await reader.readexactly(len(data)) == data else b"wrong")
            await reader.read()
            writer.close()
            ended.set()

        ended = asyncio.Event()
        async with await asyncio.start_server(answer, listening[2], int(listening[4])):
            began = asyncio.get_running_loop().time()
            reader, writer = await asyncio.open_connection(announced[2], int(announced[4]), local_addr=(sender[2], 0))
            writer.write(data)
            assert await reader.readexactly(5) == b"right"
            # A round trip to connect, and one for data and answer.
            assert asyncio.get_running_loop().time() - began >= 2.0
            writer.close()
            await ended.wait()

    with ProxyNet(delay=0.5) as net:
        run(body(net))


DIALER = """
import socket, sys
at, port, target, target_port = sys.argv[1:]
with socket.create_server((at, int(port))), socket.create_connection((target, int(target_port))) as dialled:
    dialled.sendall(b"who am I")
    dialled.recv(1)
"""


def endpoint(address: str) -> tuple[str, int]:
    return address.split("/")[2], int(address.split("/")[4])


def test_a_dialer_that_takes_another_port_is_known_by_where_it_listens(net: ProxyNet) -> None:
    """libp2p does so when it dials again before its last connection is quite gone."""
    with socket.create_server(endpoint(net.listen_for("b"))) as listening:
        listening.settimeout(LIMIT)
        where = (*endpoint(net.listen_for("a")), *endpoint(net.address_for("b")))
        with subprocess.Popen([sys.executable, "-c", DIALER, *map(str, where)]) as process:
            try:
                with listening.accept()[0] as accepted:
                    accepted.settimeout(LIMIT)
                    assert accepted.recv(8) == b"who am I"
            finally:
                process.kill()
    assert (net.carried("a", "b"), net.refused) == (8, 0)


@pytest.mark.parametrize("port", [0, 1])
def test_a_process_may_listen_at_several_ports(port: int) -> None:
    """As a machine that hosts two stages does; each port has its proxy, the one after the first one's."""
    with ProxyNet(ports=2) as net:
        (listen, first), (announced, proxy) = endpoint(net.listen_for("b")), endpoint(net.address_for("b"))
        sender = endpoint(net.listen_for("a"))[0]
        assert endpoint(net.address_for("c"))[1] > proxy + 1
        with socket.create_server((listen, first + port)) as listening:
            listening.settimeout(LIMIT)
            address = (announced, proxy + port)
            with socket.create_connection(address, LIMIT, (sender, 0)) as dialled, listening.accept()[0] as accepted:
                accepted.settimeout(LIMIT)
                dialled.sendall(b"who am I")
                assert accepted.recv(8, socket.MSG_WAITALL) == b"who am I"
        assert (net.carried("a", "b"), net.refused) == (8, 0)


@pytest.mark.parametrize("port", [0, 1])
def test_a_dialer_is_known_by_any_port_at_which_it_listens(port: int) -> None:
    with ProxyNet(ports=2) as net, socket.create_server(endpoint(net.listen_for("b"))) as listening:
        listening.settimeout(LIMIT)
        at, first = endpoint(net.listen_for("a"))
        where = (at, first + port, *endpoint(net.address_for("b")))
        with subprocess.Popen([sys.executable, "-c", DIALER, *map(str, where)]) as process:
            try:
                with listening.accept()[0] as accepted:
                    accepted.settimeout(LIMIT)
                    assert accepted.recv(8, socket.MSG_WAITALL) == b"who am I"
            finally:
                process.kill()
        assert (net.carried("a", "b"), net.refused) == (8, 0)


def test_a_connection_from_nobody_is_refused(net: ProxyNet) -> None:
    announced = net.address_for("a").split("/")
    with socket.create_connection((announced[2], int(announced[4]))) as stranger:
        stranger.settimeout(LIMIT)
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    assert net.refused == 1


CHILD = """
import asyncio, sys
from pathlib import Path
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.p2p_transport import P2PTransport

async def main():
    seed, folder, listen, announce, target, address = sys.argv[1:]
    node = await P2PTransport.create(
        Identity.from_seed(seed), socket_folder=Path(folder), listen=(listen,), announce=(announce,)
    )
    async def serve(stream):
        while True:
            await stream.send(await stream.receive())
    await node.serve(serve)
    if target:
        stream = await node.open(target, (address,))
        await stream.send(b"here I am")
    print(node.peer_id, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def child(
    children: "list[subprocess.Popen[str]]", net: ProxyNet, folder: Path, target: str = "", address: str = ""
) -> "tuple[subprocess.Popen[str], str]":
    """Another process with a p2pd of its own, ready: (it, its peer id). It calls `target` if there is one."""
    where = [str(folder / "c"), net.listen_for("child"), net.address_for("child")]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), "child", *where, target, address],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children.append(process)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture
def children() -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes to be ended with the test, if it has not done so."""
    made: list[subprocess.Popen[str]] = []
    yield made
    for process in made:
        end(process)


def end(process: "subprocess.Popen[str]") -> None:
    """SIGKILL, to it and to its p2pd."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_the_end_of_a_killed_process_comes_through_whoever_dialled(
    net: ProxyNet, folder: Path, children: "list[subprocess.Popen[str]]"
) -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with nodes(net, folder, "a") as (a,):
            # Again and again, at once: the killed one comes back under the same address.
            for _ in range(2):
                process, peer = await loop.run_in_executor(None, child, children, net, folder)
                stream = await opened(a, peer, net.address_for("child"))
                await asked(stream, b"x")
                waiting = asyncio.ensure_future(stream.receive())
                killed = loop.time()
                end(process)
                with pytest.raises(UnreachableError):
                    await waiting
                assert loop.time() - killed < LIMIT / 3
            called: asyncio.Queue[None] = asyncio.Queue()

            async def serve(stream: Stream) -> None:
                try:
                    while True:
                        await stream.receive()
                        await called.put(None)
                finally:
                    await called.put(None)

            a._handler = serve
            for _ in range(2):
                process, peer = await loop.run_in_executor(
                    None, child, children, net, folder, a.peer_id, a.addresses[0]
                )
                await called.get()
                killed = loop.time()
                end(process)
                await called.get()
                assert loop.time() - killed < LIMIT / 3

    run(body())


def test_a_process_killed_behind_a_cut_is_not_heard_of_before_it_heals(
    net: ProxyNet, folder: Path, children: "list[subprocess.Popen[str]]"
) -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with nodes(net, folder, "a") as (a,):
            process, peer = await loop.run_in_executor(None, child, children, net, folder)
            stream = await a.open(peer, (net.address_for("child"),))
            await asked(stream, b"x")
            net.cut("a", "child")
            end(process)
            waiting = await is_silent(stream.receive())
            net.heal("a", "child")
            with pytest.raises(UnreachableError):
                await waiting

    run(body())


def test_nets_and_nodes_have_addresses_of_their_own() -> None:
    with ProxyNet() as one, ProxyNet() as other:
        addresses = [
            address
            for net in (one, other)
            for name in "ab"
            for address in (net.listen_for(name), net.address_for(name))
        ]
        assert len(set(addresses)) == 8
        assert one.listen_for("a") == addresses[0]


@pytest.mark.parametrize("address", ["/ip4/127.0.0.1/tcp/0", "127.0.0.1:4001", "/ip4/1.2.3.4", ""])
def test_what_nobody_can_dial_is_not_announced(folder: Path, address: str) -> None:
    async def body() -> None:
        with pytest.raises(UsageError):
            await P2PTransport.create(Identity.generate(), socket_folder=folder, announce=(address,))

    run(body())


def test_a_closed_net_is_closed(net: ProxyNet) -> None:
    address = net.address_for("a").split("/")
    net.close()
    net.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address[2], int(address[4])))
