"""The directory of real runs: signed records in hivemind's DHT, in the transport's loop and over its p2pd.

Key: `swarm-peer/<run>/<stage>`, or for the index of runs, which takes trainers' records only, `swarm-peer/runs`.
Subkey: the peer's public key. Value: a msgpack map of the record, when it expires, and the peer's signature over all of
it with the key. Every node refuses what does not check (`RecordValidator`), on storing and on reading, so nobody can
write in another's name, prolong another's record, or store anything else. Expiry is part of what is signed: an old
record cannot be stored anew.

Owns one `DHTNode`, and remembers nodes that it has met, to join again when all that it knows of are gone. Expiry is
wall-clock time, the only clock that machines share.

Errors: `UnreachableError`.
"""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack
from hivemind.dht import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import get_dht_time

from ..errors import SwarmError, TrustError, UnreachableError, WireError
from .addresses import peer_in
from .directory import TRAINER_STAGE, Record
from .keys import Identity, peer_id_of, public_key_of, verify
from .p2p_transport import P2PTransport

RECORD_DOMAIN = "directory"

MAX_VALUE_BYTES = 2048
MAX_LIFETIME_SECONDS = 120.0
CLOCK_SLACK_SECONDS = 5.0
"""How far apart the clocks of two nodes may be."""

MAX_ADDRESSES = 16
MAX_ADDRESS_CHARACTERS = 256
MAX_STAGES = 1 << 16
MAX_MET_NODES = 64
"""Nodes whose addresses are remembered, to find the DHT again after all its known nodes were lost."""

RPC_SECONDS = 3.0
PATIENT_RPC_SECONDS = 10.0
"""Of a second attempt, when no node has answered: a machine on which a dozen processes start may be slow to."""

JOIN_PAUSE_SECONDS = 10.0
"""Between two attempts to join again: one may take as long as a dial."""

CALL_SECONDS = 15.0
"""Limit of one `publish` or `read`, whatever the DHT does."""

CLOSE_SECONDS = 2.0
"""How long p2pd may take to forget the node's handlers: hivemind waits forever for one that dies meanwhile."""

_NOTHING_SUFFICES = math.nan
"""No answer ends a search early (nothing compares with NaN): one node could claim any expiry and hide the others'."""

_FIELDS = {
    "run": str,
    "stage": int,
    "peer": str,
    "addresses": tuple,
    "sequence": int,
    "protocol": int,
    "throughput": float,
    "queue": int,
    "versions": tuple,
    "moving_to": int,
}


INDEX_KEY = "swarm-peer/runs"


def key_of(run: str, stage: int) -> str:
    return f"swarm-peer/{run}/{stage}"


def _keys_of(record: Record) -> tuple[str, ...]:
    """Where a record may lie."""
    key = key_of(record.run, record.stage)
    return (key, INDEX_KEY) if record.stage == TRAINER_STAGE else (key,)


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record, the key under which it lies, the wall-clock second at which it expires, and its peer's signature over
    all three."""

    record: Record
    key: str
    expires: float
    signature: bytes


def _covered(record: Record, key: str, expires: float) -> dict[str, Any]:
    fields = {name: getattr(record, name) for name in _FIELDS}
    return {"key": key, "expires": float(expires), **fields}


def _packed(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def sign_record(identity: Identity, record: Record, expires: float, key: str = "") -> bytes:
    """The value to store, under the key of its run and stage if no other is named. Raises `WireError` if it would be
    too large or malformed."""
    key = key or key_of(record.run, record.stage)
    covered = _covered(replace(record, throughput=float(record.throughput)), key, expires)
    value = _packed({**covered, "signature": identity.sign(RECORD_DOMAIN, _packed(covered))})
    decode_record(value)
    return value


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def decode_record(value: bytes) -> SignedRecord:
    """Reads a value without believing it: the signature is not checked. Raises `WireError`."""
    if len(value) > MAX_VALUE_BYTES:
        raise WireError(f"a directory record of {len(value)} bytes; the limit is {MAX_VALUE_BYTES}")
    try:
        entries = msgpack.unpackb(value, use_list=False, strict_map_key=True, ext_hook=_no_extension)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"a directory record is not msgpack: {error!r}") from error
    expected = {"key": str, "expires": float, **_FIELDS, "signature": bytes}
    if type(entries) is not dict or list(entries) != list(expected):
        raise WireError("a directory record does not have the fields of one, in their order")
    for name, wanted in expected.items():
        if type(entries[name]) is not wanted:
            raise WireError(f"a directory record's {name} is a {type(entries[name]).__name__}, not a {wanted.__name__}")
    record = Record(**{name: entries[name] for name in _FIELDS})
    if entries["key"] not in _keys_of(record) or not _sensible(record, entries["expires"]):
        raise WireError("a directory record has a value out of its range")
    if _packed(entries) != value:
        raise WireError("a directory record is not in its one byte form")
    return SignedRecord(record, entries["key"], entries["expires"], entries["signature"])


def _sensible(record: Record, expires: float) -> bool:
    lowest_and_highest = record.versions
    return (
        0 < len(record.run) <= 64
        and -1 <= record.stage < MAX_STAGES
        and -1 <= record.moving_to < MAX_STAGES
        and len(record.addresses) <= MAX_ADDRESSES
        and all(type(entry) is str and 0 < len(entry) <= MAX_ADDRESS_CHARACTERS for entry in record.addresses)
        and min(record.sequence, record.protocol, record.queue) >= 0
        and math.isfinite(record.throughput)
        and record.throughput >= 0
        and len(lowest_and_highest) == 2
        and all(type(version) is int and version >= 0 for version in lowest_and_highest)
        and math.isfinite(expires)
    )


def check_record(value: bytes, public_hex: str) -> SignedRecord:
    """A value proven to be from this key's owner. Raises `WireError`, `TrustError`."""
    signed = decode_record(value)
    if public_key_of(signed.record.peer) != public_hex:
        raise TrustError(f"a record of {signed.record.peer} lies under the key of {peer_id_of(public_hex)}")
    verify(public_hex, RECORD_DOMAIN, _packed(_covered(signed.record, signed.key, signed.expires)), signed.signature)
    return signed


class RecordValidator(RecordValidatorBase):  # type: ignore[misc]  # hivemind has no types
    """What a node lets into its storage, and what it believes of others': valid records of this kind, nothing else.

    hivemind packs keys, subkeys and values itself (msgpack) before it asks.
    """

    def validate(self, record: DHTRecord) -> bool:
        try:
            if len(record.value) > MAX_VALUE_BYTES + 8 or record.expiration_time > _latest_expiry():
                return False
            public_hex = msgpack.unpackb(record.subkey, ext_hook=_no_extension)
            value = msgpack.unpackb(record.value, ext_hook=_no_extension)
            if type(public_hex) is not str or type(value) is not bytes:
                return False
            if _packed(public_hex) != record.subkey or _packed(value) != record.value:
                return False
            signed = check_record(value, public_hex)
        except (SwarmError, ValueError, TypeError, RecursionError, msgpack.UnpackException):
            return False
        wanted = DHTID.generate(signed.key).to_bytes()
        return bool(record.key == wanted and record.expiration_time == signed.expires)


def _latest_expiry() -> float:
    return float(get_dht_time()) + MAX_LIFETIME_SECONDS + CLOCK_SLACK_SECONDS


class DHTDirectory:
    """A node of the DHT. Make it with `create`, and close it before its transport."""

    def __init__(
        self, node: DHTNode, transport: P2PTransport, identity: Identity, initial_peers: Sequence[str]
    ) -> None:
        self._node = node
        self._transport = transport
        self._identity = identity
        self._initial = {peer_in(address): (address,) for address in initial_peers}
        self._met: dict[str, tuple[str, ...]] = {}
        self._next_join = 0.0
        self._expires: dict[str, float] = {}

    @classmethod
    async def create(
        cls, transport: P2PTransport, identity: Identity, initial_peers: Sequence[str] = ()
    ) -> "DHTDirectory":
        """Joins the DHT of `initial_peers` (multiaddrs), or founds one if there are none.

        Raises `UnreachableError` if none of them answers, or none whose clock agrees with this machine's.
        """
        # hivemind's caches are off: they keep partial answers, and refresh them in tasks that nobody ends. A node that
        # does not answer is passed over for as long each time: a busy machine would soon be out of it for minutes.
        node = await DHTNode.create(
            p2p=transport.p2p,
            record_validator=RecordValidator(),
            client_mode=transport.relayed,  # a record must not lie where only a relay leads
            wait_timeout=RPC_SECONDS,
            backoff_rate=1.0,
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
            reuse_get_requests=False,
        )
        directory = cls(node, transport, identity, initial_peers)
        try:
            await directory._join()
        except BaseException:
            await directory.close()
            raise
        return directory

    @property
    def met(self) -> tuple[str, ...]:
        """Addresses of nodes that this one has met: worth keeping as `initial_peers` of the next start."""
        return tuple(address for addresses in self._met.values() for address in addresses)

    async def _join(self) -> None:
        """Meets the nodes it has addresses of, all at once, and through them the nearest others; the second time with
        more patience.

        A node that founded the DHT may find itself alone; for any other one that is an `UnreachableError`.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_join:
            failures = [f"  next attempt in {self._next_join - loop.time():.0f} s"]
        else:
            self._next_join = loop.time() + JOIN_PAUSE_SECONDS
            self._node.blacklist.clear()
            nodes = self._met | self._initial
            for seconds in (RPC_SECONDS, PATIENT_RPC_SECONDS):
                outcomes = await asyncio.gather(*(self._meet(*node, seconds) for node in nodes.items()))
                failures = [f"  {failure}" for failure in outcomes if failure is not None]
                if len(failures) < len(nodes):
                    await self._node.find_nearest_nodes([self._node.node_id])
                    return
        if self._initial:
            raise UnreachableError("\n".join(["no known node of the directory answers:", *failures]))

    async def _meet(self, peer: str, addresses: tuple[str, ...], seconds: float) -> str | None:
        """Adds a node to the routing table that answers within so many seconds, or says why not."""
        protocol = self._node.protocol
        remote = PeerID.from_base58(peer)
        question = dht_pb2.PingRequest(peer=protocol.node_info)
        before = get_dht_time()
        try:
            await self._transport.connect(peer, addresses)
            answer = await protocol.get_stub(remote).rpc_ping(question, timeout=seconds)
            node_id = DHTID.from_bytes(answer.peer.node_id)
        except Exception as error:  # hivemind passes on whatever the other side's answer made it raise
            self._met.pop(peer, None)
            return f"{peer}: {error!r}"
        ahead = answer.dht_time - (before + get_dht_time()) / 2
        if abs(ahead) > CLOCK_SLACK_SECONDS:
            return f"{peer}: its clock is {ahead:+.0f} s from this machine's; set both by NTP"
        await protocol.update_routing_table(node_id, remote)
        return None

    async def _reconnect(self) -> None:
        """A node drops those that do not answer; when none is left, it joins again."""
        if not self._transport.alive:
            raise UnreachableError("this node's p2pd has ended, and the directory with it; start the peer again")
        if not self._node.protocol.routing_table.uid_to_peer_id and (self._initial or self._met):
            await self._join()

    async def publish(self, record: Record, lifetime: float) -> None:
        await self._store(key_of(record.run, record.stage), record, lifetime)

    async def list_run(self, record: Record, lifetime: float) -> None:
        await self._store(INDEX_KEY, record, lifetime)

    async def _store(self, key: str, record: Record, lifetime: float) -> None:
        if not 0 < lifetime <= MAX_LIFETIME_SECONDS:
            raise ValueError(f"a record lives for up to {MAX_LIFETIME_SECONDS:.0f} s, not for {lifetime} s")
        if record.peer != self._identity.peer_id:
            raise ValueError(f"a peer publishes itself ({self._identity.peer_id}), not {record.peer}")
        # The DHT keeps what expires last, so a record must outlive the one that it replaces, if only just.
        expires = max(get_dht_time() + lifetime, math.nextafter(self._expires.get(key, 0.0), math.inf))
        value = sign_record(self._identity, record, expires, key)
        subkey = self._identity.public_hex
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._reconnect()
                self._expires[key] = expires
                stored = await self._node.store(key, value, expires, subkey=subkey)
                # hivemind reports the answer of one node, which may be the only one to refuse.
                if not stored and value not in (await self._find(key)).values():
                    raise UnreachableError(f"no node of the directory took the record of {record.peer} for {key}")
        except TimeoutError as error:
            raise UnreachableError(f"the directory took no record within {CALL_SECONDS:.0f} s") from error

    async def read(self, run: str, stage: int) -> tuple[Record, ...]:
        records = await self._read(key_of(run, stage))
        self._remember(records)
        return records

    async def listed_runs(self) -> tuple[Record, ...]:
        # Trainers of other runs are not remembered: they may be many, and are no way back into this one.
        return await self._read(INDEX_KEY)

    async def _read(self, key: str) -> tuple[Record, ...]:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._reconnect()
                found = await self._find(key)
                if not found:
                    # The search itself may have shown that all nodes are gone.
                    await self._reconnect()
        except TimeoutError as error:
            raise UnreachableError(f"the directory did not answer within {CALL_SECONDS:.0f} s") from error
        records = []
        now = get_dht_time()
        for public_hex, value in found.items():
            try:
                signed = check_record(value, public_hex)
            except (WireError, TrustError):
                continue
            if signed.key == key and signed.expires > now:
                records.append(signed.record)
        records.sort(key=lambda record: record.peer)
        return tuple(records)

    async def _find(self, key: str) -> dict[str, bytes]:
        found = await self._node.get_many([key], sufficient_expiration_time=_NOTHING_SUFFICES)
        entries = found[key].value if found[key] is not None else None
        if not isinstance(entries, dict):
            return {}
        return {
            subkey: entry.value
            for subkey, entry in entries.items()
            if isinstance(subkey, str) and isinstance(entry.value, bytes)
        }

    def _remember(self, records: Sequence[Record]) -> None:
        for record in records:
            known = record.peer in self._met or len(self._met) < MAX_MET_NODES
            if known and record.addresses and record.peer != self._identity.peer_id:
                self._met[record.peer] = record.addresses

    async def close(self) -> None:
        """Leaves the DHT; the transport stays open. Idempotent."""
        if not self._node.is_alive:
            return
        self._node.is_alive = False
        if self._transport.alive:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._node.shutdown()
