"""What a visit of 16 MiB each way costs on fresh, kept and multiplexed streams, at several round trips.

    python benchmarks/transport.py [--megabytes 16] [--rounds 5] [--idle 20] [--megabits 200]

Two processes with a p2pd each, whose only way to each other is a delaying proxy on loopback. The caller sends a Run
with its payload, the callee answers Done with as much. *Fresh*: a stream of its own for each visit. *Kept*: the
transport's way (`Pool`), a stream that has carried visits before, on which tensors go one after the other. *At once*:
the same, but all of them go at the same time, as on fresh ones. *Multiplexed*: all visits on one long-lived stream, in
turn, each with credits for what it may have on its way. Figures are medians of seconds from Run to Done, of each of N
visits begun at once. The proxy delays, thins if it is told to, and drops nothing, so this is libp2p's flow control (a
stream's window grows by doubling), not TCP's congestion control.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from swarm_peer.errors import UnreachableError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.loopback_proxy import ProxyNet
from swarm_peer.swarm.exchange import Channel, Meter, Pool
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.messages import Body
from swarm_peer.swarm.p2p_stream import P2PStream
from swarm_peer.swarm.p2p_transport import P2PTransport
from swarm_peer.swarm.process import Interrupted, run_process
from swarm_peer.swarm.serving import Incoming, serve_exchanges
from swarm_peer.swarm.transport import Contact, Stream

ROUND_TRIPS = (0.0, 0.1, 0.3)
AT_ONCE = (1, 4, 8)
WAYS = ("fresh", "at once", "kept", "multiplexed")
MAX_PAYLOAD = 1 << 30
CALLEE = Identity.from_seed("callee")


# ---- the contender: many streams on one


class Multiplexed:
    """One stream that carries many. A frame begins with the number of its stream; `CREDIT` bytes of each may be on
    their way; an empty frame ends one, and one of four bytes gives credit back."""

    CREDIT = 64 << 20

    def __init__(self, stream: Stream, serve: Callable[[Stream], Awaitable[None]] | None = None) -> None:
        self.stream = stream
        self._serve = serve
        self._streams: dict[int, Substream] = {}
        self._turn = asyncio.Lock()
        self._next = 0
        self._tasks = [asyncio.create_task(self._read())]

    def open(self) -> "Substream":
        self._next += 1
        return self._streams.setdefault(self._next, Substream(self, self._next))

    async def write(self, number: int, kind: bytes, data: bytes) -> None:
        async with self._turn:  # first come, first served: one frame of each stream in turn
            await self.stream.send(number.to_bytes(4, "little") + kind + data)

    def post(self, number: int, kind: bytes, data: bytes) -> bool:
        return not self._turn.locked() and self.stream.post(number.to_bytes(4, "little") + kind + data)

    async def _read(self) -> None:
        try:
            while True:
                frame = await self.stream.receive()
                number, kind, data = int.from_bytes(frame[:4], "little"), frame[4:5], frame[5:]
                if number not in self._streams and self._serve is not None and kind == b"d":
                    stream = self._streams[number] = Substream(self, number)
                    self._tasks.append(asyncio.ensure_future(self._serve(stream)))  # type: ignore[arg-type]
                found = self._streams.get(number)
                if found is not None:
                    found.take(kind, data)
        except UnreachableError:
            for stream in self._streams.values():
                stream.take(b"e", b"")

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.stream.close()


class Substream:
    ended = relayed = False

    def __init__(self, carrier: Multiplexed, number: int) -> None:
        self.contact = Contact()
        self._carrier = carrier
        self._number = number
        self._credit = Multiplexed.CREDIT
        self._given = asyncio.Event()
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()

    @property
    def peer(self) -> str:
        return self._carrier.stream.peer

    async def send(self, frame: bytes) -> None:
        while self._credit < len(frame):
            self._given.clear()
            await self._given.wait()
        self._credit -= len(frame)
        await self._carrier.write(self._number, b"d", frame)

    def post(self, frame: bytes) -> bool:
        if self._credit < len(frame) or not self._carrier.post(self._number, b"d", frame):
            return False
        self._credit -= len(frame)
        return True

    async def each(self, take: Callable[[bytes], bool]) -> None:
        while take(await self.receive()):
            pass

    async def receive(self) -> bytes:
        frame = await self._arrived.get()
        if frame is None:
            raise UnreachableError("the stream has ended")
        await self._carrier.write(self._number, b"c", len(frame).to_bytes(4, "little"))
        return frame

    def take(self, kind: bytes, data: bytes) -> None:
        if kind == b"c":
            self._credit += int.from_bytes(data, "little")
            self._given.set()
        else:
            self._arrived.put_nowait(data if kind == b"d" else None)

    def close(self) -> None:
        self.take(b"e", b"")


# ---- the two processes


async def serve(listen: str, announce: str) -> None:
    """The callee: answers each Run with as many bytes as came with it; a stream that begins with Hello is a carrier."""
    meter, heartbeats = Meter(), Heartbeats(pb.Heartbeat)

    async def answer(incoming: Incoming, body: Body, payload: bytes) -> None:
        if isinstance(body, pb.Watch):
            await heartbeats.serve(incoming)
        await incoming.channel.send(pb.Done(), payload)

    async def one(stream: Stream) -> None:
        await serve_exchanges(stream, meter, lambda: MAX_PAYLOAD, answer)

    async def carrier(stream: P2PStream) -> None:
        with contextlib.suppress(UnreachableError):
            kind = await stream.receive()
            if kind == b"many":
                await Multiplexed(stream, one)._tasks[0]
            else:
                await one(_with_its_own_turns(stream) if kind == b"at once" else stream)

    async with node(CALLEE, listen, announce) as transport:
        await transport.serve(carrier)
        print("ready", flush=True)
        await asyncio.Event().wait()


def _with_its_own_turns(stream: P2PStream) -> P2PStream:
    stream.contact = Contact()
    return stream


class Marked:
    """A pool's transport, whose streams say first how they carry exchanges."""

    def __init__(self, transport: P2PTransport, kind: bytes) -> None:
        self._transport = transport
        self._kind = kind
        self.contacts = transport.contacts

    async def open(self, peer: str, addresses: tuple[str, ...] = ()) -> P2PStream:
        stream = await self._transport.open(peer, addresses)
        await stream.send(self._kind)
        return _with_its_own_turns(stream) if self._kind == b"at once" else stream


async def call(listen: str, announce: str, callee: str, size: int, rounds: int, idle: float) -> None:
    """The caller: prints the seconds of its visits as JSON."""
    async with node(Identity.from_seed("caller"), listen, announce) as transport:
        marked = {"fresh": Marked(transport, b"at once")} | {
            kind: Marked(transport, kind.encode()) for kind in WAYS[1:3]
        }
        pools = {
            kind: Pool(marked[kind], Meter(), {CALLEE.peer_id: (callee,)}, silence=60.0)  # type: ignore[arg-type]
            for kind in WAYS[1:3]
        }
        carrier_stream = await transport.open(CALLEE.peer_id, (callee,))
        await carrier_stream.send(b"many")
        carrier = Multiplexed(carrier_stream)
        payload = bytes(size)

        @asynccontextmanager
        async def channel(way: str) -> AsyncIterator[Channel]:
            if way in pools:
                async with pools[way].exchange(CALLEE.peer_id) as kept:
                    yield kept
            else:
                stream = carrier.open() if way == "multiplexed" else await marked[way].open(CALLEE.peer_id)
                yield Channel(stream, Meter())
                stream.close()

        async def visit(way: str) -> float:
            loop = asyncio.get_running_loop()
            began = loop.time()
            async with channel(way) as made:
                await made.send(pb.Run(), payload)
                _, answer = await made.receive(MAX_PAYLOAD)
                assert len(answer) == size
                return loop.time() - began

        found: dict[str, list[float]] = {}
        for at_once in AT_ONCE:
            for number in range(rounds + 2):
                for way in WAYS:
                    seconds = await asyncio.gather(*(visit(way) for _ in range(at_once)))
                    if number >= 2:  # those before have warmed the streams
                        found.setdefault(f"{way} {at_once}", []).extend(seconds)
        if idle:
            await asyncio.sleep(idle)
            for way in WAYS:
                found[f"{way} idle"] = [await visit(way)]
        print(json.dumps(found), flush=True)
        carrier.close()
        for pool in pools.values():
            pool.close()


@asynccontextmanager
async def node(identity: Identity, listen: str, announce: str) -> AsyncIterator[P2PTransport]:
    with tempfile.TemporaryDirectory(prefix="bt-") as folder:
        transport = await P2PTransport.create(
            identity, socket_folder=Path(folder), listen=(listen,), announce=(announce,)
        )
        try:
            yield transport
        finally:
            await transport.close()


def measure(round_trip: float, size: int, rounds: int, idle: float, rate: float) -> dict[str, list[float]]:
    """Seconds of visits by way and number at once, in processes of their own; `rate`: bytes a second each way, 0: as
    many as come through."""
    with ProxyNet(delay=round_trip / 2) as net:
        if rate:
            net.thin("caller", "callee", rate)
            net.thin("callee", "caller", rate)

        def start(role: str, *arguments: str) -> "subprocess.Popen[str]":
            where = (net.listen_for(role), net.address_for(role))
            return subprocess.Popen(
                [sys.executable, __file__, "--role", role, *where, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

        with start("callee") as callee:
            assert callee.stdout is not None
            assert callee.stdout.readline() == "ready\n"
            with start("caller", net.address_for("callee"), str(size), str(rounds), str(idle)) as caller:
                output, _ = caller.communicate()
            callee.communicate()
    found: dict[str, list[float]] = json.loads(output)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Fresh, kept and multiplexed streams side by side.")
    parser.add_argument("--megabytes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds before the last visit")
    parser.add_argument("--megabits", type=float, default=0.0, help="a second each way (default: no limit)")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, listen, announce, *rest = options.role
        if role == "callee":
            with contextlib.suppress(Interrupted):
                run_process(serve(listen, announce), watch_parent=True)
        else:
            run_process(call(listen, announce, rest[0], int(rest[1]), int(rest[2]), float(rest[3])))
        return
    print(
        "| round trip | visits at once | fresh, s | at once, s | kept, s | multiplexed, s "
        "| kept / fresh | kept / at once | multiplexed / kept |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for round_trip in ROUND_TRIPS:
        found = measure(round_trip, options.megabytes << 20, options.rounds, options.idle, 1e6 / 8 * options.megabits)
        for at_once in (*map(str, AT_ONCE), *(["idle"] if options.idle else [])):
            fresh, once, kept, many = (statistics.median(found[f"{way} {at_once}"]) for way in WAYS)
            what = f"1, after {options.idle:.0f} s idle" if at_once == "idle" else at_once
            print(
                f"| {1000 * round_trip:.0f} ms | {what} | {fresh:.2f} | {once:.2f} | {kept:.2f} | {many:.2f} "
                f"| {kept / fresh:.2f} | {kept / once:.2f} | {many / kept:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
