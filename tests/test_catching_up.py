"""A snapshot from several donors at once: some end, lie, are slow or silent. A network in memory, virtual time."""

import asyncio
import hashlib
import random
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from swarm_peer.errors import RefusedError, UnreachableError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.devices import SimulatedDevice
from swarm_peer.simulations.network import Link, MemoryNetwork, MemoryTransport
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import catching_up, snapshots
from swarm_peer.swarm.catching_up import BEYOND_EVERY_PART, Snapshot, fetch_snapshot
from swarm_peer.swarm.compute import BACKGROUND
from swarm_peer.swarm.exchange import Incoming, Meter, Pool, serve_exchanges, serve_watch
from swarm_peer.swarm.fetching import fetch
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.messages import Body, pack
from swarm_peer.swarm.p2p_transport import P2PTransport
from swarm_peer.swarm.snapshot_parts import MOST_AT_ONCE, Offer, PartTable
from swarm_peer.swarm.snapshots import KEPT_SECONDS, SEND_SECONDS, SENDING_AT_ONCE, Snapshots
from swarm_peer.swarm.transport import Stream
from swarm_peer.swarm.versions import VersionStore

RUN, STAGE = "run", 1
PART = 256 << 10
VERSION = 5
MOST = 256 << 20
SIZE = 16 * PART + 777
RATE = 3e6
"""Bytes a second of the newcomer's link; each donor's carries half of that."""

SILENCE = 3.0
MAKING = 0.05
"""A question has come to a donor by then, and what it asks for is not yet made."""

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
            await serve_watch(incoming, pb.Heartbeat)
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


class Recorded(PartTable):
    """Fails when a part that is there is asked for once more; counts what is asked for twice."""

    tables: ClassVar[list["Recorded"]] = []

    def __init__(self, offer: Offer, donors: int) -> None:
        super().__init__(offer, donors)
        self.times = Counter[int]()
        self.there: set[int] = set()
        self.tables.append(self)

    def next_for(self, donor: str, now: float) -> int | None:
        part = super().next_for(donor, now)
        if part is not None:
            assert part not in self.there
            self.times[part] += 1
        return part

    def arrived(self, part: int, donor: str, data: bytes, now: float) -> None:
        super().arrived(part, donor, data, now)
        self.there.add(part)


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    monkeypatch.setattr(snapshots, "STATE_PART_BYTES", PART)
    monkeypatch.setattr(Recorded, "tables", [])
    monkeypatch.setattr(catching_up, "PartTable", Recorded)
    return Recorded


def in_virtual_time(body: Coroutine[Any, Any, None], limit: float = 1000.0) -> None:
    run(body, limit=limit)


def assert_right(snapshot: Snapshot, version: int = VERSION) -> None:
    assert snapshot.version == version
    assert hashlib.sha256(snapshot.data).digest() == hashlib.sha256(STATES[version]).digest()


def now() -> float:
    return asyncio.get_running_loop().time()


# ---- what works


def test_donors_share_the_load_and_fill_the_newcomers_link() -> None:
    async def body() -> None:
        world = World()
        for name in "abc":
            await world.add(name)
        began = now()
        assert_right(await world.fetch())
        assert SIZE / (now() - began) > 0.8 * RATE
        shares = [donor.given for donor in world.donors.values()]
        assert sum(shares) == -(-SIZE // PART)
        assert min(shares) >= 4
        assert [donor.backend.exports for donor in world.donors.values()] == [1, 1, 1]
        assert world.meter.received < 1.01 * SIZE

    in_virtual_time(body())


@pytest.mark.parametrize("latency", [0.01, 0.05])
def test_one_donor_alone_fills_the_link_too(latency: float) -> None:
    async def body() -> None:
        world = World(latency=latency)
        await world.add("a", up=None)
        began = now()
        assert_right(await world.fetch())
        assert SIZE / (now() - began) > 0.8 * RATE

    in_virtual_time(body())


def test_a_slow_donor_does_not_hold_up_the_end(recorded: type[Recorded]) -> None:
    async def body() -> None:
        world = World(down=None)
        for name in "ab":
            await world.add(name)
        await world.add("slow", up=RATE / 30)
        began = now()
        assert_right(await world.fetch())
        # The slow one needs 5 s for its first two parts, which the others fetch once more.
        assert 2 * PART / (RATE / 30) > 5.0
        assert now() - began < 2.0 * SIZE / RATE
        (table,) = recorded.tables
        assert sum(table.times.values()) == PARTS + 2

    in_virtual_time(body())


def test_parts_are_no_larger_than_a_payload_may_be() -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a")
        donor.snapshots.max_payload = 30_000
        assert_right(await world.fetch(max_payload=30_000))
        assert len(donor.asked) == -(-SIZE // 30_000)

    in_virtual_time(body())


def test_a_state_of_no_bytes_is_a_state() -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a", versions=())
        donor.versions.put(VERSION, b"", b"")
        snapshot = await world.fetch()
        assert (snapshot.version, snapshot.data) == (VERSION, b"")

    in_virtual_time(body())


def test_the_version_that_is_asked_for_is_given_and_no_other() -> None:
    async def body() -> None:
        world = World()
        await world.add("a", versions=(4, VERSION))
        await world.add("b", versions=(4,))
        assert_right(await world.fetch(), 4)
        assert_right(await world.fetch(version=VERSION))
        with pytest.raises(UnreachableError, match=r"a refused \(NOT_KEPT\): version 9.*b refused \(NOT_KEPT\)"):
            await world.fetch(version=9)

    in_virtual_time(body())


def test_donors_whose_oldest_versions_differ_give_the_newest_of_these() -> None:
    async def body() -> None:
        world = World()
        a = await world.add("a", versions=(4, VERSION))
        b = await world.add("b", versions=(VERSION, 6))
        assert_right(await world.fetch())
        assert a.given
        assert b.given

    in_virtual_time(body())


def test_nobody_to_ask_is_an_error() -> None:
    async def body() -> None:
        with pytest.raises(UnreachableError, match="nobody gives the state of stage 1: no replica is ready"):
            await World().fetch()

    in_virtual_time(body())


# ---- who ends or is silent


@pytest.mark.parametrize("asked", [1, 2, 4])
@pytest.mark.parametrize("order", ["ab", "bc", "ca", "cb"])
def test_all_donors_but_one_die_in_turn(order: str, asked: int, recorded: type[Recorded]) -> None:
    async def body() -> None:
        world = World()
        for name in "abc":
            await world.add(name)
        first, second = (world.donors[name] for name in order)
        first.after[asked] = first.kill
        second.after[asked + 2] = second.kill
        assert_right(await world.fetch())
        assert first.node.killed
        assert second.node.killed
        (table,) = recorded.tables
        again = [part for part, times in table.times.items() if times > 1]
        assert 1 <= len(again) <= 2 * MOST_AT_ONCE
        # Whatever arrived was kept: what was lost is what the two were at.
        assert world.meter.received <= SIZE * 1.01 + 2 * MOST_AT_ONCE * PART

    in_virtual_time(body())


def test_when_all_die_the_error_says_so_of_each() -> None:
    async def body() -> None:
        world = World()
        for name in "ab":
            donor = await world.add(name)
            donor.after[3] = donor.kill
        with pytest.raises(UnreachableError, match=r"stage 1: .*a (cannot|has ended).*; .*b (cannot|has ended)"):
            await world.fetch()

    in_virtual_time(body())


@pytest.mark.parametrize("asked", [1, 4])
def test_a_donor_that_freezes_holds_it_up_no_longer_than_the_limit(asked: int) -> None:
    async def body() -> None:
        world = World()
        for name in "ab":
            await world.add(name)
        frozen = world.donors["a"]
        frozen.after[asked] = frozen.freeze
        began = now()
        assert_right(await world.fetch())
        assert now() - began < SIZE / (RATE / 2) + SILENCE + 1.0

    in_virtual_time(body())


def test_a_donor_that_is_frozen_from_the_start_does_not_either() -> None:
    async def body() -> None:
        world = World()
        for name in "ab":
            await world.add(name)
        world.donors["a"].node.freeze()
        began = now()
        assert_right(await world.fetch())
        assert SILENCE < now() - began < SIZE / (RATE / 2) + SILENCE + 1.0
        # More than half of three are enough to begin.
        await world.add("c")
        began = now()
        assert_right(await world.fetch())
        assert now() - began < SIZE / RATE + 1.0

    in_virtual_time(body())


def test_a_donor_that_says_that_it_lives_and_gives_nothing_is_done_without() -> None:
    async def body() -> None:
        async def wait(incoming: Incoming, question: pb.Fetch) -> None:
            if question.part == BEYOND_EVERY_PART:
                await incoming.channel.send(honest(question)[0])
            else:
                await asyncio.Event().wait()

        world = World()
        for name in "ab":
            await world.add(name)
        world.donors["a"].lie = wait
        began = now()
        assert_right(await world.fetch())
        assert now() - began < SIZE / (RATE / 2) + 4.0

    in_virtual_time(body())


def test_a_real_donor_that_ends_in_the_middle_is_done_without(recorded: type[Recorded]) -> None:
    """libp2p processes on loopback, real time."""

    async def body(folder: Path) -> None:
        transports = [await P2PTransport.create(Identity.generate(), socket_folder=folder) for _ in range(4)]
        newcomer, *donors = transports
        given = Counter[str]()
        ends = asyncio.Event()

        def serving(transport: P2PTransport) -> Callable[[Stream], Awaitable[None]]:
            async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
                if isinstance(body, pb.Watch):
                    await serve_watch(incoming, pb.Heartbeat)
                    return
                assert isinstance(body, pb.Fetch)
                given[transport.peer_id] += body.part != BEYOND_EVERY_PART
                if given[transport.peer_id] == 3 and transport is donors[0]:
                    transport.p2p._child.kill()
                    ends.set()
                    await asyncio.Event().wait()
                if given[transport.peer_id] >= 3:
                    await ends.wait()  # the others leave it something to do
                await incoming.channel.send(*honest(body))

            return lambda stream: serve_exchanges(stream, Meter(), lambda: 0, dispatch)

        try:
            for donor in donors:
                await donor.serve(serving(donor))
            pool = Pool(newcomer, Meter())
            members = [pb.Member(peer=donor.peer_id, addresses=donor.addresses) for donor in donors]
            assert_right(await fetch_snapshot(pool, members, RUN, STAGE, MOST, max_bytes=SIZE))
            assert min(given[donor.peer_id] for donor in donors) >= 3
            pool.close()
        finally:
            for transport in transports:
                await transport.close()

    async def limited(folder: Path) -> None:
        async with asyncio.timeout(60.0):
            await body(folder)

    with tempfile.TemporaryDirectory(prefix="cu-") as folder:  # not tmp_path: a socket's path has about 100 bytes
        asyncio.run(limited(Path(folder)))
    (table,) = recorded.tables
    assert any(times > 1 for times in table.times.values())


# ---- who lies


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


Change = Callable[[pb.Fetched, bytes], tuple[pb.Fetched, bytes]]


def lying(of_list: Change | None = None, of_parts: Change | None = None) -> Serve:
    async def serve(incoming: Incoming, question: pb.Fetch) -> None:
        answer, data = honest(question)
        change = of_list if question.part == BEYOND_EVERY_PART else of_parts
        if change is not None:
            answer, data = change(answer, data)
        await incoming.channel.send(answer, data)

    return serve


def with_fields(digests: Sequence[bytes] | None = None, **fields: int) -> Change:
    def change(answer: pb.Fetched, data: bytes) -> tuple[pb.Fetched, bytes]:
        for name, value in fields.items():
            setattr(answer, name, value)
        if digests is not None:
            del answer.digests[:]
            answer.digests.extend(digests)
        return answer, data

    return change


async def heartbeat(incoming: Incoming, question: pb.Fetch) -> None:
    await incoming.channel.send(pb.Heartbeat())


PARTS = -(-SIZE // PART)
LIES_OF_PARTS = {
    "other bytes": (lying(of_parts=lambda answer, data: (answer, b"x" + data[1:])), "are not part"),
    "fewer bytes": (lying(of_parts=lambda answer, data: (answer, data[:-1])), "are not part"),
    "no bytes": (lying(of_parts=lambda answer, data: (answer, b"")), "sent 0 bytes that are not part"),
    "more bytes": (
        lying(of_parts=lambda answer, data: (answer, data + bytes(PART))),
        "announces .* at most",
    ),
    "of another version": (lying(of_parts=with_fields(version=6)), "asked for version 5 and gave 6"),
}
LIES_OF_OFFERS = {
    "another message": (heartbeat, "answered a Fetch with Heartbeat"),
    "no digests": (lying(with_fields(digests=())), f"offers {PARTS} parts and sends 0 digests"),
    "a digest too few": (lying(with_fields(digests=[bytes(32)] * (PARTS - 1))), f"sends {PARTS - 1} digests"),
    "digests too short": (lying(with_fields(digests=[bytes(31)] * PARTS)), "none of 32 bytes"),
    "too many parts": (lying(with_fields(parts=(1 << 32) - 1)), "in 4294967295 parts; at most 16384"),
    "more parts than fit": (lying(with_fields(parts=10_000, size=10_001)), "does not add up"),
    "no parts": (lying(with_fields(parts=0, digests=())), "in 0 parts, which does not add up"),
    "too many bytes": (lying(with_fields(size=1 << 60)), f"of {1 << 60} bytes; at most {SIZE} are accepted"),
    "parts too large": (lying(with_fields(parts=1, digests=[bytes(32)])), f"parts of {SIZE} bytes; at most {2 * PART}"),
    "another version": (lying(with_fields(version=6)), "asked for version 5 and offers 6"),
    "bytes with the offer": (lying(lambda answer, data: (answer, bytes(9))), "announces 9 bytes of payload; at most 0"),
}


@pytest.mark.parametrize("lie", LIES_OF_OFFERS | LIES_OF_PARTS)
def test_a_lie_is_an_error_and_honest_donors_are_enough(lie: str, recorded: type[Recorded]) -> None:
    serve, said = (LIES_OF_OFFERS | LIES_OF_PARTS)[lie]

    async def body() -> None:
        world = World()
        liar = await world.add("liar")
        liar.lie = serve
        with pytest.raises(UnreachableError, match=f"nobody gives the state of stage 1: .*liar .*{said}"):
            await world.fetch(version=VERSION, max_payload=2 * PART)
        # Room is made for nothing that does not add up.
        assert len(recorded.tables) == (lie in LIES_OF_PARTS)
        liar.asked.clear()
        for name in "ab":
            await world.add(name)
        assert_right(await world.fetch(version=VERSION, max_payload=2 * PART))
        assert len(liar.asked) <= MOST_AT_ONCE

    in_virtual_time(body())


def forging(data: bytes, version: int = VERSION) -> Serve:
    """Another state, with its right digests."""

    async def serve(incoming: Incoming, question: pb.Fetch) -> None:
        await incoming.channel.send(*honest(question, data, version))

    return serve


@pytest.mark.parametrize("version", [0, VERSION, 1 << 60])
def test_what_fewer_donors_offer_loses(version: int) -> None:
    async def body() -> None:
        world = World()
        for name in "fab":
            await world.add(name)
        forger = world.donors["f"]
        forger.lie = forging(bytes(SIZE), version)
        assert_right(await world.fetch())
        assert not forger.asked

    in_virtual_time(body())


def test_honest_donors_of_two_versions_win_against_a_forger() -> None:
    async def body() -> None:
        world = World()
        forger = await world.add("forger")
        forger.lie = forging(bytes(SIZE), 4)
        await world.add("a", versions=(4, VERSION))
        await world.add("b", versions=(VERSION,))
        assert_right(await world.fetch())
        assert not forger.asked

    in_virtual_time(body())


def test_the_next_offer_is_taken_when_nobody_is_left_of_the_first(recorded: type[Recorded]) -> None:
    async def body() -> None:
        world = World()
        for name in "fga":
            donor = await world.add(name)
            if name != "a":
                donor.lie = forging(bytes(SIZE))
                donor.after[3] = donor.kill
        assert_right(await world.fetch())
        assert len(recorded.tables) == 2

    in_virtual_time(body())


# ---- the donor's end


async def ask(world: World, donor: str, version: int, part: int = BEYOND_EVERY_PART) -> tuple[pb.Fetched, bytes]:
    question = pb.Fetch(run=RUN, kind=pb.Fetch.STATE, stage=STAGE, version=version, part=part)
    return await fetch(world.pool, donor, question, MOST)


def test_whoever_asks_at_once_gets_one_export_which_is_kept_while_it_is_read() -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a")
        answers = await asyncio.gather(*(ask(world, "a", VERSION) for _ in range(3)))
        assert len({answer.SerializeToString() for answer, _ in answers}) == 1
        assert donor.backend.exports == 1
        donor.versions.drop_below(VERSION + 1)
        for part in range(3):
            await asyncio.sleep(KEPT_SECONDS - 1.0)
            assert (await ask(world, "a", VERSION, part))[1] == honest(pb.Fetch(part=part))[1]
        assert donor.backend.exports == donor.snapshots.held == 1
        await asyncio.sleep(KEPT_SECONDS + 0.1)
        assert donor.snapshots.held == 0
        with pytest.raises(RefusedError, match="version 5 of stage 1 is not kept"):
            await ask(world, "a", VERSION, 4)

    in_virtual_time(body())


def test_no_more_than_two_exports_are_held() -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a", versions=(4, VERSION, 6))
        await ask(world, "a", 4)
        await ask(world, "a", VERSION)
        with pytest.raises(RefusedError, match=r"NOT_READY.*versions \[4, 5\] of stage 1 are being read"):
            await ask(world, "a", 6)
        for part in range(10):
            await asyncio.sleep(1.0)
            await ask(world, "a", VERSION, part)
        # Nobody has read version 4 for a while: it gives way.
        await ask(world, "a", 6)
        assert donor.snapshots.held == 2
        with pytest.raises(RefusedError, match=r"versions \[5, 6\] of stage 1 are being read"):
            await ask(world, "a", 4)

    in_virtual_time(body())


def test_one_who_is_cancelled_while_the_export_is_made_leaves_it_to_the_next() -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a")
        donor.device.durations = {BACKGROUND: 2 * MAKING}
        stream = await world.pool.transport.open("a")
        await stream.send(pack(pb.Fetch(run=RUN, kind=pb.Fetch.STATE, stage=STAGE, version=VERSION)))
        await asyncio.sleep(MAKING)
        assert donor.snapshots.held
        second = asyncio.create_task(ask(world, "a", VERSION))
        await asyncio.sleep(0.015)
        donor.serving[0].cancel()
        answer, _ = await second
        assert answer.digests

    in_virtual_time(body())


def test_what_is_cleared_is_given_to_nobody() -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a")
        donor.device.durations = {BACKGROUND: 2 * MAKING}
        answer = asyncio.create_task(ask(world, "a", VERSION))
        await asyncio.sleep(MAKING)
        assert donor.snapshots.held
        donor.snapshots.clear()
        with pytest.raises(RefusedError, match="version 5 of stage 1 is no longer given"):
            await answer

    in_virtual_time(body())


@pytest.mark.parametrize("question", [pb.Fetch(run="other", stage=STAGE), pb.Fetch(run=RUN, stage=STAGE + 1)])
def test_a_state_of_another_run_or_stage_is_refused(question: pb.Fetch) -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a")
        question.kind = pb.Fetch.STATE
        with pytest.raises(RefusedError, match=r"MALFORMED.*asks for a state of stage"):
            await fetch(world.pool, "a", question, 0)
        assert donor.backend.exports == 0

    in_virtual_time(body())


def test_few_parts_leave_at_once_however_many_ask() -> None:
    async def body() -> None:
        sending = most = 0

        class Counted(Snapshots):
            async def _give(self, *question: Any) -> None:
                nonlocal sending, most
                sending += 1
                most = max(most, sending)
                await super()._give(*question)
                sending -= 1

        world = World(down=None)
        donor = await world.add("a")
        donor.snapshots = Counted(RUN, STAGE, donor.backend, donor.device, MOST)  # type: ignore[arg-type]
        await ask(world, "a", VERSION)
        await asyncio.gather(*(ask(world, "a", VERSION, part) for part in range(8)))
        assert most == SENDING_AT_ONCE

    in_virtual_time(body())


def test_an_asker_that_takes_nothing_in_does_not_keep_others_from_their_turn() -> None:
    class Stuck:
        peer = "stuck"

        async def send(self, body: Body, payload: bytes = b"") -> None:
            await asyncio.Event().wait()

    async def body() -> None:
        world = World()
        donor = await world.add("a")
        question = pb.Fetch(run=RUN, kind=pb.Fetch.STATE, stage=STAGE, version=VERSION)
        await ask(world, "a", VERSION)
        stuck = [
            asyncio.create_task(donor.snapshots.serve(Incoming(Stuck(), None), question, donor.versions))  # type: ignore[arg-type]
            for _ in range(SENDING_AT_ONCE)
        ]
        await asyncio.sleep(1.0)
        began = now()
        await fetch(world.pool, "a", question, MOST, 2 * SEND_SECONDS)
        assert SEND_SECONDS - 2.0 < now() - began < SEND_SECONDS + 1.0
        for ended in await asyncio.gather(*stuck, return_exceptions=True):
            assert isinstance(ended, UnreachableError)

    in_virtual_time(body())


# ---- who is asked for what


def offer(parts: int) -> tuple[Offer, list[bytes]]:
    data = [bytes([part]) * 10 for part in range(parts)]
    return Offer(1, 10 * parts, tuple(hashlib.sha256(part).digest() for part in data)), data


def test_quick_donors_are_asked_for_more_at_once_and_slow_ones_for_less() -> None:
    made, data = offer(40)
    table = PartTable(made, 4)

    def at_once(donor: str, seconds: float) -> int:
        """How many parts it is asked for at once, all of which come after so long."""
        asked = list(iter(lambda: table.next_for(donor, 0.0), None))
        for part in asked:
            table.arrived(part, donor, data[part], seconds)
            table.ended(part, donor)
        return len(asked)

    assert [at_once("quick", 0.1) for _ in range(4)] == [2, 4, 4, 4]
    assert [at_once("slow", 9.0) for _ in range(3)] == [2, 1, 1]
    assert at_once("slow", 0.1) == 1
    assert at_once("slow", 0.1) == 2
    assert table.arrived_bytes == 10 * 21


@pytest.mark.parametrize(("donors", "asked"), [(1, 4), (2, 4), (3, 2), (8, 1), (50, 1)])
def test_many_donors_are_asked_for_few_parts_each_at_first(donors: int, asked: int) -> None:
    table = PartTable(offer(100)[0], donors)
    assert len(list(iter(lambda: table.next_for("a", 0.0), None))) == asked


def test_at_the_end_what_is_late_is_asked_of_one_more() -> None:
    made, data = offer(3)
    table = PartTable(made, 4)
    assert [table.next_for("a", 0.0), table.next_for("b", 1.0), table.next_for("a", 1.0)] == [0, 1, 2]
    table.arrived(1, "b", data[1], 4.0)  # a part takes 3 s
    table.ended(1, "b")
    assert table.next_for("b", 11.9) is None
    assert table.look_again("b") == 12.0
    assert table.look_again("a") is None
    assert table.next_for("b", 12.0) == 0
    assert table.next_for("c", 12.0) is None  # two are at part 0, and the other is not late yet
    assert table.look_again("c") == 13.0
    assert table.next_for("c", 13.0) == 2
    # The first to bring it counts; the other is of no use, and no harm.
    table.arrived(0, "b", data[0], 14.0)
    table.ended(0, "b")
    table.arrived(0, "a", data[0], 15.0)
    table.ended(0, "a")
    # One of two that were at it fails: the other goes on. Both: it is to be asked for anew.
    table.ended(2, "c")
    assert table.next_for("d", 15.0) is None
    table.ended(2, "a")
    assert table.next_for("d", 15.0) == 2
    table.arrived(2, "d", data[2], 16.0)
    assert table.complete
    assert bytes(table.data) == b"".join(data)
