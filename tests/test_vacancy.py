"""A stage whose state nobody has, on virtual time: who comes when, and what the run does."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from swarm_peer.errors import GoingBackError, StoppedError
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import events
from swarm_peer.swarm.conditions import Signal
from swarm_peer.swarm.roster import Member, Roster
from swarm_peer.swarm.vacancy import watch_stages

STAGES = 3
PATIENCE = 30.0
AT_STEP = 7

Deed = tuple[float, str, int]
"""When, what, at which stage. returns: a replica with the state; loads: a newcomer who has all but that; loses: nobody
of the stage is left."""


@dataclass
class Swarm:
    """A roster that things happen to."""

    roster: Roster = field(default_factory=lambda: Roster("run", STAGES))
    signal: Signal = field(default_factory=Signal)
    told: list[tuple[float, int, int]] = field(default_factory=list)
    """When it was said that the run waits, for which stage, and to which step it would go back."""

    def is_lost(self, stage: int) -> bool:
        return not any(member.version >= 0 for member in self.roster.live(stage))

    def lost(self) -> int | None:
        return next((stage for stage in range(STAGES) if self.is_lost(stage)), None)

    def emit(self, event: events.Event) -> None:
        assert isinstance(event, events.Waiting)
        self.told.append((asyncio.get_running_loop().time(), event.stage, event.step))

    def do(self, what: str, stage: int) -> None:
        if what == "loses":
            for member in self.roster.live(stage):
                member.live = False
        else:
            member = self.come(stage)
            member.loaded = what == "loads"
            if what == "returns":
                member.digests[AT_STEP] = b"digest"
        self.signal.notify()

    def come(self, stage: int) -> Member:
        return self.roster.place(f"peer {len(self.roster.everyone())}", (), stage)


def watched(
    deeds: Sequence[Deed], give_up: float | None = None, started_at: float = 0.0, over_at: float = 2000.0
) -> tuple[float, Exception | None, list[tuple[float, int, int]]]:
    """What comes of it within 1000 s, and when; every stage has one replica at first."""

    async def main() -> tuple[float, Exception | None, list[tuple[float, int, int]]]:
        swarm, loop = Swarm(), asyncio.get_running_loop()
        for stage in range(STAGES):
            swarm.do("returns", stage)
        for at, what, stage in deeds:
            loop.call_later(at, swarm.do, what, stage)
        loop.call_later(started_at, swarm.signal.notify)
        loop.call_later(over_at, swarm.signal.notify)
        try:
            async with asyncio.timeout(1000.0):
                await watch_stages(
                    swarm.roster,
                    swarm.signal,
                    lambda: started_at <= loop.time() < over_at,
                    swarm.emit,
                    give_up,
                    PATIENCE,
                    swarm.lost,
                    swarm.is_lost,
                    lambda: AT_STEP,
                )
        except TimeoutError:
            return loop.time(), None, swarm.told
        except (GoingBackError, StoppedError) as error:
            return loop.time(), error, swarm.told
        raise AssertionError("it has returned")

    return run(main(), limit=2000.0)


def goes_back(deeds: Sequence[Deed], **options: float) -> tuple[float, list[tuple[float, int, int]]]:
    at, error, told = watched(deeds, **options)
    assert isinstance(error, GoingBackError)
    return at, told


def goes_on(deeds: Sequence[Deed], **options: float) -> list[tuple[float, int, int]]:
    _, error, told = watched(deeds, **options)
    assert error is None
    return told


def test_a_run_with_all_stages_is_left_alone() -> None:
    assert goes_on([(5.0, "loads", 1), (6.0, "loses", 2), (6.0, "returns", 2)]) == []


def test_a_replica_that_returns_in_time_goes_on() -> None:
    deeds = [(10.0, "loses", 1), (12.0, "loads", 1), (39.0, "returns", 1)]
    assert goes_on(deeds) == [(10.0, 1, AT_STEP)]


def test_a_run_goes_back_when_patience_is_over_and_a_newcomer_has_loaded_the_stage() -> None:
    assert goes_back([(10.0, "loses", 1), (12.0, "loads", 1)]) == (10.0 + PATIENCE, [(10.0, 1, AT_STEP)])


@pytest.mark.parametrize("over_at", [5.0, 20.0])
def test_a_run_that_is_over_does_not_go_back(over_at: float) -> None:
    """Whoever comes while it is concluded is told so; nobody needs a state for that."""
    told = goes_on([(10.0, "loses", 1), (12.0, "loads", 1)], over_at=over_at)
    assert told == ([] if over_at < 10.0 else [(10.0, 1, AT_STEP)])


def test_after_that_the_first_newcomer_is_enough() -> None:
    assert goes_back([(10.0, "loses", 1), (500.0, "loads", 1)]) == (500.0, [(10.0, 1, AT_STEP)])


def test_newcomers_of_other_stages_are_not() -> None:
    assert goes_on([(10.0, "loses", 1), (12.0, "loads", 0), (13.0, "loads", 2)]) == [(10.0, 1, AT_STEP)]


def test_a_newcomer_that_goes_away_again_is_none_and_the_next_one_waits_no_longer_for_that() -> None:
    away = [(10.0, "loses", 1), (12.0, "loads", 1), (20.0, "loses", 1)]
    assert goes_on(away) == [(10.0, 1, AT_STEP)]
    assert goes_back([*away, (35.0, "loads", 1)])[0] == 10.0 + PATIENCE
    assert goes_back([*away, (60.0, "loads", 1)]) == (60.0, [(10.0, 1, AT_STEP)])


def test_it_is_given_up_when_nobody_has_come() -> None:
    at, error, told = watched([(10.0, "loses", 1), (11.0, "loads", 0)], give_up=60.0)
    assert (at, type(error), told) == (70.0, StoppedError, [(10.0, 1, AT_STEP)])
    assert "stage 1 has had no replica for 60 s" in str(error)


def test_newcomers_that_come_and_go_put_giving_up_off_only_while_they_are_there() -> None:
    deeds = [(10.0, "loses", 1), (12.0, "loads", 1), (30.0, "loses", 1)]
    at, error, _ = watched(deeds, give_up=60.0)
    assert (at, type(error)) == (70.0, StoppedError)


def test_it_is_not_given_up_while_someone_has_it_loaded() -> None:
    assert goes_back([(10.0, "loses", 1), (12.0, "loads", 1)], give_up=15.0)[0] == 10.0 + PATIENCE


def test_a_second_stage_that_is_lost_meanwhile_is_waited_for_as_well() -> None:
    deeds = [(10.0, "loses", 1), (15.0, "loses", 0), (20.0, "returns", 1), (25.0, "loads", 0)]
    assert goes_back(deeds) == (20.0 + PATIENCE, [(10.0, 1, AT_STEP), (20.0, 0, AT_STEP)])
    assert goes_on([*deeds, (49.0, "returns", 0)]) == [(10.0, 1, AT_STEP), (20.0, 0, AT_STEP)]


def test_a_stage_that_is_lost_again_has_all_the_time_again() -> None:
    deeds = [(10.0, "loses", 1), (20.0, "returns", 1), (25.0, "loses", 1), (26.0, "loads", 1)]
    assert goes_back(deeds) == (25.0 + PATIENCE, [(10.0, 1, AT_STEP), (25.0, 1, AT_STEP)])


@pytest.mark.parametrize("started_at", [0.0, 40.0])
def test_before_a_term_has_begun_nobody_is_missed(started_at: float) -> None:
    at, told = goes_back([(10.0, "loses", 1), (12.0, "loads", 1)], started_at=started_at)
    since = max(10.0, started_at)
    assert (at, told) == (since + PATIENCE, [(since, 1, AT_STEP)])
