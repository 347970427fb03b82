"""Real p2pd processes on loopback; everything runs on asyncio's loop and on uvloop."""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hivemind.p2p import P2P
from swarm_peer.errors import TrustError, UnreachableError, UsageError, WireError
from swarm_peer.swarm import p2p_transport
from swarm_peer.swarm.addresses import peer_in
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.p2p_transport import P2PTransport
from swarm_peer.swarm.transport import MAX_FRAME_BYTES, Stream

from tests.p2p import Run, echo, files_in, folder, run, two

__all__ = ["folder", "run"]


def test_frames_come_back_from_an_authenticated_peer(run: Run, folder: Path) -> None:
    async def body() -> None:
        server_identity, client_identity = Identity.generate(), Identity.generate()
        server = await P2PTransport.create(server_identity, socket_folder=folder)
        client = await P2PTransport.create(client_identity, socket_folder=folder)
        callers: list[str] = []

        async def serve(stream: Stream) -> None:
            callers.append(stream.peer)
            await echo(stream)

        await server.serve(serve)
        assert server.peer_id == server_identity.peer_id
        assert [peer_in(address) for address in server.addresses] == [server.peer_id]
        stream = await client.open(server.peer_id, server.addresses)
        frames = [b"", b"x", os.urandom(70_000), os.urandom(MAX_FRAME_BYTES)]
        for frame in frames:
            await stream.send(frame)
            assert await stream.receive() == frame
        sending = asyncio.create_task(_send_all(stream, frames * 4))
        assert [await stream.receive() for _ in frames * 4] == frames * 4
        await sending
        # Connected now: no address is needed.
        again = await client.open(server.peer_id)
        await again.send(b"again")
        assert await again.receive() == b"again"
        assert stream.peer == again.peer == server_identity.peer_id
        assert callers == [client_identity.peer_id] * 2
        await client.close()
        await server.close()

    run(body())


async def _send_all(stream: Stream, frames: list[bytes]) -> None:
    for frame in frames:
        await stream.send(frame)


def test_small_frames_are_posted_without_waiting_and_taken_one_by_one(run: Run, folder: Path) -> None:
    async def body() -> None:
        async with two(folder) as (server, client):
            posted: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
            ended = asyncio.Event()

            async def serve(stream: Stream) -> None:
                first = stream.post(b"a beat")
                await stream.receive()
                # What is larger than the socket's buffer has not left when the next one is to be posted.
                sending = asyncio.create_task(stream.send(bytes(MAX_FRAME_BYTES)))
                await asyncio.sleep(0)
                between = stream.post(b"in vain")
                await sending
                with contextlib.suppress(UnreachableError):
                    await stream.receive()
                posted.set_result([first, between, stream.post(b"too late")])
                ended.set()

            await server.serve(serve)
            stream = await client.open(server.peer_id, server.addresses)
            sizes: list[int] = []
            began = asyncio.Event()

            def take(frame: bytes) -> bool:
                sizes.append(len(frame))
                began.set()
                return len(sizes) < 2

            first = asyncio.create_task(stream.each(take))
            await began.wait()
            await stream.send(b"go on")
            await first
            stream.close()
            await ended.wait()
            assert sizes == [6, MAX_FRAME_BYTES]
            assert await posted == [True, False, False]
            with pytest.raises(UnreachableError):
                await stream.each(take)

    run(body())


def test_oversize_frame_is_refused_before_it_is_sent_or_read(run: Run, folder: Path) -> None:
    async def body() -> None:
        async with two(folder) as (server, client):
            outcome: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

            async def serve(stream: Stream) -> None:
                try:
                    await stream.receive()
                except WireError as error:
                    outcome.set_result(error)

            await server.serve(serve)
            stream = await client.open(server.peer_id, server.addresses)
            with pytest.raises(WireError, match="above the limit"):
                await stream.send(bytes(MAX_FRAME_BYTES + 1))
            with pytest.raises(UnreachableError):
                await stream.send(b"the stream is closed then")

            liar = await client.open(server.peer_id)
            tracemalloc.start()
            liar._writer.write(b"\xff\xff\xff\xff" + bytes(1000))
            assert str(2**32 - 1) in str(await outcome)
            with pytest.raises(UnreachableError):
                await liar.receive()
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
            tracemalloc.stop()

    run(body())


def test_close_ends_both_sides_after_what_was_sent(run: Run, folder: Path) -> None:
    async def body() -> None:
        async with two(folder) as (server, client):
            received: asyncio.Queue[bytes | None] = asyncio.Queue()

            async def serve(stream: Stream) -> None:
                try:
                    while True:
                        await received.put(await stream.receive())
                except UnreachableError:
                    await received.put(None)

            await server.serve(serve)
            stream = await client.open(server.peer_id, server.addresses)
            waiting = asyncio.create_task(stream.receive())
            await stream.send(b"last words")
            stream.close()
            stream.close()
            with pytest.raises(UnreachableError):
                await waiting
            with pytest.raises(UnreachableError):
                await stream.receive()
            assert await received.get() == b"last words"
            assert await received.get() is None

    run(body())


def test_stream_is_closed_when_the_handler_ends(run: Run, folder: Path) -> None:
    async def body() -> None:
        async with two(folder) as (server, client):

            async def serve(stream: Stream) -> None:
                if await stream.receive() == b"raise":
                    raise TrustError("not you")

            await server.serve(serve)
            for frame in (b"return", b"raise"):
                stream = await client.open(server.peer_id, server.addresses)
                await stream.send(frame)
                with pytest.raises(UnreachableError):
                    await stream.receive()

    run(body())


def test_cancelled_receive_loses_no_frame(run: Run, folder: Path) -> None:
    async def body() -> None:
        async with two(folder) as (server, client):
            go_on = asyncio.Event()

            async def serve(stream: Any) -> None:
                stream._writer.write((5).to_bytes(4, "little") + b"he")
                await go_on.wait()
                stream._writer.write(b"llo")
                await stream.receive()

            await server.serve(serve)
            stream = await client.open(server.peer_id, server.addresses)
            waiting = asyncio.create_task(stream.receive())
            while stream._length is None:  # noqa: ASYNC110  # until the frame's length has been read
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            go_on.set()
            assert await stream.receive() == b"hello"

    run(body())


def test_sender_waits_for_a_receiver_that_does_not_read(run: Run, folder: Path) -> None:
    async def body() -> None:
        async with two(folder) as (server, client):
            read_now = asyncio.Event()
            counted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            async def serve(stream: Stream) -> None:
                await read_now.wait()
                count = 0
                while await stream.receive():
                    count += 1
                counted.set_result(count)

            await server.serve(serve)
            stream = await client.open(server.peer_id, server.addresses)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 200:
                    async with asyncio.timeout(1.0):
                        sent += 1  # handed over even if the wait that follows is cancelled
                        await stream.send(bytes(1 << 20))
            assert 0 < sent < 100
            read_now.set()
            await stream.send(b"")
            assert await counted == sent

    run(body())


def test_unknown_dead_and_silent_peers_are_unreachable_in_bounded_time(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p2p_transport, "DIAL_SECONDS", 2.0)

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with two(folder) as (server, client):
            await server.serve(echo)
            await server.close()
            with socket.create_server(("127.0.0.1", 0)) as silent:
                stranger = Identity.generate().peer_id
                silent_address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{stranger}"
                for peer, addresses in [
                    (stranger, ()),
                    (stranger, ("not an address", "/ip4/999.0.0.1/tcp/1")),
                    (stranger, (silent_address,)),
                    (stranger, client.addresses),
                    (server.peer_id, server.addresses),
                    ("nobody", ()),
                ]:
                    before = loop.time()
                    with pytest.raises(UnreachableError):
                        await client.open(peer, addresses)
                    assert loop.time() - before < 5.0

    run(body())


def test_open_has_one_limit_and_leaves_nothing_when_it_is_reached(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p2p_transport, "DIAL_SECONDS", 1.0)

    async def body() -> None:
        async with two(folder) as (server, client):
            await server.serve(echo)
            connect = client.connect

            async def slow(peer: str, addresses: Any = ()) -> None:
                # Uses up most of the limit, and freezes the daemon before the question for a stream.
                await connect(peer, addresses)
                await asyncio.sleep(0.8)
                client.p2p._child.send_signal(signal.SIGSTOP)
                await asyncio.to_thread(os.waitid, os.P_PID, client.p2p._child.pid, os.WSTOPPED | os.WNOWAIT)

            monkeypatch.setattr(client, "connect", slow)
            open_files = len(os.listdir("/proc/self/fd"))
            try:
                # These are the words of the limit of both questions; that of the second one alone says "no answer".
                with pytest.raises(UnreachableError, match=r"no stream to \S+ within 1 s"):
                    await client.open(server.peer_id, server.addresses)
                await asyncio.sleep(0)
                assert len(os.listdir("/proc/self/fd")) == open_files
            finally:
                client.p2p._child.send_signal(signal.SIGCONT)
            assert client.alive

    run(body())


def test_address_of_another_peer_is_not_taken_for_the_one_asked(run: Run, folder: Path) -> None:
    async def body() -> None:
        async with two(folder) as (server, client):
            await server.serve(echo)
            somebody = Identity.generate().peer_id
            address = server.addresses[0].replace(server.peer_id, somebody)
            with pytest.raises(UnreachableError):
                await client.open(somebody, (address,))

    run(body())


def test_bootstrap_needs_one_living_peer_and_finds_the_others(run: Run, folder: Path) -> None:
    async def body() -> None:
        async with two(folder) as (first, second):
            await first.serve(echo)
            await second.connect(first.peer_id, first.addresses)
            dead = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.generate().peer_id}"
            third = await P2PTransport.create(
                Identity.generate(), socket_folder=folder, initial_peers=[dead, *second.addresses]
            )
            stream = await third.open(first.peer_id)  # never dialled: libp2p asks `second`
            await stream.send(b"found")
            assert await stream.receive() == b"found"
            await third.close()
            before = files_in(folder)
            with pytest.raises(UnreachableError, match="none of the 1 initial peers"):
                await P2PTransport.create(Identity.generate(), socket_folder=folder, initial_peers=[dead])
            with pytest.raises(UnreachableError, match="does not end in /p2p/"):
                await P2PTransport.create(Identity.generate(), socket_folder=folder, initial_peers=["/ip4/127.0.0.1"])
            assert files_in(folder) == before

    run(body())


def test_one_peer_cannot_take_all_streams(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2p_transport, "MAX_STREAMS_PER_PEER", 2)

    async def body() -> None:
        async with two(folder) as (server, client):
            await server.serve(echo)
            streams = [await client.open(server.peer_id, server.addresses) for _ in range(2)]
            for stream in streams:
                await stream.send(b"served")
                assert await stream.receive() == b"served"
            surplus = await client.open(server.peer_id)
            with pytest.raises(UnreachableError):
                await surplus.receive()
            streams[0].close()
            with pytest.raises(UnreachableError):
                await streams[0].receive()
            while True:  # until the server has seen that close
                stream = await client.open(server.peer_id)
                with contextlib.suppress(UnreachableError):
                    await stream.send(b"served")
                    assert await stream.receive() == b"served"
                    break

    run(body())


def test_nothing_is_left_after_close(run: Run, folder: Path) -> None:
    async def body() -> None:
        cancelled = asyncio.Event()

        async def serve(stream: Stream) -> None:
            await stream.send(b"serving")
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()

        async with two(folder) as (server, client):
            await server.serve(serve)
            stream = await client.open(server.peer_id, server.addresses)
            assert await stream.receive() == b"serving"
            daemons = [transport.p2p._child.pid for transport in (server, client)]
            assert {name.partition("-")[0] for name in files_in(folder)} == {"p2pd", "p2pclient"}
            await server.close()
            await server.close()
            assert cancelled.is_set()
            with pytest.raises(UnreachableError):
                await stream.receive()
            with pytest.raises(UnreachableError, match="closed"):
                await server.open(client.peer_id, client.addresses)
        assert files_in(folder) == []
        for daemon in daemons:
            with pytest.raises(ProcessLookupError):
                os.kill(daemon, 0)

    run(body())


def test_identity_file_is_private_and_gone_even_after_a_failed_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    async def create(*_: Any, identity_path: str, **__: Any) -> None:
        modes.append(stat.S_IMODE(os.stat(identity_path).st_mode))
        raise RuntimeError("no daemon today")

    monkeypatch.setattr(P2P, "create", create)
    with pytest.raises(UnreachableError, match="no daemon today"):
        asyncio.run(P2PTransport.create(Identity.generate(), socket_folder=folder / "deep"))
    assert modes == [0o600]
    assert list((folder / "deep").iterdir()) == []
    assert stat.S_IMODE((folder / "deep").stat().st_mode) == 0o700


def test_socket_folder_with_a_long_path_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="too long a path"):
        asyncio.run(P2PTransport.create(Identity.generate(), socket_folder=folder / ("x" * 100)))
    assert list(folder.iterdir()) == []
