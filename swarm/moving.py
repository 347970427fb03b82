"""Moves of members from stages with replicas to spare to those that need them: `rebalancing.py` decides, this carries
out, for a trainer.

Who is chosen is told (Move), and so are events and the directory. Its machine hosts the new stage as another member;
when that one takes part, the old one leaves as anybody leaves who wants to, so that its stage never loses its last
replica by it. It may decline: its owner wants it where it is, or there is no room for two stages. Until a move has
ended, well or not, there is no other.

Errors: none; a move that does not end within `MOVE_SECONDS` is given up.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from ..protos import swarm_pb2 as pb
from . import events
from .conditions import Signal
from .messages import Body
from .placement import Hosted
from .rebalancing import Move as Chosen
from .rebalancing import Rebalancer, Settings
from .roster import Member, Roster

LOOK_SECONDS = 5.0
MOVE_SECONDS = 900.0


@dataclass
class Moving:
    """`period`: seconds from a move to the next, 0 for none at all; `patience`: how long a stage without replicas waits
    for one that returns. `began()`: whether the term has begun; `over()`: whether nobody is moved any more, or not yet;
    `leaving()`: whether somebody leaves, who is waited for unless a stage has nobody."""

    roster: Roster
    period: float
    min_replicas: int
    patience: float
    signal: Signal
    tell: Callable[[Member, Body], Awaitable[None]]
    began: Callable[[], bool]
    over: Callable[[], bool]
    leaving: Callable[[], bool]
    emit: Callable[[events.Event], None]
    _declined: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        # A peer is left alone for six periods, in which others move.
        settings = Settings(period=self.period, settle=6 * self.period, min_replicas=self.min_replicas)
        self.rebalancer = Rebalancer(settings)

    async def run(self) -> None:
        """Never returns."""
        empty_since: float | None = None
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = asyncio.get_running_loop().time()
            is_empty = self._is_empty()
            empty_since = (now if empty_since is None else empty_since) if is_empty else None
            returns = empty_since is not None and now < empty_since + self.patience
            # Who wants to leave may have to stay until a stage that nobody hosts has somebody.
            if self.over() or (self.leaving() and not is_empty) or not self.period or returns:
                continue
            move = self.rebalancer.decide(now, self._movable())
            mover = None if move is None else self.roster.get(move.member)
            if move is not None and mover is not None:
                why = await self._carry_out(move, mover)
                self.emit(events.Moved(mover.number, mover.peer, move.source, move.target, why))
                self.rebalancer.settled(asyncio.get_running_loop().time(), move.member, ok=not why)

    def _movable(self) -> list[list[Hosted]]:
        """The replicas of each stage. Who declined, or is held where it is by its owner, stays: to the policy it hosts
        every stage. Before the term begins, when nobody takes part yet, whoever has a state will do."""
        return [[self._as_seen(member) for member in self.roster.live(stage)] for stage in range(self.roster.stages)]

    def _as_seen(self, member: Member) -> Hosted:
        seen = member.hosted()
        if not self.began():
            seen = replace(seen, ready=member.version >= 0)
        if member.fixed or member.number in self._declined:
            seen = replace(seen, besides=tuple(range(self.roster.stages)))
        return seen

    async def _carry_out(self, move: Chosen, mover: Member) -> str:
        """Has a member move: why it did not, "" if it did."""
        self.emit(events.Moving(mover.number, mover.peer, move.source, move.target))
        await self.tell(mover, pb.Move(stage=move.target))
        try:
            async with asyncio.timeout(MOVE_SECONDS):
                await self.signal.wait_for(lambda: self._has_ended(mover, move.target))
        except TimeoutError:
            self._declined.add(mover.number)
            return f"it has not moved within {MOVE_SECONDS:.0f} s"
        if mover.number in self._declined:
            return "it declined"
        return "" if self._followed(mover, move.target) else "it was lost"

    def _has_ended(self, mover: Member, target: int) -> bool:
        """Whether a mover has gone or declined. While a stage has nobody, also whether it hosts the new one: it may be
        that stage for which its old member cannot finish what it has begun."""
        gone = not mover.live or mover.number in self._declined
        return gone or (self._is_empty() and self._followed(mover, target))

    def _followed(self, mover: Member, target: int) -> bool:
        return any(member.replaces == mover.number and member.ready for member in self.roster.live(target))

    def _is_empty(self) -> bool:
        """Whether a stage has nobody."""
        return any(not replicas for replicas in self.roster.hosted())

    def declined(self, member: Member) -> None:
        """A member does not move."""
        self._declined.add(member.number)
        self.signal.notify()
