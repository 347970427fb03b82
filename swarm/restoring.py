"""A trainer as the donor of the checkpoint that its epoch begins with: whoever joins takes the state of its stage, and
the reduction that follows, from here as from any replica, until the first step of the epoch is closed.

Errors go to who asks: Refused{NOT_KEPT}, and NOT_READY where a part of the checkpoint cannot be read.
"""

import asyncio
from dataclasses import dataclass, field

from ..errors import StorageError
from ..protos import swarm_pb2 as pb
from .checkpoint import Checkpoint, StageCheckpoint
from .compute import BACKGROUND, Device
from .serving import Incoming
from .snapshots import Snapshots
from .versions import VersionStore

MOST_BYTES = 2 << 30
"""Of the stages in memory, which are often restored all at once; the one that was asked for last is held anyhow."""


HELD_SECONDS = 30.0
"""For how long a stage that nobody asks for stays in memory."""


class _Exported:
    """A state that is bytes already."""

    def export(self, state: bytes) -> bytes:
        return state


@dataclass(frozen=True, slots=True)
class _Held:
    """A stage in memory."""

    kept: StageCheckpoint
    versions: VersionStore
    snapshots: Snapshots

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.kept.state) + sum(len(part) for parts in self.kept.reduction.values() for part in parts)


@dataclass
class Restoring:
    """Gives a checkpoint in the epoch `epoch`, of which it holds some stages in memory."""

    run_id: str
    epoch: int
    checkpoint: Checkpoint
    device: Device
    max_payload: int
    crew: frozenset[int] = frozenset()
    """Of the last Commit before the run went back; empty where it is resumed by others."""

    _held: dict[int, _Held] = field(default_factory=dict)
    """By stage; the one that was asked for last comes last."""

    _asked: dict[int, float] = field(default_factory=dict)
    """By stage: when it was last asked for, by the loop's clock."""

    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def holds(self, step: int) -> bool:
        """Whether it has the reduction of a step."""
        return self.checkpoint.commit is not None and step == self.checkpoint.commit.step

    def commit(self) -> pb.Commit | None:
        """The Commit of the last step in it, as one of this epoch: those who made it are not those who go on from it,
        and only who has led them knows of whom most must be heard: `crew`."""
        if self.checkpoint.commit is None:
            return None
        renewed = pb.Commit()
        renewed.CopyFrom(self.checkpoint.commit)
        renewed.epoch = self.epoch
        renewed.ClearField("crew")
        renewed.crew.extend(sorted(self.crew))
        return renewed

    async def serve(self, incoming: Incoming, question: pb.Fetch) -> None:
        """Answers a Fetch of a part of a state or of a reduction."""
        wanted = question.kind in (pb.Fetch.STATE, pb.Fetch.REDUCTION) and question.run == self.run_id
        if not wanted or question.epoch != self.epoch or question.stage >= len(self.checkpoint.digests):
            await self._refuse(incoming, pb.NOT_KEPT, "this checkpoint holds no such thing")
            return
        try:
            held = await self._hold(question.stage)
        except StorageError as error:
            await self._refuse(incoming, pb.NOT_READY, str(error))
            return
        if question.kind == pb.Fetch.STATE:
            await held.snapshots.serve(incoming, question, held.versions)
            return
        parts, commit = held.kept.reduction.get(question.group, ()), self.checkpoint.commit
        chosen = [] if commit is None else [(choice.stage, choice.term, choice.attempt) for choice in commit.choices]
        named = (question.stage, question.term, question.attempt) in chosen and self.holds(question.step)
        if not named or question.part >= len(parts):
            await self._refuse(incoming, pb.NOT_KEPT, "this checkpoint holds no such reduction")
            return
        await incoming.channel.send(pb.Fetched(), parts[question.part], category="reduce")

    async def _hold(self, stage: int) -> _Held:
        """A stage, read if it is not in memory. Raises `CheckpointError`."""
        loop = asyncio.get_running_loop()
        if stage not in self._held:
            async with self._reading:
                if stage not in self._held:
                    self._held[stage] = await self._read(stage)
                    loop.call_later(HELD_SECONDS, self._let_go, stage)
        self._asked[stage] = loop.time()
        held = self._held[stage] = self._held.pop(stage)
        while len(self._held) > 1 and sum(other.size for other in self._held.values()) > MOST_BYTES:
            del self._held[next(iter(self._held))]
        return held

    def _let_go(self, stage: int) -> None:
        """Of a stage that nobody has asked for lately."""
        loop = asyncio.get_running_loop()
        left = self._asked[stage] + HELD_SECONDS - loop.time()
        if stage in self._held and left > 0:
            loop.call_later(left, self._let_go, stage)
        else:
            self._held.pop(stage, None)

    async def _read(self, stage: int) -> _Held:
        kept = await self.device.run(BACKGROUND, lambda: self.checkpoint.read(stage))
        versions = VersionStore()
        versions.put(self.checkpoint.version, kept.state, self.checkpoint.digests[stage])
        snapshots = Snapshots(self.run_id, stage, _Exported(), self.device, self.max_payload, self.epoch)
        return _Held(kept, versions, snapshots)

    async def _refuse(self, incoming: Incoming, reason: pb.Reason, detail: str) -> None:
        await incoming.channel.send(pb.Refused(reason=reason, detail=detail))
