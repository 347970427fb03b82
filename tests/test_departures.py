"""Leaving politely, and what the organizer does to a run: on the exact backend, bit-equal to the reference."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from swarm_peer.errors import UsageError
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import events
from swarm_peer.swarm.events import Event
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.keys import Identity

from tests.chaos.checks import check_promises
from tests.chaos.schedules import Schedule
from tests.chaos.virtual import Chaos, delegations_of, manifest_of
from tests.exact import exact_manifest, exact_swarm

STAGES = 3


class Story:
    """A run whose `watch` is called with (swarm, peer, moment); every promise is checked at its end."""

    def __init__(
        self,
        watch: Callable[[SimulatedSwarm, str, Moment], None],
        *,
        staleness: int = 1,
        replicas: int = 2,
        standby: bool = False,
        steps: int = 5,
        seed: int = 1,
    ) -> None:
        self.events: list[Event] = []
        self.swarm: SimulatedSwarm
        schedule = Schedule(seed=seed, staleness=staleness, replicas=replicas, standby=standby, steps=steps, faults=())

        def build(schedule: Schedule, chaos: Chaos) -> SimulatedSwarm:
            def watched(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
                chaos.watch(swarm, peer, moment)
                watch(swarm, peer, moment)

            def emit(event: Event) -> None:
                chaos.emit(event)
                self.events.append(event)

            manifest = manifest_of(schedule)
            delegations = delegations_of(schedule, manifest)
            self.swarm = exact_swarm(manifest, seed=schedule.seed, delegations=delegations, watch=watched, emit=emit)
            return self.swarm

        self.report = Chaos(schedule).simulate(build)
        check_promises(self.report, schedule)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def once(step: int, name: str, act: Callable[[SimulatedSwarm], None]) -> Callable[[SimulatedSwarm, str, Moment], None]:
    """Acts at the first moment of this name in this step."""
    done: list[bool] = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.step, moment.name) == (step, name) and not done:
            done.append(True)
            act(swarm)

    return watch


def leave(swarm: SimulatedSwarm, stage: int, which: int = 0) -> None:
    swarm.peers[swarm.live_at(stage)[which]].leave("enough for today")


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("stage", range(STAGES))
@pytest.mark.parametrize("moment", ["forward", "backward", "reduce", "applied"])
def test_a_peer_leaves_and_nothing_is_done_again(moment: str, stage: int, staleness: int) -> None:
    story = Story(once(2, moment, lambda swarm: leave(swarm, stage)), staleness=staleness)
    (left,) = story.of(events.Left)
    assert left.stage == stage
    assert left.why == "enough for today"
    assert story.swarm.endings[left.peer] == "left the run: enough for today"
    assert not story.of(events.Lost)
    assert story.report["faults"] == []
    assert story.report["ledger"]["reissued"] == 0


def test_it_takes_no_new_visits_while_it_leaves() -> None:
    begun: list[tuple[str, int]] = []
    leaves = once(2, "forward", lambda swarm: leave(swarm, 1))

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        leaves(swarm, peer, moment)
        if moment.name == "queued" and moment.stage == 1:
            begun.append((peer, moment.step))

    story = Story(watch, steps=9)
    (left,) = story.of(events.Left)
    steps = {step for peer, step in begun if peer == left.peer}
    assert max(steps) <= 3
    assert max(step for _, step in begun) > 4


def test_the_only_replica_stays_until_another_has_come() -> None:
    ready: list[str] = []

    def act(swarm: SimulatedSwarm) -> None:
        first, second = swarm.live_at(1)
        swarm.kill(first)
        swarm.peers[second].leave("enough for today")
        swarm.later(2.0, lambda: (ready.append("restarted"), swarm.restart(first))[0])

    story = Story(once(2, "forward", act), steps=12)
    (left,) = story.of(events.Left)
    kinds = [type(event) for event in story.events]
    back = [index for index, event in enumerate(story.events) if isinstance(event, events.Ready) and event.stage == 1]
    assert ready
    assert kinds.index(events.Left) > back[-1]
    assert kinds.index(events.Draining) < back[-1]
    assert left.stage == 1


def test_both_replicas_want_to_leave_and_one_stays_to_the_end() -> None:
    def act(swarm: SimulatedSwarm) -> None:
        leave(swarm, 1, 0)
        leave(swarm, 1, 1)

    story = Story(once(2, "forward", act))
    assert len(story.of(events.Draining)) == 2
    assert len(story.of(events.Left)) == 1
    assert sum(ending.startswith("left the run") for ending in story.swarm.endings.values()) == 1


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5, 6])
def test_a_peer_that_leaves_goes_on_when_the_other_replica_dies(seed: int) -> None:
    """It has the only state of its stage then; the one that died comes again, and only then it may go. (With seed 3 the
    one that comes again is overtaken by the run while it loads, and comes a third time.)"""

    def act(swarm: SimulatedSwarm) -> None:
        first, second = swarm.live_at(1)
        swarm.peers[first].leave("enough for today")
        swarm.later(0.02, lambda: swarm.kill(second))
        swarm.later(2.0, lambda: swarm.restart(second))

    story = Story(once(2, "forward", act), seed=seed, steps=12)
    lost = [event for event in story.of(events.Lost) if event.stage == 1]
    left = [event for event in story.of(events.Left) if event.stage == 1]
    assert len(lost) == len(left) == 1
    assert lost[0].peer != left[0].peer


def test_peers_leave_a_run_with_a_standby_and_the_rest_can_still_commit() -> None:
    def act(swarm: SimulatedSwarm) -> None:
        for stage in range(STAGES):
            leave(swarm, stage, 0)
            leave(swarm, stage, 1)

    story = Story(once(2, "forward", act), replicas=3, standby=True)
    assert len(story.of(events.Left)) == 6


def test_who_leaves_says_so_to_the_next_trainer() -> None:
    def act(swarm: SimulatedSwarm) -> None:
        leave(swarm, 1)
        swarm.kill(swarm.trainer.transport.peer_id)

    story = Story(once(2, "forward", act), standby=True)
    assert len(story.of(events.Left)) == 1 or any(
        ending.startswith("left the run, with nobody") for ending in story.swarm.endings.values()
    )


def test_of_two_processes_under_one_identity_the_later_one_stays() -> None:
    story = Story(once(2, "forward", lambda swarm: swarm.start_peer(0, 0) and None))
    assert [event.why for event in story.of(events.Lost)] == ["it came again as a new incarnation"]


def test_a_peer_that_has_no_place_yet_leaves_at_once() -> None:
    def act(swarm: SimulatedSwarm) -> None:
        swarm.start_peer(99, 1)
        swarm.peers[Identity.from_seed("peer 99").peer_id].leave("changed my mind")

    story = Story(once(1, "forward", act))
    ending = story.swarm.endings[Identity.from_seed("peer 99").peer_id]
    assert "changed my mind" in ending


def test_a_peer_leaves_while_the_run_waits_for_others() -> None:
    """It is not held until the run begins, and the run does not begin with it."""
    manifest = exact_manifest(steps=3)
    seen: list[Event] = []
    swarm = exact_swarm(manifest, wanted=(0, 0, 1, 1, 2), emit=seen.append)
    names = [Identity.from_seed(f"peer {number}").peer_id for number in range(5)]

    async def main() -> dict[str, Any]:
        running = asyncio.ensure_future(swarm.run())
        await asyncio.sleep(5.0)
        swarm.peers[names[0]].leave("enough for today")
        await asyncio.sleep(5.0)
        assert swarm.endings == {names[0]: "left the run: enough for today"}
        swarm.start_peer(5, 2)
        await asyncio.sleep(5.0)
        assert not [event for event in seen if isinstance(event, events.Stepped)]
        swarm.start_peer(6, 0)
        return await running

    report = run(main(), limit=300.0)
    assert (report["ledger"]["lost"], report["ledger"]["duplicated"], report["ledger"]["reissued"]) == (0, 0, 0)
    assert [event.peer for event in seen if isinstance(event, events.Left)] == [names[0]]


# ---- the organizer


def test_a_paused_run_begins_no_step_and_goes_on_when_told() -> None:
    at: dict[str, float] = {}

    def pause(swarm: SimulatedSwarm) -> None:
        swarm.trainer.steering.pause()
        swarm.trainer.steering.pause()
        at["paused"] = swarm.now
        swarm.later(60.0, resume)

    def resume() -> None:
        story_swarm[0].trainer.steering.resume()
        at["resumed"] = story_swarm[0].now

    story_swarm: list[SimulatedSwarm] = []
    begun: list[tuple[int, float]] = []
    pauses = once(2, "forward", pause)

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if not story_swarm:
            story_swarm.append(swarm)
        pauses(swarm, peer, moment)
        if moment.name == "queued" and moment.stage == 0:
            begun.append((moment.step, swarm.now))

    story = Story(watch)
    assert len(story.of(events.Paused)) == len(story.of(events.Resumed)) == 1
    during = {step for step, now in begun if at["paused"] < now < at["resumed"]}
    after = {step for step, now in begun if now >= at["resumed"]}
    assert max(during, default=2) <= 3
    assert max(after) > max(during, default=2)


def test_the_organizer_has_a_peer_leave() -> None:
    def act(swarm: SimulatedSwarm) -> None:
        peer = swarm.live_at(1)[0]
        swarm.trainer.steering.drain(peer, "its numbers are odd")
        with pytest.raises(UsageError, match="only replica of stage 1"):
            swarm.trainer.steering.drain(swarm.live_at(1)[1])
        with pytest.raises(UsageError, match="not in this run"):
            swarm.trainer.steering.drain("nobody")

    story = Story(once(2, "forward", act))
    (left,) = story.of(events.Left)
    assert left.why == "its numbers are odd"
    assert story.swarm.endings[left.peer] == "left the run: its numbers are odd"


def test_a_banned_peer_is_gone_at_once_and_stays_out() -> None:
    banned: list[str] = []

    def act(swarm: SimulatedSwarm) -> None:
        banned.append(swarm.live_at(1)[0])
        swarm.trainer.steering.ban(banned[0], "it lies")
        swarm.later(1.0, lambda: swarm.start_peer(*swarm.numbers[banned[0]]))

    story = Story(once(2, "forward", act))
    assert [event.peer for event in story.of(events.Banned)] == banned
    assert [event.why for event in story.of(events.Lost)] == ["banned: it lies"]
    assert len([event for event in story.of(events.Joined) if event.peer == banned[0]]) == 1
    assert "UNTRUSTED" in story.swarm.endings[banned[0]]
    assert "it lies" in story.swarm.endings[banned[0]]


def test_who_does_not_lead_steers_nothing() -> None:
    trainers: list[Any] = []
    Story(once(2, "forward", lambda swarm: trainers.append(swarm.trainer)))
    for act in (trainers[0].steering.pause, trainers[0].steering.resume):
        with pytest.raises(UsageError, match="does not lead"):
            act()
