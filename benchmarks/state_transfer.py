"""How much of a link of 200 Mbit/s a newcomer fills while it fetches the state of its stage, also when donors die.

    python benchmarks/state_transfer.py [--megabytes 64] [--round-trips 20 100] [--json]

Processes with a p2pd each, whose only way to each other is a delaying proxy on loopback; in front of the newcomer it
lets 200 Mbit/s through (`simulations/loopback_proxy.py`). Donors serve as a peer does (`swarm/snapshots.py`), the
newcomer fetches as a peer does (`swarm/catching_up.py`). *Seconds* are from the first question to the last byte, over
connections that are there, of a state that donors have made ready; *ready* is what that took before (export and
digests, all donors on this one machine at once). *Plain*: the same bytes as one payload on one fresh stream. *Killed*:
SIGKILL when the first donor has sent a third of its share; for "1 and 2" also when the second has sent two thirds.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.loopback_proxy import ProxyNet
from swarm_peer.swarm.catching_up import BEYOND_EVERY_PART, fetch_snapshot
from swarm_peer.swarm.compute import ThreadDevice
from swarm_peer.swarm.exchange import Meter, Pool
from swarm_peer.swarm.fetching import fetch
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.messages import Body
from swarm_peer.swarm.p2p_transport import P2PTransport
from swarm_peer.swarm.process import Interrupted, run_process
from swarm_peer.swarm.serving import Incoming, serve_exchanges
from swarm_peer.swarm.snapshots import Snapshots
from swarm_peer.swarm.versions import VersionStore

LINK = 25e6
"""Bytes a second: 200 Mbit/s."""

RUN, STAGE, VERSION = "run", 0, 1
MAX_PAYLOAD = 1 << 30
DONORS = ("a", "b", "c", "d", "e", "f")
UNDISTURBED = (("a",), ("a", "b"), ("a", "b", "c"))
KILLED = (
    (("a", "b", "c"), ("a",)),
    (("d", "b", "c"), ("b",)),
    (("d", "e", "c"), ("c",)),
    (("d", "e", "f"), ("d", "e")),
)
"""Who gives, and who of them is killed: the first, the second, the third; the first and then the second."""

NEWCOMER = "newcomer"


def state(size: int) -> bytes:
    return random.Random(size).randbytes(size)


class Exporting:
    """The backend of a donor whose states are their bytes."""

    def export(self, state: bytes) -> bytes:
        return bytes(bytearray(state))


@asynccontextmanager
async def node(name: str, listen: str, announce: str) -> AsyncIterator[P2PTransport]:
    with tempfile.TemporaryDirectory(prefix="bs-") as folder:
        transport = await P2PTransport.create(
            Identity.from_seed(name), socket_folder=Path(folder), listen=(listen,), announce=(announce,)
        )
        try:
            yield transport
        finally:
            await transport.close()


async def give(name: str, listen: str, announce: str, size: int) -> None:
    """A donor."""
    device = ThreadDevice()
    data = state(size)
    versions = VersionStore()
    versions.put(VERSION, data, b"")
    snapshots = Snapshots(RUN, STAGE, Exporting(), device, MAX_PAYLOAD)  # type: ignore[arg-type]
    heartbeats = Heartbeats(pb.Heartbeat)

    async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
        if isinstance(body, pb.Watch):
            await heartbeats.serve(incoming)
        elif isinstance(body, pb.Fetch) and body.kind == pb.Fetch.STATE:
            await snapshots.serve(incoming, body, versions)
        elif isinstance(body, pb.Fetch) and body.kind == pb.Fetch.NOTHING:
            snapshots.clear()
            await incoming.channel.send(pb.Fetched())
        else:
            await incoming.channel.send(pb.Fetched(), data)

    async with node(name, listen, announce) as transport:
        await transport.serve(lambda stream: serve_exchanges(stream, Meter(), lambda: 0, dispatch))
        print("ready", flush=True)
        await asyncio.Event().wait()


async def take(name: str, listen: str, announce: str, size: int) -> None:
    """The newcomer: for each line of donors ("plain", name=address, ...) prints what their state takes."""
    right = hashlib.sha256(state(size)).digest()
    loop = asyncio.get_running_loop()
    async with node(name, listen, announce) as transport:
        print("ready", flush=True)
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
            way, *donors = line
            pool = Pool(transport, Meter())
            members = []
            for donor in donors:
                called, address = donor.split("=")
                members.append(pb.Member(peer=Identity.from_seed(called).peer_id, addresses=(address,)))
                await transport.connect(members[-1].peer, (address,))
                await fetch(pool, members[-1].peer, pb.Fetch(run=RUN, kind=pb.Fetch.NOTHING), 0)
            began = loop.time()
            question = pb.Fetch(run=RUN, kind=pb.Fetch.STATE, stage=STAGE, part=BEYOND_EVERY_PART)
            await asyncio.gather(*(fetch(pool, member.peer, question, 0) for member in members))
            ready = loop.time() - began
            pool.close()
            pool = Pool(transport, Meter())
            began = loop.time()
            data: bytes | bytearray
            if way == "plain":
                _, data = await fetch(pool, members[0].peer, pb.Fetch(run=RUN, kind=pb.Fetch.OUTPUT), size)
            else:
                data = (await fetch_snapshot(pool, members, RUN, STAGE, MAX_PAYLOAD, max_bytes=size)).data
            seconds = loop.time() - began
            assert hashlib.sha256(data).digest() == right
            pool.close()
            print(json.dumps({"ready": ready, "seconds": seconds}), flush=True)


@dataclass(frozen=True)
class Row:
    """One transfer. `share`: of the link; `beside_plain`: how many times as fast as one plain stream."""

    round_trip_ms: float
    donors: int
    killed: str
    ready: float
    seconds: float
    share: float
    beside_plain: float


class Processes:
    """A newcomer behind a narrow link and its donors, all so far apart."""

    def __init__(self, round_trip: float, size: int) -> None:
        self._size = size
        self._net = ProxyNet(delay=round_trip / 2)
        self._net.narrow(NEWCOMER, LINK)
        self._processes = {name: self._start(name) for name in (NEWCOMER, *DONORS)}
        for name in self._processes:
            assert self._line(name) == "ready"

    def _start(self, name: str) -> "subprocess.Popen[str]":
        where = (self._net.listen_for(name), self._net.address_for(name), str(self._size))
        return subprocess.Popen(
            [sys.executable, __file__, "--role", name, *where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _line(self, name: str) -> str:
        output = self._processes[name].stdout
        assert output is not None
        return output.readline().strip()

    def take(self, way: str, donors: Sequence[str], killed: Sequence[str] = ()) -> dict[str, float]:
        """What the state takes from these donors, of whom some are killed on the way: "ready" and "seconds"."""
        before = {name: self._net.carried(name, NEWCOMER) for name in killed}
        question = self._processes[NEWCOMER].stdin
        assert question is not None
        question.write(" ".join((way, *(f"{name}={self._net.address_for(name)}" for name in donors))) + "\n")
        question.flush()
        for number, name in enumerate(killed, 1):
            while self._net.carried(name, NEWCOMER) - before[name] < self._size / len(donors) * number / 3:
                time.sleep(0.01)
            self._processes[name].kill()
        found: dict[str, float] = json.loads(self._line(NEWCOMER))
        return found

    def close(self) -> None:
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()  # they watch their parent
        for process in self._processes.values():
            process.wait()
        self._net.close()


def measure(round_trip_ms: float, size: int) -> Iterator[Row]:
    with closing(Processes(round_trip_ms / 1000, size)) as processes:
        plain = processes.take("plain", DONORS[:1])

        def row(donors: int, killed: str, found: dict[str, float]) -> Row:
            seconds = found["seconds"]
            beside = plain["seconds"] / seconds
            return Row(round_trip_ms, donors, killed, found["ready"], seconds, size / seconds / LINK, beside)

        yield row(1, "none (plain stream)", plain)
        for donors in UNDISTURBED:
            yield row(len(donors), "none", processes.take("parts", donors))
        for donors, killed in KILLED:
            names = " and ".join(f"{donors.index(name) + 1}" for name in killed)
            yield row(len(donors), names, processes.take("parts", donors, killed))


def main() -> None:
    parser = argparse.ArgumentParser(description="A state from several donors over a shaped link.")
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--round-trips", type=float, nargs="+", default=(20.0, 100.0), help="milliseconds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, listen, announce, size = options.role
        with contextlib.suppress(Interrupted):
            if role == NEWCOMER:
                run_process(take(role, listen, announce, int(size)))
            else:
                run_process(give(role, listen, announce, int(size)), watch_parent=True)
        return
    if not options.json:
        print("| round trip | donors | killed | ready, s | seconds | share of 200 Mbit/s | beside the plain stream |")
        print("|---|---|---|---|---|---|---|")
    for round_trip in options.round_trips:
        for row in measure(round_trip, options.megabytes * 1_000_000):
            if options.json:
                print(json.dumps(asdict(row)), flush=True)
                continue
            numbers = f"{row.ready:.2f} | {row.seconds:.2f} | {row.share:.0%} | {row.beside_plain:.2f}"
            print(f"| {row.round_trip_ms:.0f} ms | {row.donors} | {row.killed} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
