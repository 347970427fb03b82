"""A snapshot from several donors at once: some end, lie, are slow or silent. A network in memory, virtual time."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from swarm_peer.errors import UnreachableError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm import catching_up
from swarm_peer.swarm.catching_up import BEYOND_EVERY_PART, fetch_snapshot
from swarm_peer.swarm.exchange import Meter, Pool
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.messages import Body
from swarm_peer.swarm.p2p_transport import P2PTransport
from swarm_peer.swarm.serving import Incoming, serve_exchanges
from swarm_peer.swarm.snapshot_parts import MOST_AT_ONCE, Offer, PartTable
from swarm_peer.swarm.transport import Stream

from tests.donors import (
    MOST,
    PART,
    PARTS,
    RATE,
    RUN,
    SILENCE,
    SIZE,
    STAGE,
    VERSION,
    Serve,
    World,
    assert_right,
    honest,
    in_virtual_time,
    now,
    small_parts,
)

__all__ = ["small_parts"]


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
    monkeypatch.setattr(Recorded, "tables", [])
    monkeypatch.setattr(catching_up, "PartTable", Recorded)
    return Recorded


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
        await world.add("slow", up=RATE / 60)
        began = now()
        assert_right(await world.fetch())
        # The slow one needs 5 s for its first two parts, which the others fetch once more.
        assert 2 * PART / (RATE / 60) > 5.0
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
        third = {donor.peer_id: asyncio.Event() for donor in donors}

        def serving(transport: P2PTransport) -> Callable[[Stream], Awaitable[None]]:
            async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
                if isinstance(body, pb.Watch):
                    await Heartbeats(pb.Heartbeat).serve(incoming)
                    return
                assert isinstance(body, pb.Fetch)
                given[transport.peer_id] += body.part != BEYOND_EVERY_PART
                if given[transport.peer_id] == 3:
                    third[transport.peer_id].set()
                if given[transport.peer_id] == 3 and transport is donors[0]:
                    for asked in third.values():  # however slow another one is
                        await asked.wait()
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
