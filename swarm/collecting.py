"""Gathers one version of what a run trains, all stages of it, from the peers that hold it.

Two callers: a trainer at the end of its run, which knows the replicas and the digest that they agree on; and anybody
who meets a run that goes on (`collect_from_run`), who asks two replicas of each stage where there are two.

Errors: `UnreachableError` if a stage is not to be had, `WireError` if what came is not a state, `TrustError` if two
replicas give different ones.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import RefusedError, SwarmError, TrustError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .catching_up import fetch_snapshot
from .directory import Directory, Record
from .exchange import Pool
from .fetching import fetch
from .manifest import Manifest
from .model.names import trainable_shapes
from .optimizer import StageState, state_digest, state_from_bytes
from .roster import Roster
from .sizes import state_bytes

TRIES = 20
PAUSE_SECONDS = 0.5
SOON_TRIES, SOON_SECONDS = 4, 0.1
BEYOND_EVERY_PART = 1 << 30


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run has trained at one version: the state of each stage, on the CPU."""

    version: int
    states: Mapping[int, StageState]


async def collect_as_trainer(manifest: Manifest, roster: Roster, pool: Pool, version: int, epoch: int) -> Collected:
    """A version from the replicas of a roster; each state's digest is the one that they have reported."""
    states = {}
    for stage in range(manifest.stages):
        donors = [member.to_message() for member in roster.ready(stage)]
        state = await _fetch(manifest, pool, stage, version, donors, epoch)
        if state_digest(state) != roster.digest_of(stage, version):
            raise TrustError(f"the state of stage {stage} at version {version} has not the digest that replicas report")
        states[stage] = state
    return Collected(version, states)


async def collect_from_run(manifest: Manifest, directory: Directory, pool: Pool) -> Collected:
    """The newest version of a run that goes on: one replica says which it is, and all stages are asked for it at once,
    before they let go of it. If they have, this is tried again."""
    problem: Exception | None = None
    for _ in range(TRIES):
        try:
            records = [await directory.read(manifest.run_id, stage) for stage in range(manifest.stages)]
            donors = [_donors(stage, found) for stage, found in enumerate(records)]
            newest = await _newest_version(manifest, pool, donors[0])
            stages = range(manifest.stages)
            states = await asyncio.gather(*(_agreed(manifest, pool, at, newest, donors[at]) for at in stages))
            return Collected(newest.version, dict(enumerate(states)))
        except UnreachableError as error:
            problem = error
        await asyncio.sleep(PAUSE_SECONDS)
    assert problem is not None
    raise problem


def _donors(stage: int, records: Sequence[Record]) -> list[pb.Member]:
    if not records:
        raise UnreachableError(f"nobody announces a state of stage {stage}: is the run going on?")
    return [pb.Member(peer=record.peer, addresses=record.addresses) for record in records]


async def _newest_version(manifest: Manifest, pool: Pool, donors: Sequence[pb.Member]) -> pb.Fetched:
    """The newest version of a stage that one of `donors` has."""
    question = pb.Fetch(run=manifest.run_id, kind=pb.Fetch.STATE, newest=True, part=BEYOND_EVERY_PART)
    problem: SwarmError | None = None
    for donor in donors:
        pool.addresses.setdefault(donor.peer, tuple(donor.addresses))
        try:
            answer, _ = await fetch(pool, donor.peer, question, 0)
            return answer
        except (UnreachableError, RefusedError, WireError) as error:
            problem = error
    raise UnreachableError(f"nobody of stage 0 says which version it has: {problem}")


async def _agreed(
    manifest: Manifest, pool: Pool, stage: int, newest: pb.Fetched, donors: Sequence[pb.Member]
) -> StageState:
    """The state of a stage, from two replicas that must agree, where there are two that have it."""
    first, *others = await asyncio.gather(
        *(_fetch_soon(manifest, pool, stage, newest, donor) for donor in donors[:2]), return_exceptions=True
    )
    found = [state for state in (first, *others) if isinstance(state, StageState)]
    if not found:
        raise first if isinstance(first, SwarmError) else UnreachableError(f"stage {stage}: {first}")
    if len({state_digest(state) for state in found}) > 1:
        raise TrustError(f"two replicas of stage {stage} give different states of version {newest.version}")
    return found[0]


async def _fetch_soon(manifest: Manifest, pool: Pool, stage: int, newest: pb.Fetched, donor: pb.Member) -> StageState:
    """A version that the donor has, or is about to make."""
    for patience in range(SOON_TRIES - 1, -1, -1):
        try:
            return await _fetch(manifest, pool, stage, newest.version, [donor], newest.epoch)
        except UnreachableError:
            if not patience:
                raise
        await asyncio.sleep(SOON_SECONDS)
    raise AssertionError


async def _fetch(
    manifest: Manifest, pool: Pool, stage: int, version: int, donors: Sequence[pb.Member], epoch: int
) -> StageState:
    limit = manifest.settings.limits.payload_bytes
    most = state_bytes(manifest, stage)
    snapshot = await fetch_snapshot(pool, donors, manifest.run_id, stage, limit, version, epoch=epoch, max_bytes=most)
    shapes = trainable_shapes(manifest, stage)
    try:
        return state_from_bytes(snapshot.data, shapes, torch.device("cpu"), manifest.settings.optimizer.state)
    except WireError as error:
        raise WireError(f"stage {stage}, version {version}: {error}") from error
