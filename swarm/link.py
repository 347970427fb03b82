"""The link between this machine and peers of the run, measured: how long a question takes there and back, and how fast
bytes come. What goes up is not measured: a peer that would take it in would be anybody's sink.

Errors: none; who does not answer is passed over.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RefusedError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .directory import Directory
from .exchange import Incoming, Pool
from .fetching import fetch
from .manifest import Manifest

PROBE_BYTES = 4 << 20
MAX_PROBE_BYTES = 8 << 20
PEERS = 3
SECONDS = 5.0
"""A peer that takes longer is not waited for."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`round_trips` in seconds; `down`: (bytes, seconds) of transfers."""

    round_trips: Sequence[float]
    down: Sequence[tuple[int, float]]


async def serve_nothing(incoming: Incoming, question: pb.Fetch, run_id: str) -> None:
    """Answers a Fetch of nothing."""
    if question.run != run_id:
        await incoming.channel.send(pb.Refused(reason=pb.WRONG_RUN, detail=f"this peer serves run {run_id[:12]}"))
        return
    await incoming.channel.send(pb.Fetched(), bytes(min(question.part, MAX_PROBE_BYTES)))


async def measure_link(manifest: Manifest, pool: Pool, directory: Directory) -> Measured:
    """By a few peers of the run; the transfer's time is without the round trip."""
    round_trips, down = [], []
    for peer in await _peers(manifest, pool, directory):
        try:
            async with asyncio.timeout(SECONDS):
                await ask_for_nothing(
                    manifest.run_id, pool, peer, 0
                )  # the stream is kept: the next question does not open one
                trip = await ask_for_nothing(manifest.run_id, pool, peer, 0)
                whole = await ask_for_nothing(manifest.run_id, pool, peer, PROBE_BYTES)
        except (UnreachableError, RefusedError, WireError, TimeoutError):
            continue
        round_trips.append(trip)
        down.append((PROBE_BYTES, max(whole - trip, 1e-6)))
    return Measured(round_trips, down)


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


async def ask_for_nothing(run_id: str, pool: Pool, peer: str, size: int) -> float:
    """The seconds until so many bytes of nothing have come. Raises what `fetch` raises."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    question = pb.Fetch(run=run_id, kind=pb.Fetch.NOTHING, part=size)
    _, data = await fetch(pool, peer, question, MAX_PROBE_BYTES)
    if len(data) != size:
        raise WireError(f"{peer} was asked for {size} bytes and gave {len(data)}")
    return loop.time() - began
