"""What the organizer does to a run that goes on: pause it, have a peer leave, ban one.

The trainer asks here before it begins a step, and before it lets anyone in. Errors: `UsageError` for what cannot be
done, in words for the organizer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import UsageError
from ..protos import swarm_pb2 as pb
from . import events
from .conditions import Signal
from .departures import Departures
from .errands import Errands
from .roster import Member, Roster

BY_ORGANIZER = "the organizer asks for it"


@dataclass
class Steering:
    """`banned`: why, by peer id; `over()`: whether the trainer has stopped leading."""

    roster: Roster
    departures: Departures
    signal: Signal
    emit: Callable[[events.Event], None]
    over: Callable[[], bool]
    banned: dict[str, str] = field(default_factory=dict)
    paused: bool = False

    def pause(self) -> None:
        """Nothing new is begun from now on; the steps that are under way are finished."""
        self._check()
        if not self.paused:
            self.paused = True
            self.emit(events.Paused())

    def resume(self) -> None:
        """Goes on."""
        self._check()
        if self.paused:
            self.paused = False
            self.emit(events.Resumed())
            self.signal.notify()

    async def between_steps(self, errands: Errands, version: int) -> None:
        """Has done what somebody waits for, and while the run is paused, nothing else."""
        await errands.run(version)
        while self.paused:
            await self.signal.wait_for(lambda: not self.paused or bool(errands.waiting))
            await errands.run(version)

    def drain(self, peer: str, why: str = "") -> None:
        """Has a peer leave as soon as nothing depends on it. Raises `UsageError` for the only replica of a stage."""
        member = self._member(peer)
        others = [other for other in self.roster.ready(member.stage) if other is not member and not other.leaving]
        if member.ready and not others:
            raise UsageError(
                f"{peer} is the only replica of stage {member.stage} that stays: without it the run would wait. "
                "Let another peer join that stage first, or ban this one"
            )
        self.departures.begin(member, why or BY_ORGANIZER)

    def ban(self, peer: str, why: str = "") -> None:
        """Sends a peer away at once and for good: what it was credited with is done again."""
        self._check()
        if not peer:
            raise UsageError("whom to ban was not said: expected a peer id")
        if peer not in self.banned:
            self.banned[peer] = why or BY_ORGANIZER
            self.emit(events.Banned(peer, self.banned[peer]))
        member = self.roster.by_peer(peer)
        if member is not None:
            self.departures.send_away(member, pb.UNTRUSTED, f"banned: {self.banned[peer]}")

    def _member(self, peer: str) -> Member:
        self._check()
        member = self.roster.by_peer(peer)
        if member is None:
            raise UsageError(f"{peer or 'a peer without a name'} is not in this run now")
        return member

    def _check(self) -> None:
        if self.over():
            raise UsageError("this coordinator does not lead the run (any more)")
