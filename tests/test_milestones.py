"""What a newcomer comes past on its way to its first credited microbatch: the record, and a peer that keeps it."""

import asyncio

import pytest
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.milestones import PHASES, Milestones, in_words

from tests.exact import exact_manifest, exact_swarm

JOINS_AT = 3.0
NEWCOMER = 99


def reached(*phases: str, began: float | None = None) -> Milestones:
    """Each phase takes a second, from 11 on."""
    milestones = Milestones(began)
    for second, phase in enumerate(phases, 11):
        assert milestones.reach(phase, float(second))
    return milestones


def test_each_phase_is_from_the_end_of_the_one_before() -> None:
    milestones = reached(*PHASES, began=8.5)
    assert milestones.took == {phase: 2.5 if phase == "start" else 1.0 for phase in PHASES}
    assert list(milestones.took) == list(PHASES)
    assert in_words(milestones.took) == (
        "counted after 10.5 s: start 2.5, directory 1.0, place 1.0, weights 1.0, state 1.0, replay 1.0, call 1.0, "
        "visit 1.0, credit 1.0"
    )


def test_without_a_command_it_begins_with_the_first_milestone() -> None:
    assert reached(*PHASES).took["start"] == 0.0


def test_nothing_is_told_before_the_first_credit() -> None:
    assert reached(*PHASES[:-1], began=8.5).took == {}


def test_the_first_time_counts() -> None:
    milestones = reached("start", "directory")
    assert not milestones.reach("directory", 99.0)
    for moment, now in (("queued", 13.0), ("held", 14.0), ("held", 15.0)):
        assert not milestones.see(moment, now)
    assert milestones.see("credited", 16.0)
    assert not milestones.see("credited", 17.0)
    assert milestones.took["directory"] == 1.0
    assert milestones.took["visit"] == 1.0
    assert milestones.took["credit"] == 2.0


def test_replayed_is_what_is_applied_before_the_first_visit() -> None:
    milestones = reached("start", "directory", "place", "weights", "state")
    for moment, now in (("applied", 16.0), ("applied", 17.5), ("queued", 18.0), ("applied", 19.0), ("held", 20.0)):
        assert not milestones.see(moment, now)
    assert milestones.see("credited", 21.0)
    found = milestones.took
    assert (found["replay"], found["call"], found["visit"], found["credit"]) == (2.5, 0.5, 2.0, 1.0)


def test_without_a_replay_it_takes_nothing() -> None:
    milestones = reached("start", "state")
    for moment, now in (("queued", 14.0), ("held", 15.0), ("credited", 16.0)):
        milestones.see(moment, now)
    assert (milestones.took["replay"], milestones.took["call"]) == (0.0, 2.0)


def test_a_phase_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'lunch' is none of start"):
        Milestones().reach("lunch", 1.0)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_late_joiner_comes_past_all_of_them_in_order(stage: int) -> None:
    """Its own record says what its device did and its trainer's Reduces named, to the tick, and one line tells it."""
    seen: dict[str, list[float]] = {}
    lines: list[str] = []
    counted: list[int] = []

    def watch(swarm: SimulatedSwarm, name: str, moment: Moment) -> None:
        peer = swarm.peers[name]
        if swarm.numbers[name][0] == NEWCOMER:
            seen.setdefault(moment.name, []).append(swarm.now)
            if moment.name == "applied" and peer.host is not None:
                counted.append(peer.host.counted)

    swarm = exact_swarm(exact_manifest(steps=40, batch=8), watch=watch)

    async def main() -> None:
        def join() -> None:
            peer = swarm.start_peer(NEWCOMER, stage)
            peer.tell = lines.append
            joined.append(peer)

        joined = []
        swarm.later(JOINS_AT, join)
        await swarm.run()
        took = joined[0].milestones.took
        assert list(took) == list(PHASES)
        assert all(took[phase] > 0.0 for phase in ("place", "state", "call", "visit", "credit"))
        ends = dict(zip(PHASES, accumulated(list(took.values()), JOINS_AT), strict=True))
        assert ends["call"] == pytest.approx(seen["queued"][0])
        assert ends["visit"] == pytest.approx(seen["held"][0])
        assert ends["credit"] == pytest.approx(seen["credited"][0])
        before = [at for at in seen["applied"] if at < seen["queued"][0]]
        assert ends["replay"] == pytest.approx(before[-1] if before else ends["state"])
        assert [line for line in lines if line.startswith("counted")] == [in_words(took)]

    run(main(), limit=300.0)
    assert counted[-1] > 0


def test_a_newcomer_is_in_the_directory_as_soon_as_it_has_a_state() -> None:
    """It waits for no round of announcements: until others find it, it can do nothing."""
    swarm = exact_swarm(exact_manifest(steps=40, batch=8))

    async def main() -> None:
        running = asyncio.ensure_future(swarm.run())
        await asyncio.sleep(JOINS_AT)
        peer = swarm.start_peer(NEWCOMER, 1)
        while peer.host is None or peer.host.versions.latest < 0:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        records = await swarm.directory.read(swarm.manifest.run_id, 1)
        assert peer.transport.peer_id in [record.peer for record in records]
        await running

    run(main(), limit=300.0)


def accumulated(values: list[float], start: float) -> list[float]:
    return [start + sum(values[: number + 1]) for number in range(len(values))]
