"""Two real nodes on loopback, and the validator with bytes made by hand."""

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
import uvloop
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hivemind.utils.timed_storage import get_dht_time
from swarm_peer.errors import TrustError, UnreachableError, WireError
from swarm_peer.swarm import dht_directory
from swarm_peer.swarm.dht_directory import (
    INDEX_KEY,
    MAX_LIFETIME_SECONDS,
    DHTDirectory,
    RecordValidator,
    check_record,
    decode_record,
    key_of,
    sign_record,
)
from swarm_peer.swarm.directory import TRAINER_STAGE, Record
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.p2p_transport import P2PTransport

RUN = "ab" * 32
OTHER_RUN = "cd" * 32
PEER = Identity.from_seed("peer")
STRANGER = Identity.from_seed("stranger")


def record_of(identity: Identity, sequence: int = 1, run: str = RUN, stage: int = 2) -> Record:
    return Record(
        run=run,
        stage=stage,
        peer=identity.peer_id,
        addresses=(f"/ip4/127.0.0.1/tcp/4001/p2p/{identity.peer_id}",),
        sequence=sequence,
        protocol=1,
        throughput=0.5,
        queue=3,
        versions=(6, 7),
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sp-") as name:  # not tmp_path: a socket's path has about 100 bytes
        yield Path(name)


class Swarm:
    """Nodes that are closed at the end, directory before transport."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = contextlib.AsyncExitStack()

    async def node(self, identity: Identity, initial_peers: tuple[str, ...] = ()) -> tuple[P2PTransport, DHTDirectory]:
        transport = await P2PTransport.create(identity, socket_folder=self.folder, initial_peers=initial_peers)
        self.stack.push_async_callback(transport.close)
        directory = await DHTDirectory.create(transport, identity, initial_peers)
        self.stack.push_async_callback(directory.close)
        return transport, directory


@contextlib.asynccontextmanager
async def swarm_in(folder: Path) -> AsyncIterator[Swarm]:
    swarm = Swarm(folder)
    async with asyncio.timeout(60.0), swarm.stack:
        yield swarm


def run(body: Callable[[Swarm], Awaitable[None]], folder: Path, runner: Callable[..., Any] = asyncio.run) -> None:
    async def limited() -> None:
        async with swarm_in(folder) as swarm:
            await body(swarm)

    runner(limited())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_every_node_reads_what_each_publishes(folder: Path, runner: Callable[..., Any]) -> None:
    async def body(swarm: Swarm) -> None:
        identities = sorted((Identity.generate() for _ in range(3)), key=lambda identity: identity.peer_id)
        transport, first = await swarm.node(identities[0])
        nodes = [first]
        for identity in identities[1:]:
            nodes.append((await swarm.node(identity, transport.addresses))[1])
        records = [record_of(identity) for identity in identities]
        for node, record in zip(nodes, records, strict=True):
            await node.publish(record, 30.0)
        for node in nodes:
            assert await node.read(RUN, 2) == tuple(records)
            assert await node.read(RUN, 1) == ()
            assert await node.read(OTHER_RUN, 2) == ()
        newer = replace(records[1], sequence=2, queue=0)
        await nodes[1].publish(newer, 20.0)  # expires earlier than the one that it replaces would
        trainer = record_of(identities[2], stage=TRAINER_STAGE)
        await nodes[2].publish(trainer, 30.0)
        for node in nodes:
            assert await node.read(RUN, 2) == (records[0], newer, records[2])
            assert await node.read(RUN, TRAINER_STAGE) == (trainer,)

    run(body, folder, runner)


def test_first_node_may_go(folder: Path) -> None:
    async def body(swarm: Swarm) -> None:
        transport, first = await swarm.node(Identity.generate())
        _, second = await swarm.node(PEER, transport.addresses)
        _, third = await swarm.node(STRANGER, transport.addresses)
        await second.publish(record_of(PEER), 30.0)
        await first.close()
        await transport.close()
        assert await third.read(RUN, 2) == (record_of(PEER),)
        await third.publish(record_of(STRANGER), 30.0)
        assert set(await second.read(RUN, 2)) == {record_of(PEER), record_of(STRANGER)}

    run(body, folder)


def test_node_that_lost_all_others_says_so_and_comes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dht_directory, "JOIN_PAUSE_SECONDS", 0.0)

    async def body(swarm: Swarm) -> None:
        founder = Identity.generate()
        transport, first = await swarm.node(founder)
        address = transport.addresses[0]
        _, second = await swarm.node(PEER, transport.addresses)
        await first.publish(record_of(founder), 30.0)
        assert await second.read(RUN, 2) == (record_of(founder),)
        await first.close()
        await transport.close()
        assert await second.read(RUN, 2) == (record_of(founder),)  # it keeps a copy
        with pytest.raises(UnreachableError, match="no known node"):
            await second.read(RUN, 1)
        with pytest.raises(UnreachableError, match="no known node"):
            await second.publish(record_of(PEER), 30.0)
        listen = address.partition("/p2p/")[0]
        returned = await P2PTransport.create(founder, socket_folder=swarm.folder, listen=(listen,))
        swarm.stack.push_async_callback(returned.close)
        again = await DHTDirectory.create(returned, founder)
        swarm.stack.push_async_callback(again.close)
        while True:  # libp2p dials an address that has failed again only after 5 s
            try:
                await second.publish(record_of(PEER), 30.0)
                break
            except UnreachableError:
                await asyncio.sleep(0.5)
        # The copy that was kept has come back too.
        assert set(await again.read(RUN, 2)) == {record_of(PEER), record_of(founder)}

    run(body, folder)


def test_nobody_to_join_is_unreachable(folder: Path) -> None:
    async def body(swarm: Swarm) -> None:
        transport, _ = await swarm.node(PEER)
        dead = f"/ip4/127.0.0.1/tcp/1/p2p/{STRANGER.peer_id}"
        other = await P2PTransport.create(Identity.generate(), socket_folder=swarm.folder)
        swarm.stack.push_async_callback(other.close)
        with pytest.raises(UnreachableError, match=STRANGER.peer_id):
            await DHTDirectory.create(other, PEER, [dead])
        # One that is there, but is no node of the DHT:
        bare = await P2PTransport.create(Identity.generate(), socket_folder=swarm.folder)
        swarm.stack.push_async_callback(bare.close)
        with pytest.raises(UnreachableError):
            await DHTDirectory.create(other, PEER, bare.addresses)
        await DHTDirectory.create(other, PEER, [dead, *transport.addresses])

    run(body, folder)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_node_whose_daemon_died_says_so_and_closes(folder: Path, runner: Callable[..., Any]) -> None:
    async def body(swarm: Swarm) -> None:
        founder = Identity.generate()
        transport, first = await swarm.node(founder)
        joined, second = await swarm.node(PEER, transport.addresses)
        await second.publish(record_of(PEER), 30.0)
        for node, identity, daemon in [
            (second, PEER, joined.p2p._child),
            (first, founder, transport.p2p._child),  # alone now, which is no error for a founder as long as p2pd runs
        ]:
            daemon.kill()
            await daemon.wait()
            async with asyncio.timeout(10.0):
                with pytest.raises(UnreachableError, match="p2pd has ended"):
                    await node.read(RUN, 2)
                with pytest.raises(UnreachableError, match="p2pd has ended"):
                    await node.publish(record_of(identity), 30.0)
                await node.close()
                await node.close()

    run(body, folder, runner)


def test_close_does_not_wait_for_a_daemon_that_does_not_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dht_directory, "CLOSE_SECONDS", 0.2)

    async def body(swarm: Swarm) -> None:
        transport, directory = await swarm.node(PEER)
        transport.p2p._child.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(5.0):
                await directory.close()
        finally:
            transport.p2p._child.send_signal(signal.SIGCONT)

    run(body, folder)


def test_clock_that_is_off_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(swarm: Swarm) -> None:
        transport, _ = await swarm.node(PEER)
        monkeypatch.setattr(dht_directory, "get_dht_time", lambda: get_dht_time() + 60.0)
        with pytest.raises(UnreachableError, match="its clock is -60 s"):
            await swarm.node(STRANGER, transport.addresses)

    run(body, folder)


def test_node_takes_no_record_that_does_not_check(folder: Path) -> None:
    async def body(swarm: Swarm) -> None:
        transport, first = await swarm.node(PEER)
        _, second = await swarm.node(STRANGER, transport.addresses)
        store = second._node.store
        soon = get_dht_time() + 30.0
        mine, yours = STRANGER.public_hex, PEER.public_hex
        valid = sign_record(STRANGER, record_of(STRANGER), soon)
        forged = sign_record(STRANGER, record_of(PEER), soon)
        late = get_dht_time() + MAX_LIFETIME_SECONDS + 60.0
        refused: list[tuple[str, Any, float, Any]] = [
            (key_of(RUN, 2), forged, soon, yours),
            (key_of(RUN, 2), forged, soon, mine),
            (key_of(RUN, 2), valid, soon, yours),
            (key_of(RUN, 2), valid, soon, mine.upper()),
            (key_of(RUN, 2), valid, soon, mine.encode()),
            (key_of(RUN, 2), valid, soon, 7),
            (key_of(RUN, 2), valid, soon, None),
            (key_of(RUN, 2), valid, soon + 1.0, mine),
            (key_of(RUN, 2), valid.decode("latin-1"), soon, mine),
            (key_of(RUN, 2), {"peer": mine}, soon, mine),
            (key_of(RUN, 2), valid + bytes(4096), soon, mine),
            (key_of(RUN, 3), valid, soon, mine),
            (key_of(OTHER_RUN, 2), valid, soon, mine),
            ("something else", valid, soon, mine),
            (key_of(RUN, 2), sign_record(STRANGER, record_of(STRANGER), late), late, mine),
        ]
        for key, value, expires, subkey in refused:
            # Past the sender's own check, so that it is the receiver that refuses.
            assert not await store(key, value, expires, subkey=subkey, exclude_self=True), (key, expires, subkey)
            assert await first.read(RUN, 2) == ()
        assert await store(key_of(RUN, 2), valid, soon, subkey=mine, exclude_self=True)
        assert await first.read(RUN, 2) == (record_of(STRANGER),)

    run(body, folder)


def test_the_index_of_runs_takes_trainers_only_and_one_record_of_each(folder: Path) -> None:
    async def body(swarm: Swarm) -> None:
        transport, first = await swarm.node(PEER)
        _, second = await swarm.node(STRANGER, transport.addresses)
        store = second._node.store
        mine = record_of(PEER, stage=TRAINER_STAGE)
        other = record_of(STRANGER, run=OTHER_RUN, stage=TRAINER_STAGE)
        await first.list_run(mine, 30.0)
        await second.list_run(other, 30.0)
        both = tuple(sorted((mine, other), key=lambda record: record.peer))
        for node in (first, second):
            assert await node.listed_runs() == both
            assert await node.read(RUN, TRAINER_STAGE) == ()
        newer = replace(mine, sequence=2)
        await first.list_run(newer, 20.0)
        assert set(await second.listed_runs()) == {newer, other}
        with pytest.raises(WireError, match="out of its range"):
            await first.list_run(record_of(PEER), 30.0)

        soon = get_dht_time() + 60.0
        in_index = sign_record(STRANGER, other, soon, INDEX_KEY)
        refused = [
            (key_of(OTHER_RUN, TRAINER_STAGE), in_index),
            (INDEX_KEY, sign_record(STRANGER, other, soon)),
            (INDEX_KEY, sign_record(STRANGER, record_of(STRANGER), soon)),
            (INDEX_KEY, sign_record(STRANGER, mine, soon, INDEX_KEY)),
        ]
        for key, value in refused:
            # Past the sender's own check, so that it is the receiver that refuses.
            assert not await store(key, value, soon, subkey=STRANGER.public_hex, exclude_self=True)
        assert await store(INDEX_KEY, in_index, soon, subkey=STRANGER.public_hex, exclude_self=True)

    run(body, folder)


def test_reader_believes_no_node(folder: Path) -> None:
    """A node that stores anything and answers with it: one forged record costs its whole answer, and no more."""

    async def body(swarm: Swarm) -> None:
        honest, first = await swarm.node(PEER)
        liar_transport, liar = await swarm.node(STRANGER, honest.addresses)
        _, reader = await swarm.node(Identity.generate(), (*honest.addresses, *liar_transport.addresses))
        await first.publish(record_of(PEER), 30.0)
        protocol = liar._node.protocol
        expires = get_dht_time() + 60.0
        key_id = DHTID.generate(key_of(RUN, 2))
        forged = msgpack.packb(sign_record(STRANGER, record_of(PEER, sequence=99), expires))
        assert protocol.storage.store_subkey(key_id, PEER.public_hex, forged, expires)
        # And it claims the latest of all expiries, at which a search would stop.
        protocol.storage.get(key_id).value.latest_expiration_time = float("inf")
        assert await reader.read(RUN, 2) == (record_of(PEER),)

    run(body, folder)


def test_publish_refuses_what_would_be_refused(folder: Path) -> None:
    async def body(swarm: Swarm) -> None:
        _, directory = await swarm.node(PEER)
        for lifetime in (0.0, -1.0, MAX_LIFETIME_SECONDS + 1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="a record lives"):
                await directory.publish(record_of(PEER), lifetime)
        with pytest.raises(ValueError, match="publishes itself"):
            await directory.publish(record_of(STRANGER), 30.0)
        with pytest.raises(WireError, match="2048"):
            await directory.publish(replace(record_of(PEER), addresses=("/" + "a" * 255,) * 16), 30.0)
        with pytest.raises(WireError, match="out of its range"):
            await directory.publish(replace(record_of(PEER), throughput=float("nan")), 30.0)
        assert await directory.read(RUN, 2) == ()

    run(body, folder)


def fields_of(record: Record, expires: float = 1e9) -> dict[str, Any]:
    value: dict[str, Any] = msgpack.unpackb(sign_record(PEER, record, expires))
    return value


def test_record_survives_its_bytes() -> None:
    record = record_of(PEER)
    value = sign_record(PEER, record, 1e9)
    signed = check_record(value, PEER.public_hex)
    assert (signed.record, signed.expires) == (record, 1e9)
    assert sign_record(PEER, replace(record, throughput=1), 1_000_000_000) == sign_record(
        PEER, replace(record, throughput=1.0), 1e9
    )
    with pytest.raises(TrustError, match="lies under the key"):
        check_record(value, STRANGER.public_hex)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", key_of(OTHER_RUN, 2)),
        ("expires", 1),
        ("expires", float("nan")),
        ("run", ""),
        ("run", "x" * 65),
        ("stage", -2),
        ("stage", True),
        ("stage", 1 << 16),
        ("stage", 2.0),
        ("peer", b"bytes"),
        ("addresses", "text"),
        ("addresses", [1]),
        ("addresses", [""]),
        ("addresses", ["a" * 257]),
        ("addresses", ["a"] * 17),
        ("sequence", -1),
        ("sequence", None),
        ("protocol", "1"),
        ("throughput", float("inf")),
        ("throughput", -0.5),
        ("throughput", 1),
        ("queue", -1),
        ("versions", [1]),
        ("versions", [1, -1]),
        ("versions", [1, "2"]),
        ("versions", [[], {}]),
        ("versions", msgpack.ExtType(5, b"")),
        ("versions", msgpack.Timestamp(1)),
        ("signature", "text"),
        ("signature", bytes(3000)),
    ],
)
def test_malformed_field_is_refused(field: str, value: Any) -> None:
    with pytest.raises(WireError):
        decode_record(msgpack.packb({**fields_of(record_of(PEER)), field: value}))


def test_malformed_bytes_are_refused() -> None:
    value = sign_record(PEER, record_of(PEER), 1e9)
    fields = fields_of(record_of(PEER))
    reordered = dict(reversed(fields.items()))
    missing = {name: entry for name, entry in fields.items() if name != "queue"}
    longer_number = value.replace(msgpack.packb("queue") + b"\x03", msgpack.packb("queue") + b"\xcc\x03")
    assert longer_number != value
    nested = b"\x91" * 2000
    for wrong in [
        b"",
        b"\xc0",
        b"\xc1",
        value[:-1],
        value + b"\0",
        nested,
        longer_number,
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        msgpack.packb(reordered),
        msgpack.packb(missing),
        msgpack.packb({**fields, "more": 1}),
        msgpack.packb(list(fields.items())),
        bytes([value[0] + 1]) + value[1:] + msgpack.packb("queue") + msgpack.packb(3),
    ]:
        with pytest.raises(WireError):
            decode_record(wrong)


def test_every_changed_byte_breaks_the_signature_or_the_form() -> None:
    value = bytearray(sign_record(PEER, record_of(PEER), 1e9))
    for place in range(len(value)):
        value[place] ^= 1
        with pytest.raises((WireError, TrustError)):
            check_record(bytes(value), PEER.public_hex)
        value[place] ^= 1


def test_validator_wants_hivemind_s_packing_exactly() -> None:
    validator = RecordValidator()
    expires = get_dht_time() + 30.0
    value = sign_record(PEER, record_of(PEER), expires)
    good = DHTRecord(
        DHTID.generate(key_of(RUN, 2)).to_bytes(), msgpack.packb(PEER.public_hex), msgpack.packb(value), expires
    )
    assert validator.validate(good)
    subkey = PEER.public_hex.encode()
    for wrong in [
        replace(good, key=DHTID.generate(key_of(RUN, 1)).to_bytes()),
        replace(good, subkey=b""),
        replace(good, subkey=b"\xc0"),
        replace(good, subkey=b"\xda\x00\x40" + subkey),  # the same text, packed with a longer length
        replace(good, value=value),
        replace(good, value=b"\xc6" + len(value).to_bytes(4, "big") + value),
        replace(good, value=msgpack.packb(value) + b"\0"),
        replace(good, value=b""),
        replace(good, expiration_time=expires - 1.0),
        replace(good, expiration_time=float("inf")),
        replace(good, expiration_time=float("nan")),
    ]:
        assert not validator.validate(wrong)
