"""What a trainer knows of its members."""

import asyncio

import pytest
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.conditions import Signal
from swarm_peer.swarm.roster import Member, Roster
from swarm_peer.swarm.window import MOST_SECONDS, Window

STAGE = 1


def member(roster: Roster, *, version: int, ready: bool, stage: int = STAGE) -> Member:
    placed = roster.place(f"peer {version} at {stage}", (), stage)
    placed.digests = {version: b"digest"} if version >= 0 else {}
    placed.ready = ready
    return placed


def test_a_replica_is_overtaken_also_by_one_that_catches_up() -> None:
    """Each of the two may lack what the other alone holds: one of them must go for the other to go on."""
    roster = Roster("run", stages=3)
    behind, ahead = member(roster, version=1, ready=True), member(roster, version=2, ready=False)
    assert roster.is_overtaken(behind)
    assert not roster.is_overtaken(ahead)


def test_nobody_is_overtaken_by_other_stages_the_lost_or_those_who_load() -> None:
    roster = Roster("run", stages=3)
    alone = member(roster, version=1, ready=True)
    member(roster, version=9, ready=True, stage=STAGE + 1)
    member(roster, version=9, ready=True).live = False
    member(roster, version=-1, ready=False)
    assert not roster.is_overtaken(alone)


def test_the_narrowest_stage_is_the_one_with_the_fewest_slots() -> None:
    """Who has not said how many it has is taken to have all; nobody has more than the run wants."""
    roster = Roster("run", stages=2)
    assert roster.narrowest(8) == 0
    for version in range(2):
        member(roster, version=version, ready=True, stage=0)
    three = [member(roster, version=version, ready=True, stage=1) for version in range(3)]
    assert roster.narrowest(8) == 16
    for replica, slots in zip(three, (2, 3, 100), strict=True):
        replica.slots = slots
    assert roster.narrowest(8) == 13
    three[2].live = False
    assert roster.narrowest(8) == 5


def test_what_may_be_in_flight_is_found_anew_each_time_where_few_take_part() -> None:
    async def main(members: int) -> tuple[list[int], int]:
        roster = Roster("run", stages=1)
        for _ in range(members):
            member(roster, version=0, ready=True, stage=0)
        window = Window(roster, slots=10, ask_again=lambda: None)
        before = window.size()
        roster.live(0)[0].slots = 5
        sizes = [window.size()]
        await asyncio.sleep(MOST_SECONDS)
        return [*sizes, window.size()], before

    assert run(main(50)) == ([int(0.8 * 495)] * 2, int(0.8 * 500))
    assert run(main(300)) == ([int(0.8 * 3000), int(0.8 * 2995)], int(0.8 * 3000)), "of many it holds for a while"


def test_who_asks_for_the_window_of_many_is_woken_when_it_may_have_grown() -> None:
    async def main() -> list[float]:
        loop, signal, roster = asyncio.get_running_loop(), Signal(), Roster("run", stages=1)
        for _ in range(300):
            member(roster, version=0, ready=False, stage=0)
        window = Window(roster, slots=10, ask_again=signal.notify)
        assert window.size() == 8, "nobody is ready: as if there were one"
        for one in roster.live(0):
            one.ready = True
        signal.notify()
        await signal.wait_for(lambda: window.size() > 8)
        asked = window.size()
        await asyncio.sleep(10)
        return [loop.time(), asked]

    assert run(main()) == [pytest.approx(10.3), 2400]
