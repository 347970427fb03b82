"""Who is there, and whether that is enough to begin, to go on in a new term, and to commit.

Owns what members have reported that they hold (Held). A new term needs a replica of every stage; with a standby
configured also more than half of the members of the last Commit, or before the first, of the founders, so that no two
halves of a swarm can both take themselves for the greater one. Pure bookkeeping.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ..protos import swarm_pb2 as pb
from .conditions import Signal
from .history import History
from .manifest import Manifest
from .roster import Member, Roster


@dataclass
class Crew:
    """`founders`: how many members the run began with, 0 before that is known; `last_members`: those of the last Commit
    of this term."""

    manifest: Manifest
    roster: Roster
    history: History
    founders: int = 0
    last_members: int = 0
    resuming: bool = False
    """Whether the term begins with a checkpoint: then whoever is there will do, as when another trainer has led."""

    reports: list[tuple[Member, pb.Held]] = field(default_factory=list)

    @property
    def resumes(self) -> bool:
        """Whether the run had begun before this trainer did."""
        told = self.resuming or bool(self.history.told)
        return told or any(member.returning for member in self.roster.everyone())

    def heard(self, member: Member, held: pb.Held) -> None:
        """What a member that comes (again) holds."""
        member.kept = {(kept.step, kept.term, kept.attempt) for kept in held.kept}
        self.reports = [(other, report) for other, report in self.reports if other.live]
        self.reports.append((member, held))

    def commits(self) -> list[pb.Commit]:
        """The Commits that members have told of."""
        return [commit for _, held in self.reports for commit in held.commits]

    def is_complete(self) -> bool:
        stages = range(self.manifest.stages)
        if self.resumes:
            present = {member.stage for member in self.roster.following()}
            return self.has_majority() and all(stage in present for stage in stages)
        needed = self.manifest.settings.pipeline.min_replicas
        return all(len(self.roster.serving(stage)) >= needed for stage in stages)

    def has_majority(self) -> bool:
        """Without a standby that is not asked."""
        return self._is_majority(len(self.roster.following()))

    def can_spare_one(self) -> bool:
        """Whether those who stay would still be a majority if a member left now."""
        return self._is_majority(len(self.roster.following()) - 1)

    def _is_majority(self, present: int) -> bool:
        return not self.manifest.settings.pipeline.standby or 2 * present > self.whole

    @property
    def whole(self) -> int:
        """Of how many members a majority is needed: of those of the last Commit that anyone here knows of, or before
        the first, of the founders."""
        latest = max(self.commits(), key=lambda commit: commit.step, default=None)
        members = max(self.last_members, latest.members if latest is not None else 0)
        return members or max(self.told_founders(), self.least_founders)

    @property
    def least_founders(self) -> int:
        """How many members a run begins with at the least, whether or not anyone was told: the manifest says so."""
        return self.manifest.stages * self.manifest.settings.pipeline.min_replicas

    def told_founders(self) -> int:
        """How many members the run began with, as far as anyone has been told."""
        return max([self.founders, *(held.members for _, held in self.reports)])

    async def tell_founders(self, tell: Callable[[Member, pb.Heartbeat], Awaitable[None]], signal: Signal) -> None:
        """With a standby, nothing begins before everyone here knows how many began it."""
        self.founders = self.told_founders()
        if not self.manifest.settings.pipeline.standby or self.founders:
            return
        self.founders = max(self.least_founders, len(self.roster.following()))
        for member in self.roster.following():
            await tell(member, pb.Heartbeat(members=self.founders))
        await signal.wait_for(lambda: all(member.beat.members >= self.founders for member in self.roster.following()))
