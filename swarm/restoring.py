"""A trainer as the donor of the checkpoint that its epoch begins with: whoever joins takes the state of its stage, and
the reduction that follows, from here as from any replica, until the first step of the epoch is closed.

Errors go to who asks: Refused{NOT_KEPT}, and NOT_READY where a part of the checkpoint cannot be read.
"""

from dataclasses import dataclass, field

from ..errors import StorageError
from ..protos import swarm_pb2 as pb
from .checkpoint import Checkpoint, StageCheckpoint
from .compute import BACKGROUND, Device
from .exchange import Incoming
from .snapshots import Snapshots
from .versions import VersionStore


class _Exported:
    """A state that is bytes already."""

    def export(self, state: bytes) -> bytes:
        return state


@dataclass
class Restoring:
    """Gives a checkpoint in the epoch `epoch`, one stage in memory at a time."""

    run_id: str
    epoch: int
    checkpoint: Checkpoint
    device: Device
    max_payload: int
    members: int = 0
    """Of the last Commit before the run went back; 0 where it is resumed by others."""

    _stage: tuple[int, StageCheckpoint] | None = field(default=None)
    _snapshots: Snapshots | None = field(default=None)
    _versions: VersionStore = field(default_factory=VersionStore)

    def holds(self, step: int) -> bool:
        """Whether it has the reduction of a step."""
        return self.checkpoint.commit is not None and step == self.checkpoint.commit.step

    def commit(self) -> pb.Commit | None:
        """The Commit of the last step in it, as one of this epoch: those who made it are not those who go on from it,
        and only who has led them knows how many must be heard: `members`."""
        if self.checkpoint.commit is None:
            return None
        renewed = pb.Commit()
        renewed.CopyFrom(self.checkpoint.commit)
        renewed.epoch = self.epoch
        renewed.members = self.members
        return renewed

    async def serve(self, incoming: Incoming, question: pb.Fetch) -> None:
        """Answers a Fetch of a part of a state or of a reduction."""
        wanted = question.kind in (pb.Fetch.STATE, pb.Fetch.REDUCTION) and question.run == self.run_id
        if not wanted or question.epoch != self.epoch or question.stage >= len(self.checkpoint.digests):
            await self._refuse(incoming, pb.NOT_KEPT, "this checkpoint holds no such thing")
            return
        try:
            kept = await self._read(question.stage)
        except StorageError as error:
            await self._refuse(incoming, pb.NOT_READY, str(error))
            return
        if question.kind == pb.Fetch.STATE:
            assert self._snapshots is not None
            await self._snapshots.serve(incoming, question, self._versions)
            return
        parts, commit = kept.reduction.get(question.group, ()), self.checkpoint.commit
        chosen = [] if commit is None else [(choice.stage, choice.term, choice.attempt) for choice in commit.choices]
        named = (question.stage, question.term, question.attempt) in chosen and self.holds(question.step)
        if not named or question.part >= len(parts):
            await self._refuse(incoming, pb.NOT_KEPT, "this checkpoint holds no such reduction")
            return
        await incoming.channel.send(pb.Fetched(), parts[question.part], category="reduce")

    async def _read(self, stage: int) -> StageCheckpoint:
        if self._stage is None or self._stage[0] != stage:
            kept = await self.device.run(BACKGROUND, lambda: self.checkpoint.read(stage))
            self._stage = stage, kept
            self._versions = VersionStore()
            self._versions.put(self.checkpoint.version, kept.state, self.checkpoint.digests[stage])
            self._snapshots = Snapshots(self.run_id, stage, _Exported(), self.device, self.max_payload, self.epoch)
        return self._stage[1]

    async def _refuse(self, incoming: Incoming, reason: pb.Reason, detail: str) -> None:
        await incoming.channel.send(pb.Refused(reason=reason, detail=detail))
