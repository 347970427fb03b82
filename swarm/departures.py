"""Members that go: lost, sent away, sat out for a while, or leaving of their own or the organizer's will.

Only here a member ceases to be live. What a lost one was credited with is run again at once. Who leaves goes when
nobody needs it any more: another replica of its stage is there and well, the steps that were open are closed, no
reduction waits for it. Until then it works as before, so that nothing is done twice for its sake; of later steps it
takes nothing. The only replica of a stage stays until another one has come.

Errors: none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ..protos import swarm_pb2 as pb
from . import events
from .bench import Bench
from .conditions import Signal
from .driving import Driver
from .faults import Fault, FaultLog
from .ledger import Ledger
from .messages import Body
from .neighbours import Neighbours
from .roster import Member, Roster

FAREWELL_SECONDS = 5.0


@dataclass
class Departures:
    """For a trainer. `drop` ends a control stream, `promote` lets a member take part (again), `rerun` re-runs (step,
    index); `reduces(number)`: whether a member has a reduction in hand; `spared(member)`: whether commits can do
    without him; `over()`: whether the run is at its end; `spawn` owns what is begun here."""

    roster: Roster
    ledger: Ledger
    driver: Driver
    faults: FaultLog
    neighbours: Neighbours
    signal: Signal
    tell: Callable[[Member, Body], Awaitable[None]]
    drop: Callable[[Member], None]
    promote: Callable[[Member], None]
    rerun: Callable[[int, int], None]
    reduces: Callable[[int], bool]
    spared: Callable[[Member], bool]
    over: Callable[[], bool]
    emit: Callable[[events.Event], None]
    spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
    bench: Bench = field(default_factory=Bench)
    _leaving: "list[asyncio.Task[None]]" = field(default_factory=list)

    # ---- lost

    def lose(self, member: Member, why: str) -> None:
        """Declares a member lost: its open credits are re-run at once."""
        if not member.live or self.over():
            self.signal.notify()
            return
        member.live = member.ready = False
        self.drop(member)
        self.neighbours.gone(member.stage, member.peer)
        why = member.sent_away or why
        uncredited = self.ledger.lose(member.number)
        affected = set(uncredited) | self.driver.open_at(member.number)
        now = asyncio.get_running_loop().time()
        at_step = max(self.driver.steps, default=0)
        if member.took_part:
            self.faults.add(Fault(member.number, member.peer, member.stage, at_step, why, now, frozenset(affected)))
        for step, index in uncredited:
            self.rerun(step, index)
        silent, rerun = max(0.0, now - member.heard), len(affected)
        self.emit(events.Lost(member.number, member.peer, member.stage, at_step, why, now, silent, rerun))
        if not self.roster.ready(member.stage):
            heirs = [heir for heir in self.roster.following() if heir.stage == member.stage]
            if heirs:
                self.promote(max(heirs, key=lambda heir: heir.version))
        self.signal.notify()

    # ---- against their will

    def send_away(self, member: Member, reason: pb.Reason, why: str) -> None:
        """Refuses a member from now on; it may come again if `reason` lets it."""
        if not member.sent_away:
            member.ready, member.sent_away = False, why
            self.spawn(self._refuse(member, reason, why))

    async def _refuse(self, member: Member, reason: pb.Reason, why: str) -> None:
        await self.tell(member, pb.Refused(reason=reason, detail=why))
        self.lose(member, why)

    def sit_out(self, member: Member, why: str) -> None:
        """Loses a member, and lets it take part again only after a while."""
        loop = asyncio.get_running_loop()
        loop.call_later(self.bench.send(member.peer, loop.time()), self._call_back, member.peer)
        self.lose(member, why)

    def _call_back(self, peer: str) -> None:
        self.bench.call_back(peer)
        member = self.roster.by_peer(peer)
        if member is not None and not self.over():
            self.promote(member)

    # ---- of somebody's will

    def begin(self, member: Member, why: str) -> None:
        """A member is to leave, as soon as it can be spared."""
        if member.live and not member.leaving and not self.over():
            member.leaving = why
            self.emit(events.Draining(member.number, member.peer, why))
            self._leaving = [task for task in self._leaving if not task.done()]
            self._leaving.append(self.spawn(self._see_off(member)))

    @property
    def are_under_way(self) -> bool:
        """Whether anybody is leaving."""
        return any(not task.done() for task in self._leaving)

    def end(self) -> None:
        """The run is over for all: nobody is seen off any more."""
        for task in self._leaving:
            task.cancel()

    async def _see_off(self, member: Member) -> None:
        while True:
            await self.signal.wait_for(lambda: not member.live or self._can_be_spared(member))
            await self._drain(member, True)
            await self.signal.wait_for(
                lambda: not member.live or self._holds_nothing(member) or not self._can_be_spared(member)
            )
            if not member.live:
                return
            if self._can_be_spared(member):
                break
            await self._drain(member, False)  # the other replica is gone: this one has the state of the stage
        await self.tell(member, pb.Finish(detail=f"left the run: {member.leaving}"))
        if member.live:
            member.live = member.ready = False
            self.neighbours.gone(member.stage, member.peer)
            # It hangs up when it has heard that it may.
            asyncio.get_running_loop().call_later(FAREWELL_SECONDS, self.drop, member)
            self.emit(events.Left(member.number, member.peer, member.stage, member.leaving))
            self.signal.notify()

    async def _drain(self, member: Member, on: bool) -> None:
        if member.live:
            member.draining, member.idle_since = on, None
            self.neighbours.show(member.stage, self.roster.records(member.stage))
            self.signal.notify()
            await self.tell(member, pb.Drain(off=not on, until=max(self.driver.steps, default=-1) + 1))

    def _can_be_spared(self, member: Member) -> bool:
        """Whether it has no state yet, or another replica of its stage takes part that is not about to leave."""
        others = [other for other in self.roster.serving(member.stage) if other is not member]
        return member.version < 0 or bool(others)

    def _holds_nothing(self, member: Member) -> bool:
        if member.ready:
            # Somebody who has its state must have been heard since: a kill may not have been noticed yet.
            since = member.idle_since
            others = [other for other in self.roster.serving(member.stage) if other is not member]
            if since is None or not any(other.heard > since for other in others):
                return False
        # It may hold more than this trainer had issued when it told it what it need not do any more.
        needed = self.ledger.credits_of(member.number) or self.reduces(member.number)
        return not needed and self.spared(member)
