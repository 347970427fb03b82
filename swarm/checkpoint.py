"""A checkpoint: one consistent version of all stages, with what it takes to go on from it as if nothing had been.

Steps below `closed` are in it. Of each stage it holds the state at version closed - staleness, the oldest at which a
step to come computes, and with the one-step delayed update also the reduction of step closed - 1, which turns that
version into version `closed`: what a newcomer of a run that goes on is given, so that it is restored in the same way.
Beside them: the signed manifest, the Commit of step closed - 1, the steps before (`past`), the epochs.

`Checkpoints` is where they are kept (`checkpoint_folder.py` on disk; in memory for simulations).

Errors: `CheckpointError` for what is no checkpoint of this run, or cannot be read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..protos import swarm_pb2 as pb
from .epochs import Lineage
from .keys import SignedManifest


@dataclass(frozen=True, slots=True)
class StageCheckpoint:
    """One stage. `state`: as replicas export it; `reduction`: the coded parts by group, empty where none is needed."""

    state: bytes
    reduction: Mapping[str, Sequence[bytes]]


@dataclass(frozen=True)
class Checkpoint:
    """`term`: of the trainer that took it; `version`: of the states; `digests`: of each stage's state at `version`.
    `read(stage)` gives a stage, checked; it blocks, and raises `CheckpointError`."""

    signed: SignedManifest
    lineage: Lineage
    term: pb.Term
    closed: int
    version: int
    digests: Sequence[bytes]
    commit: pb.Commit | None
    past: Sequence[pb.Past]
    read: Callable[[int], StageCheckpoint]
    met: Sequence[str] = ()
    """Where members of the run could be reached then: advice for whoever goes on with it."""

    def is_of(self, lineage: Lineage) -> bool:
        """Whether a run of these epochs has come by here."""
        epoch = self.lineage.number
        if epoch and epoch not in [known.term.number for known in lineage.epochs]:
            return False
        return all(later.first >= self.closed for later in lineage.epochs if later.term.number > epoch)


class Checkpoints(Protocol):
    """Where a coordinator keeps the checkpoints of a run. `every`: how many steps lie between two."""

    every: int

    async def digest(self, stage: int, state: bytes) -> bytes:
        """Of an exported state, as replicas report it. Raises `WireError` for bytes that are none."""
        ...

    async def save(self, checkpoint: Checkpoint) -> None:
        """Keeps it, whole or not at all. Raises `StorageError`."""
        ...

    async def latest(self, lineage: Lineage) -> Checkpoint | None:
        """The newest one that such a run has come by; what cannot be read is passed over."""
        ...


@dataclass
class MemoryCheckpoints:
    """Checkpoints of a simulated run: they outlive their coordinator."""

    every: int
    digest_of: Callable[[int, bytes], bytes]
    kept: list[Checkpoint] = field(default_factory=list)

    async def digest(self, stage: int, state: bytes) -> bytes:
        return self.digest_of(stage, state)

    async def save(self, checkpoint: Checkpoint) -> None:
        self.kept.append(checkpoint)

    async def latest(self, lineage: Lineage) -> Checkpoint | None:
        return self.newest(lineage)

    def newest(self, lineage: Lineage) -> Checkpoint | None:
        fitting = [checkpoint for checkpoint in self.kept if checkpoint.is_of(lineage)]
        return max(fitting, key=lambda checkpoint: (checkpoint.closed, checkpoint.lineage.number), default=None)
