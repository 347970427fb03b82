"""When the machines of a scenario come, go and come again, in whatever world they are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from .machines import Machine, draw, draw_lifetime
from .scenario import Session
from .world import World


@dataclass
class Fleet:
    """All machines of a scenario. `changed` is called whenever one comes, goes, or is as fast as it was no more."""

    world: World
    machines: Sequence[Machine]
    changed: Callable[[], None] = field(default=lambda: None)

    def __post_init__(self) -> None:
        self.expected = 0
        """How many machines are still to come, or to come again."""

    @property
    def up(self) -> int:
        """How many machines are there; who leaves politely is, until it has gone."""
        return sum(machine.up or self.world.runs(machine) for machine in self.machines)

    def start(self) -> None:
        """Has every machine come when it is due."""
        for machine in self.machines:
            if not machine.group.sessions:
                self._expect(machine.joins, partial(self.come, machine))
            for session in machine.sessions:
                self._expect(session.begin, partial(self._begin_session, machine, session))

    def _expect(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls after `seconds`: a machine comes then."""
        self.expected += 1

        def comes() -> None:
            self.expected -= 1
            call()

        self.world.later(seconds, comes)

    def _begin_session(self, machine: Machine, session: Session) -> None:
        """One that the scenario knows: it begins as soon as the machine is free of the one before."""
        if machine.up or self.world.runs(machine):
            self._expect(1.0, partial(self._begin_session, machine, session))
            return
        if session.end is not None and session.end <= self.world.now:
            return
        machine.stage = machine.group.stage if session.stage is None else session.stage
        machine.until = math.inf if session.end is None else session.end
        self.come(machine)
        if session.end is not None:
            end = self.leave if session.leaves else self.switch_off
            self.world.later(max(0.0, session.end - self.world.now), partial(end, machine, None))

    def set_slowdown(self, machine: Machine, times: float) -> None:
        """Its device takes so many times as long as before."""
        machine.slowdown *= times
        self.world.set_pace(machine)
        self.changed()

    def come(self, machine: Machine) -> None:
        """It is switched on: after a while its program asks for a place."""
        if machine.up:
            return
        machine.up, machine.since = True, self.world.now
        takes = self.world.starting + draw(machine.group.loads, machine.chance)
        self.world.later(takes, partial(self._begin, machine, machine.since))
        if machine.group.stays is not None:
            lasts = draw_lifetime(machine.group.stays, machine.chance)
            self.world.later(lasts, partial(self._session_ends, machine, machine.since))

    def _begin(self, machine: Machine, since: float) -> None:
        if not machine.up or machine.since != since:
            return
        self.world.start(machine)
        self.changed()

    def _session_ends(self, machine: Machine, since: float) -> None:
        if not machine.up or machine.since != since:
            return
        away = None if machine.group.away is None else draw_lifetime(machine.group.away, machine.chance)
        if machine.group.leaves:
            self.leave(machine, away)
        else:
            self.switch_off(machine, away)

    def kill(self, machine: Machine, away: float | None) -> None:
        """Its program is gone at once; it comes again after `away` seconds, without them never."""
        self._end(machine, away, self.world.kill)

    def switch_off(self, machine: Machine, away: float | None) -> None:
        """It is gone at once, and nobody is told."""
        self._end(machine, away, self.world.switch_off)

    def leave(self, machine: Machine, away: float | None) -> None:
        """Its peers leave politely."""
        self._end(machine, away, self.world.leave)

    def _end(self, machine: Machine, away: float | None, end: Callable[[Machine], None]) -> None:
        if not machine.up:
            return
        machine.up = False
        end(machine)
        self.changed()
        self._come_again(machine, away)

    def _come_again(self, machine: Machine, away: float | None) -> None:
        if away is None:
            return

        def again() -> None:
            if self.world.runs(machine):  # who leaves may have to wait for another replica
                self._expect(1.0, again)
            elif self.world.now < machine.until:
                self.come(machine)

        self._expect(away, again)
