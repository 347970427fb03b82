"""Who is there, and whether that is enough to begin, to go on in a new term, and to commit.

Owns what members have reported that they hold (Held). A new term needs a replica of every stage; with a standby
configured also more than half of the members of the last Commit, or before the first, of the founders, so that no two
halves of a swarm can both take themselves for the greater one. Those very peers: who has come since would make a
majority of whoever he joined. As long as nobody knows of any founders, as many as the manifest asks for. Pure
bookkeeping.
"""

import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from ..protos import swarm_pb2 as pb
from .conditions import Signal
from .history import History
from .manifest import Manifest
from .roster import Member, Roster


@lru_cache(maxsize=4096)
def name_in_crew(peer: str) -> int:
    """A peer as a Commit names it."""
    return int.from_bytes(hashlib.sha256(peer.encode()).digest()[:8])


def crew_of(members: Iterable[Member]) -> frozenset[int]:
    """Members as a Commit names them."""
    return frozenset(name_in_crew(member.peer) for member in members)


def renews(commit: pb.Commit, other: pb.Commit) -> bool:
    """Whether a Commit takes the place of another one of its step, as a reduction that the other names was lost and
    made anew: nobody has that any more."""
    made, before = ([(one.stage, one.term, one.attempt) for one in each.choices] for each in (commit, other))
    return sorted(made) > sorted(before)


@dataclass
class Crew:
    """`founders`: with whom the epoch began, empty before that is known; `last`: of the last Commit of this term, or of
    the one that this coordinator went back after; `latest`: the last Commit of this term or that anyone has told of,
    who may be gone since."""

    manifest: Manifest
    roster: Roster
    history: History
    founders: frozenset[int] = frozenset()
    last: frozenset[int] = frozenset()
    latest: pb.Commit | None = None
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
        self.founders = max(self.founders, frozenset(held.founders), key=len)
        if not self.last:
            self.latest = max([*self._known(), *held.commits], key=lambda commit: commit.step, default=None)

    def commits(self) -> list[pb.Commit]:
        """The Commits that members have told of; of each step the last one."""
        last: dict[tuple[int, int], pb.Commit] = {}
        for commit in [commit for _, held in self.reports for commit in held.commits]:
            key = (commit.epoch, commit.step)
            if key not in last or renews(commit, last[key]):
                last[key] = commit
        return list(last.values())

    def is_complete(self) -> bool:
        stages = range(self.manifest.stages)
        if self.resumes:
            following = self.roster.following()
            missing = set(stages).difference(member.stage for member in following)
            enough = len(following) >= self.least_founders or not self._may_be_first()
            return not missing and enough and self.has_majority()
        needed = self.manifest.settings.pipeline.min_replicas
        return all(len(self.roster.serving(stage)) >= needed for stage in stages)

    def _may_be_first(self) -> bool:
        """Whether it would be for this trainer to begin the run, with peers that another has welcomed. As far as they
        know he has not begun; but he may yet, with others: four of nine are a majority of six that nobody knows."""
        known = self._has_begun or self.history.lineage.number or self.resuming
        return bool(self.manifest.settings.pipeline.standby) and not known

    @property
    def _has_begun(self) -> bool:
        """Whether the epoch has, as far as anyone here knows."""
        return bool(self.whole) or any(step >= self.history.lineage.first for step in self.history.told)

    def has_majority(self) -> bool:
        """Without a standby that is not asked."""
        return self._is_majority(self.roster.following())

    def take(self, commit: pb.Commit) -> None:
        """The next Commit needs a majority of those who are named by this one."""
        self.latest, self.last = commit, frozenset(commit.crew)

    def is_heard(self) -> bool:
        """Whether most of those of whom the last Commit needed a majority have applied it. Until then others of them,
        who have not heard of it, may make that Commit with another trainer, whoever is named by this one."""
        latest = self.latest
        if not self.manifest.settings.pipeline.standby or latest is None or not latest.earlier_crew:
            return True
        heard = crew_of(member for member in self.roster.everyone() if member.version > latest.step)
        return 2 * len(heard.intersection(latest.earlier_crew)) > len(latest.earlier_crew)

    def can_spare(self, leaver: Member) -> bool:
        """Whether those who stay would still be a majority if a member left now, and he is not missed by `is_heard`."""
        staying = [member for member in self.roster.following() if member is not leaver]
        return self.is_heard() and self._is_majority(staying)

    def _is_majority(self, present: Collection[Member]) -> bool:
        if not self.manifest.settings.pipeline.standby:
            return True
        whole = self.whole
        if whole:
            return 2 * len(whole & crew_of(present)) > len(whole)
        if self._has_begun and not self.resuming:
            return False  # and nobody who is here knows with whom
        return 2 * len(present) > self.least_founders

    @property
    def whole(self) -> frozenset[int]:
        """Of whom a majority is needed: those of the last Commit that anyone here knows of, or before the first, the
        founders; empty if nobody knows of any."""
        return self.last or frozenset(self.latest.crew if self.latest is not None else ()) or self.founders

    @property
    def least_founders(self) -> int:
        """How many members a run begins with at the least, whether or not anyone was told: the manifest says so."""
        return self.manifest.stages * self.manifest.settings.pipeline.min_replicas

    def _known(self) -> list[pb.Commit]:
        return [] if self.latest is None else [self.latest]

    async def tell_founders(self, tell: Callable[[Member, pb.Heartbeat], Awaitable[None]], signal: Signal) -> None:
        """With a standby, no epoch begins before everyone here knows who began it. Where the run went back, those who
        had come so far: who would commit another step of the epoch before needs a majority of them too."""
        if not self.manifest.settings.pipeline.standby or self.latest is not None:
            return
        self.founders = self.founders or self.last or crew_of(self.roster.following())
        for member in self.roster.following():
            await tell(member, pb.Heartbeat(founders=sorted(self.founders)))
        await signal.wait_for(
            lambda: all(member.beat.knows >= len(self.founders) for member in self.roster.following())
        )
