"""The epoch of a trainer's term, and the checkpoint that it begins with, if it does.

Owns the epochs as this trainer knows them: before its term begins it takes over the newest that a peer has followed;
afterwards its own counts, and who holds another begins anew. Tells newcomers who can give them the state of a stage.

Errors go to who asks (`restoring.py`).
"""

from dataclasses import dataclass, field

from ..protos import swarm_pb2 as pb
from .checkpoint import Checkpoint
from .compute import Device
from .epochs import Lineage
from .manifest import Manifest
from .restoring import Restoring
from .roster import Roster
from .serving import Incoming
from .transport import Transport


@dataclass
class Beginning:
    """For a trainer. `origin`: the checkpoint with which the last epoch of `lineage` begins, where this term begins it;
    None for version 0, or if it goes on with an epoch. `crew`: of the last Commit before it went back."""

    manifest: Manifest
    transport: Transport
    roster: Roster
    device: Device
    lineage: Lineage
    origin: Checkpoint | None
    crew: frozenset[int] = frozenset()
    _restoring: Restoring | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.origin is not None:
            limit = self.manifest.settings.limits.payload_bytes
            run_id = self.manifest.run_id
            self._restoring = Restoring(run_id, self.epoch, self.origin, self.device, limit, self.crew)

    @property
    def epoch(self) -> int:
        return self.lineage.number

    @property
    def closed(self) -> int:
        """Steps below this are closed as the term begins, as far as is known."""
        return 0 if self.origin is None else self.origin.closed

    def commits(self) -> dict[int, pb.Commit]:
        """By step: the Commit by which newcomers turn the checkpoint's version into the next."""
        commit = None if self._restoring is None else self._restoring.commit()
        return {} if commit is None else {commit.step: commit}

    def donors(self, stage: int, closed: int) -> list[pb.Member]:
        """Ready replicas, and the trainer as long as its checkpoint is not too old."""
        found = [member.to_message() for member in self.roster.ready(stage)]
        if self.origin is not None and closed == self.origin.closed:
            found.append(self._as_donor())
        return found

    def restores(self, step: int) -> list[pb.Member]:
        """The trainer, if it has the reduction of a step."""
        return [self._as_donor()] if self._restoring is not None and self._restoring.holds(step) else []

    def _as_donor(self) -> pb.Member:
        return pb.Member(peer=self.transport.peer_id, addresses=self.transport.addresses)

    def digest_of(self, stage: int, version: int) -> bytes | None:
        """Of a version, by the checkpoint or else by the replicas; None if nobody says."""
        if self.origin is not None and version == self.origin.version:
            return self.origin.digests[stage]
        return self.roster.digest_of(stage, version)

    def release(self) -> None:
        """The term is over: nobody restores the checkpoint from here, and what of it is in memory is not needed."""
        self.origin = self._restoring = None

    async def serve_fetch(self, incoming: Incoming, question: pb.Fetch) -> None:
        if self._restoring is None:
            await incoming.channel.send(pb.Refused(reason=pb.NOT_KEPT, detail="this trainer holds no checkpoint"))
        else:
            await self._restoring.serve(incoming, question)
