"""What a stage's members are told of the credits of the open steps, so that they know which gradients they may sum.

All replicas of a stage are told nearly the same, at every heartbeat: it is looked up for all of them at once. Looked up
for each alone, and all of it sent as numbers, it grew with the square of the swarm. Pure.
"""

from dataclasses import dataclass, field

from ..protos import swarm_pb2 as pb
from .ledger import Ledger
from .messages import to_bits


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Of one step at one stage: all that is credited, as `messages.to_bits`, and to whom; `at`: when it was taken."""

    at: float
    credited: bytes
    own: dict[int, list[int]]


@dataclass
class CreditsTold:
    """`seconds`: how old what is told may be. Times are the caller's clock."""

    ledger: Ledger
    seconds: float
    _snapshots: dict[tuple[int, int], _Snapshot] = field(default_factory=dict)

    def of(self, stage: int, member: int, epoch: int, now: float) -> list[pb.Credits]:
        """What a member of a stage is told: a message for each open step."""
        told = []
        for step in self.ledger.open_steps:
            known = self._snapshots.get((step, stage))
            if known is None or now - known.at >= self.seconds:
                known = self._take(step, stage, now)
            own = known.own.get(member, ())
            told.append(pb.Credits(epoch=epoch, step=step, own=own, credited=known.credited))
        return told

    def _take(self, step: int, stage: int, now: float) -> _Snapshot:
        for closed in [key for key in self._snapshots if not self.ledger.is_open(key[0])]:
            del self._snapshots[closed]
        own: dict[int, list[int]] = {}
        credits = self.ledger.credits(step, stage)
        for index in sorted(credits):
            own.setdefault(credits[index], []).append(index)
        taken = self._snapshots[step, stage] = _Snapshot(now, to_bits(credits), own)
        return taken
