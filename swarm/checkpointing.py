"""A trainer's checkpoints: taken from the replicas while they go on, every so many steps and at the end.

When a step is closed at which one is due, one replica of each stage is asked for its state and for the reduction that
follows; nobody waits for it. What comes is compared with the digests that all replicas have reported. If replicas have
let go of something before it was asked for, the next step is tried. At the end of a run there is no next step: who has
the last state is waited for, and nobody is told to leave before.

Errors: none end the run; a checkpoint that could not be taken or kept is told of (`events.CheckpointFailed`).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..errors import StorageError, SwarmError, TrustError
from ..protos import swarm_pb2 as pb
from . import events
from .catching_up import fetch_snapshot
from .checkpoint import Checkpoint, Checkpoints, StageCheckpoint
from .conditions import Signal, heed_cancellation, in_own_task, innermost
from .epochs import Lineage
from .exchange import Pool
from .keys import SignedManifest
from .manifest import Manifest
from .reduction import AttemptKey, pull_reduction
from .roster import Roster
from .sizes import state_bytes

TRIES, PAUSE_SECONDS = 5, 1.0
LAST_TRIES = 5
"""Of taking the one of the end, each while every stage has a replica that should be able to give it."""

MAX_MET = 32


@dataclass
class Checkpointing:
    """For a trainer. `past(first)`: the steps from `first` on; `lineage`: of its epoch; `reached`: the last step that a
    checkpoint holds, from which the run began or goes on."""

    manifest: Manifest
    signature: bytes
    term: pb.Term
    lineage: Lineage
    checkpoints: Checkpoints
    roster: Roster
    pool: Pool
    past: Callable[[int], list[pb.Past]]
    emit: Callable[[events.Event], None]
    closed: Callable[[], int]
    """The trainer's marker."""

    reached: int = 0
    done: Signal = field(default_factory=Signal)
    """Notified when one has been taken, or has failed."""

    taking: bool = False
    hopeless: bool = False
    """Whether the last one could not be kept, or trusted: it would be no better to try again."""

    _digests: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """By (stage, version): what replicas have said, who may have gone; of the last one only."""

    def is_due(self, closed: int) -> bool:
        last = closed == self.manifest.settings.train.steps
        return closed > self.reached and not self.taking and (last or closed >= self.reached + self.checkpoints.every)

    async def take(self, closed: int, commit: pb.Commit) -> None:
        """Takes and keeps the checkpoint of all steps below `closed`; `commit`: of the last one of them."""
        self.taking, self.hopeless = True, False
        self._remember_digests(closed)
        try:
            checkpoint = await self._gather_patiently(closed, commit)
            await self.checkpoints.save(checkpoint)
            self.reached = closed
            self.emit(events.Checkpointed(closed))
        except SwarmError as error:
            heed_cancellation()
            self.hopeless = isinstance(error, StorageError | TrustError)
            self.emit(events.CheckpointFailed(closed, str(error)))
        finally:
            self.taking = False
            self.done.notify()

    async def conclude(self, commit: pb.Commit | None, signal: Signal) -> None:
        """Returns when the last one is kept; `commit`: of the last step. What replicas cannot give, because they are
        gone, is asked for again when they return, or others have it; what cannot be kept is not."""
        steps = self.manifest.settings.train.steps
        await self.done.wait_for(lambda: not self.taking)
        for _ in range(LAST_TRIES):
            if commit is None or self.reached == steps or self.hopeless:
                return
            await signal.wait_for(partial(self.roster.some_at, steps))
            await self.take(steps, commit)

    async def _gather_patiently(self, closed: int, commit: pb.Commit) -> Checkpoint:
        """Donors may be busy with others; they keep what is asked for until the next step is closed."""
        for _ in range(TRIES - 1):
            try:
                return await in_own_task(self._gather(closed, commit))
            except SwarmError:
                heed_cancellation()
                await asyncio.sleep(PAUSE_SECONDS)
                if self.closed() != closed:
                    raise
        return await in_own_task(self._gather(closed, commit))

    async def _gather(self, closed: int, commit: pb.Commit) -> Checkpoint:
        delayed = self.manifest.settings.pipeline.staleness
        version = closed - delayed
        past = self.past(0)
        stages = range(self.manifest.stages)
        try:
            async with asyncio.TaskGroup() as tasks:
                taken = [
                    tasks.create_task(self._stage(stage, version, commit if delayed else None)) for stage in stages
                ]
        except* SwarmError as problems:
            raise innermost(problems) from None
        parts = [task.result() for task in taken]
        return Checkpoint(
            signed=SignedManifest(self.manifest.canonical(), self.signature),
            lineage=self.lineage,
            term=self.term,
            closed=closed,
            version=version,
            digests=[self._digest(stage, version) for stage in stages],
            commit=commit if delayed else None,
            past=[told for told in past if told.step < closed],
            met=[address for member in self.roster.live()[:MAX_MET] for address in member.addresses],
            read=parts.__getitem__,
        )

    async def _stage(self, stage: int, version: int, commit: pb.Commit | None) -> StageCheckpoint:
        """State and reduction are asked for at once: donors let go of either when the next step is closed."""
        async with asyncio.TaskGroup() as tasks:
            state = tasks.create_task(self._state(stage, version))
            reduction = None if commit is None else tasks.create_task(self._reduction(stage, commit))
        return StageCheckpoint(state.result(), {} if reduction is None else reduction.result())

    async def _state(self, stage: int, version: int) -> bytes:
        donors = [member.to_message() for member in self.roster.ready(stage)]
        limit, most = self.manifest.settings.limits.payload_bytes, state_bytes(self.manifest, stage)
        snapshot = await fetch_snapshot(
            self.pool,
            donors,
            self.manifest.run_id,
            stage,
            limit,
            version,
            epoch=self.lineage.number,
            max_bytes=most,
        )
        data = bytes(snapshot.data)
        if await self.checkpoints.digest(stage, data) != self._digest(stage, version):
            raise TrustError(f"the state of stage {stage} at version {version} has not the digest that replicas report")
        return data

    async def _reduction(self, stage: int, commit: pb.Commit) -> dict[str, Sequence[bytes]]:
        """The coded parts of the reduction that a Commit names."""
        choice = next(choice for choice in commit.choices if choice.stage == stage)
        key = AttemptKey(commit.epoch, commit.step, choice.term, choice.attempt)
        holders = [
            member.to_message()
            for member in self.roster.live(stage)
            if member.holds(commit.step, choice.term, choice.attempt)
        ]
        limit = self.manifest.settings.limits.payload_bytes
        found = await pull_reduction(self.pool, self.manifest.run_id, key, choice, holders, limit)
        return {name: made.parts for name, made in found.items()}

    def _remember_digests(self, closed: int) -> None:
        version = closed - self.manifest.settings.pipeline.staleness
        told = {(stage, version): self.roster.digest_of(stage, version) for stage in range(self.manifest.stages)}
        before = {key: digest for key, digest in self._digests.items() if key in told}
        self._digests = before | {key: digest for key, digest in told.items() if digest is not None}

    def _digest(self, stage: int, version: int) -> bytes:
        digest = self._digests.get((stage, version))
        if digest is None:
            raise TrustError(f"no replica of stage {stage} says any more what the digest of version {version} is")
        return digest
