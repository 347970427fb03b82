"""Gathers one version of what a run trains, all stages of it, from the peers that hold it.

Two callers: a trainer at the end of its run, which knows the replicas and the digest that they agree on; and anybody
who meets a run that goes on (`collect_from_run`), who takes the newest version that every stage has, and asks two
replicas of each where there are two.

Errors: `UnreachableError` if a stage is not to be had, `WireError` if what came is not a state, `TrustError` if two
replicas give different ones.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import TrustError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .catching_up import fetch_snapshot
from .directory import Directory, Record
from .exchange import Pool
from .manifest import Manifest
from .model.names import trainable_shapes
from .optimizer import StageState, state_digest, state_from_bytes
from .roster import Roster

KEPT_VERSIONS = 8
"""No peer keeps more; a record may say anything."""

TRIES = 20
PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run has trained at one version: the state of each stage, on the CPU."""

    version: int
    states: Mapping[int, StageState]


async def collect_as_trainer(manifest: Manifest, roster: Roster, pool: Pool, version: int) -> Collected:
    """A version from the replicas of a roster; each state's digest is the one that they have reported."""
    states = {}
    for stage in range(manifest.stages):
        donors = [member.to_message() for member in roster.ready(stage)]
        state = await _fetch(manifest, pool, stage, version, donors)
        if state_digest(state) != roster.digest_of(stage, version):
            raise TrustError(f"the state of stage {stage} at version {version} has not the digest that replicas report")
        states[stage] = state
    return Collected(version, states)


async def collect_from_run(manifest: Manifest, directory: Directory, pool: Pool) -> Collected:
    """The newest version that every stage of a run that goes on still has: it moves on meanwhile, so this is tried
    again."""
    problem: UnreachableError | None = None
    for _ in range(TRIES):
        try:
            records = [await directory.read(manifest.run_id, stage) for stage in range(manifest.stages)]
            return await _collect_newest(manifest, records, pool)
        except UnreachableError as error:
            problem = error
        await asyncio.sleep(PAUSE_SECONDS)
    assert problem is not None
    raise problem


async def _collect_newest(manifest: Manifest, records: Sequence[Sequence[Record]], pool: Pool) -> Collected:
    version = newest_common(records)
    states = {}
    for stage, replicas in enumerate(records):
        holders = [record for record in replicas if record.versions[0] <= version <= record.versions[1]]
        donors = [pb.Member(peer=record.peer, addresses=record.addresses) for record in holders]
        states[stage] = await _fetch(manifest, pool, stage, version, donors)
        if len(donors) > 1:
            second = await _fetch(manifest, pool, stage, version, donors[1:])
            if state_digest(second) != state_digest(states[stage]):
                raise TrustError(f"two replicas of stage {stage} give different states of version {version}")
    return Collected(version, states)


def newest_common(records: Sequence[Sequence[Record]]) -> int:
    """The newest version of which every stage has a holder. Raises `UnreachableError` if there is none."""
    held = [{version for record in replicas for version in _kept(record)} for replicas in records]
    missing = [stage for stage, versions in enumerate(held) if not versions]
    if missing:
        raise UnreachableError(f"nobody announces a state of stage {missing[0]}: is the run going on?")
    common = set.intersection(*held)
    if not common:
        raise UnreachableError("no version is held by every stage at the moment; try again")
    return max(common)


def _kept(record: Record) -> range:
    lowest, highest = record.versions
    return range(max(lowest, highest - KEPT_VERSIONS), highest + 1)


async def _fetch(manifest: Manifest, pool: Pool, stage: int, version: int, donors: Sequence[pb.Member]) -> StageState:
    limit = manifest.settings.limits.payload_bytes
    snapshot = await fetch_snapshot(pool, donors, manifest.run_id, stage, limit, version)
    shapes = trainable_shapes(manifest, stage)
    try:
        return state_from_bytes(snapshot.data, shapes, torch.device("cpu"), manifest.settings.optimizer.state)
    except WireError as error:
        raise WireError(f"stage {stage}, version {version}: {error}") from error
