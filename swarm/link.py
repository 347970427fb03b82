"""The link between this machine and peers of the run, measured: how long a question takes there and back, how fast
bytes come, and how fast they go.

Each direction by transfers that grow until one takes long enough: a connection's window grows from nothing, and what is
over before it has grown says how far away the peer is. What goes up is thrown away where it arrives; a peer takes no
more of that than of a tensor that it refuses.

Errors: none; who does not answer is passed over.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from ..errors import RefusedError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .directory import Directory
from .exchange import Pool
from .fetching import fetch
from .manifest import Manifest
from .messages import Body
from .serving import Incoming

FIRST_BYTES, GROWTH = 256 << 10, 4
MOST_BYTES = 4 << 20
LONG_ENOUGH_SECONDS = 0.5
MAX_PROBE_BYTES = 8 << 20
PEERS = 3
SECONDS = 8.0
"""A peer that takes longer is not waited for."""

Sample = tuple[int, float]
"""Bytes that were moved, and the seconds that it took."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`round_trips` in seconds; a transfer's time is without the round trip."""

    round_trips: list[float] = field(default_factory=list)
    up: list[Sample] = field(default_factory=list)
    down: list[Sample] = field(default_factory=list)


async def serve_nothing(incoming: Incoming, question: pb.Fetch, run_id: str) -> None:
    """Answers a Fetch of nothing."""
    if question.run != run_id:
        await incoming.channel.send(pb.Refused(reason=pb.WRONG_RUN, detail=f"this peer serves run {run_id[:12]}"))
        return
    await incoming.channel.send(pb.Fetched(), bytes(min(question.part, MAX_PROBE_BYTES)))


def refusal_of_payload(question: pb.Fetch) -> Body | None:
    """The answer to a Fetch that brings what nobody takes, before it has come."""
    if question.kind != pb.Fetch.NOTHING:
        return pb.Refused(reason=pb.MALFORMED, detail="only a Fetch of nothing brings anything")
    if question.payload > MAX_PROBE_BYTES:
        detail = f"{question.payload} bytes of nothing; at most {MAX_PROBE_BYTES} are taken"
        return pb.Refused(reason=pb.TOO_LARGE, detail=detail)
    return None


async def measure_link(manifest: Manifest, pool: Pool, directory: Directory) -> Measured:
    """By a few peers of the run, one after the other."""
    found = Measured()
    for peer in await _peers(manifest, pool, directory):
        try:
            async with asyncio.timeout(SECONDS):
                await move_nothing(manifest.run_id, pool, peer)  # the next question does not open a stream
                trip = await move_nothing(manifest.run_id, pool, peer)
                found.round_trips.append(trip)
                move = partial(move_nothing, manifest.run_id, pool, peer)
                found.down.append(await _growing(move, "down", trip))
                found.up.append(await _growing(move, "up", trip))
        except (UnreachableError, RefusedError, WireError, TimeoutError):
            continue
    return found


async def _growing(move: Callable[..., Awaitable[float]], way: str, trip: float) -> Sample:
    """The last of some transfers, the first that takes long enough."""
    size = FIRST_BYTES
    while (seconds := await move(**{way: size}) - trip) < LONG_ENOUGH_SECONDS and size < MOST_BYTES:
        size *= GROWTH
    return size, max(seconds, 1e-6)


async def _peers(manifest: Manifest, pool: Pool, directory: Directory) -> list[str]:
    found: dict[str, None] = {}
    for stage in range(manifest.stages):
        try:
            records = await directory.read(manifest.run_id, stage)
        except UnreachableError:
            continue
        for record in records:
            if record.peer != pool.transport.peer_id:
                pool.addresses.setdefault(record.peer, record.addresses)
                found[record.peer] = None
        if len(found) >= PEERS:
            break
    return list(found)[:PEERS]


async def move_nothing(run_id: str, pool: Pool, peer: str, *, down: int = 0, up: int = 0) -> float:
    """The seconds until so many bytes of nothing have come, or have arrived there. Raises what `fetch` raises."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    question = pb.Fetch(run=run_id, kind=pb.Fetch.NOTHING, part=down)
    _, data = await fetch(pool, peer, question, MAX_PROBE_BYTES, payload=bytes(up))
    if len(data) != down:
        raise WireError(f"{peer} was asked for {down} bytes and gave {len(data)}")
    return loop.time() - began
