"""When members take part: from the state that a member says it has to its first credit.

A member is ready once its state is proven by its digest and up to date, or is the best that there is of its stage; one
that is behind is brought up to date, one that is wrong, too old or of no use any more is sent away, to come again.
Errors: none.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from ..protos import swarm_pb2 as pb
from . import events
from .beginning import Beginning
from .closing import Closing
from .conditions import Signal
from .crew import Crew
from .departures import Departures
from .epochs import Lineage
from .manifest import Manifest
from .neighbours import Neighbours
from .roster import Member, Roster
from .taking_over import TakingOver

KEPT_DIGESTS = 8
"""Versions whose digests are remembered of each member; no two live members are that far apart."""


@dataclass
class Readiness:
    """For a trainer. `began()`: whether its term has begun, `over()`: whether the run is at its end; `spawn` owns what
    is begun here."""

    manifest: Manifest
    roster: Roster
    crew: Crew
    beginning: Beginning
    closing: Closing
    departures: Departures
    neighbours: Neighbours
    taking_over: TakingOver
    signal: Signal
    began: Callable[[], bool]
    over: Callable[[], bool]
    emit: Callable[[events.Event], None]
    spawn: Callable[[Coroutine[Any, Any, None]], object]

    def ready(self, member: Member, version: int, digest: bytes) -> None:
        """A member has a state, which may be some Commits behind."""
        if self.over():
            return
        member.digests[version] = digest
        if self.began() or not self.crew.resumes:
            self.receive(member)
        self.signal.notify()

    def receive(self, member: Member) -> None:
        """Lets a member that has a state take part, or brings it up to date first, or sends it away."""
        version = member.version
        oldest = max(0, self.closing.closed - self.manifest.settings.pipeline.staleness)
        if version < oldest:
            detail = f"version {version} came; the run goes on from version {oldest}"
            self.departures.send_away(member, pb.TOO_OLD, detail)
        elif self.beginning.digest_of(member.stage, version) not in (None, member.digests[version]):
            self._send_away_as_wrong(member, version)
        else:
            self.spawn(self.closing.catch_up(member))
            self.promote(member)

    def promote(self, member: Member) -> None:
        """Lets a member take part that has every committed version, or the best state there is of its stage."""
        now = asyncio.get_running_loop().time()
        behind = member.version < self.closing.committed or self.departures.bench.holds(member.peer, now)
        held_back = behind and self.roster.ready(member.stage)
        if not member.live or member.ready or member.version < 0 or held_back:
            return
        if self.crew.resumes and not self.began():
            return
        member.ready = member.took_part = True
        self.neighbours.show(member.stage, self.roster.records(member.stage))
        self._judge(member.stage, member.version)
        self.emit(events.Ready(member.number, member.peer, member.stage))
        self.taking_over.credit_member(member)
        for other in self.roster.live(member.stage):
            if other.loaded:
                self.loaded(other)
        self.signal.notify()

    def loaded(self, member: Member) -> None:
        """It has its stage but for the state: whoever has that may have come meanwhile."""
        member.loaded = True
        if self.beginning.donors(member.stage, self.closing.closed):
            self.departures.send_away(member, pb.TOO_OLD, "the state of its stage is to be had again")
        self.signal.notify()

    def applied(self, member: Member, version: int, digest: bytes) -> None:
        member.digests[version] = digest
        member.digests.pop(version - KEPT_DIGESTS, None)
        self.promote(member)
        self._judge(member.stage, version)
        self.signal.notify()

    def take_over(self, lineage: Lineage) -> None:
        """The run has gone back to a checkpoint, as somebody knows: whoever came before him begins anew."""
        self.beginning.lineage = lineage
        self.crew.reports.clear()
        for member in self.roster.live():
            self.departures.send_away(member, pb.TOO_OLD, "the run has gone back to a checkpoint")

    def _judge(self, stage: int, version: int) -> None:
        for member in self.roster.dissenters(stage, version):
            self._send_away_as_wrong(member, version)

    def _send_away_as_wrong(self, member: Member, version: int) -> None:
        detail = f"its state at version {version} differs from the other replicas'"
        self.departures.send_away(member, pb.WRONG_STATE, detail)
