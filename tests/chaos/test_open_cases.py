"""Cases that the review of the protocol left open, each on the exact backend and bit-equal to the reference."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations

import pytest
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.swarm.checkpoint import MemoryCheckpoints
from swarm_peer.swarm.events import Event
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.keys import Identity

from tests.chaos.checks import check_promises
from tests.chaos.schedules import Schedule
from tests.chaos.virtual import STANDBY_IDENTITY, Chaos, delegations_of, manifest_of
from tests.exact import TRAINER, exact_swarm, memory

STAGE, STEP = 1, 2

Watch = Callable[[SimulatedSwarm, str, Moment], None]


def simulate(schedule: Schedule, watch: Watch, seen: Callable[[Event], None] = lambda event: None) -> Chaos:
    """Runs a schedule whose faults are `watch`'s; every promise is checked."""

    def build(schedule: Schedule, chaos: Chaos) -> SimulatedSwarm:
        def watched(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
            chaos.watch(swarm, peer, moment)
            watch(swarm, peer, moment)

        def emit(event: Event) -> None:
            chaos.emit(event)
            seen(event)

        manifest = manifest_of(schedule)
        delegations = delegations_of(schedule, manifest)
        swarm = exact_swarm(manifest, seed=schedule.seed, delegations=delegations, watch=watched, emit=emit)
        swarm.checkpoints = memory(manifest, schedule.checkpoints) if schedule.checkpoints else None
        return swarm

    chaos = Chaos(schedule)
    check_promises(chaos.simulate(build), schedule)
    return chaos


def plain(staleness: int, replicas: int, *, standby: bool = False) -> Schedule:
    return Schedule(seed=1, staleness=staleness, replicas=replicas, standby=standby, faults=())


def count(chaos: Chaos, text: str) -> int:
    return sum(text in line for line in chaos.log)


def cut(swarm: SimulatedSwarm, pairs: Iterable[tuple[str, str]], *, both: bool = True) -> None:
    for one, other in pairs:
        swarm.network.cut(one, other, both=both)


@pytest.mark.parametrize("staleness", [0, 1])
def test_both_holders_of_a_reduction_die_and_the_third_replica_never_got_it(staleness: int) -> None:
    """The third gave its slices, but no answer reached it; the Commit names what only the dead had."""
    parts: dict[str, int] = {}
    third: list[str] = []
    dead: list[str] = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.stage, moment.step) != (STAGE, STEP):
            return
        if moment.name == "part" and not dead:
            third[:] = third or [swarm.live_at(STAGE)[-1]]
            parts[peer] = parts.get(peer, 0) + 1
            if peer != third[0] and parts[peer] == 2:
                cut(swarm, [(peer, third[0])], both=False)
                swarm.later(30.0, lambda: swarm.network.heal(peer, third[0]))
        if moment.name == "commit" and not dead:
            dead.extend(other for other in swarm.live_at(STAGE) if other != third[0])
            for other in dead:
                swarm.kill(other)

    chaos = simulate(plain(staleness, 3), watch)
    assert len(dead) == 2
    reduced = [line for line in chaos.log if f'"reduced", "stage": {STAGE}, "step": {STEP}' in line]
    assert [line for line in reduced if third[0] in line], "the third replica reduced the step anew, alone"


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("both", [True, False], ids=["both ways", "one way"])
def test_two_replicas_of_a_stage_cannot_reach_each_other_any_more(staleness: int, replicas: int, both: bool) -> None:
    """The trainer hears both; no all-reduce of theirs can succeed, so one of them sits out."""
    apart: list[str] = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.name, moment.stage, moment.step) == ("forward", STAGE, 1) and not apart:
            apart.extend(swarm.live_at(STAGE)[:2])
            cut(swarm, [(apart[0], apart[1])], both=both)

    chaos = simulate(plain(staleness, replicas), watch)
    assert count(chaos, "cannot reach each other") >= 1
    assert chaos.finished_at < 200


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_peer_is_cut_off_from_some_peers_of_other_stages_for_good(staleness: int) -> None:
    done: list[bool] = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.name, moment.stage, moment.step) == ("forward", STAGE, 1) and not done:
            done.append(True)
            lonely = swarm.live_at(STAGE)[0]
            cut(swarm, ((lonely, swarm.live_at(stage)[0]) for stage in (0, 2)))

    simulate(plain(staleness, 2), watch)
    assert done


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("healed_after", [8.0, 60.0])
def test_two_trainers_are_alive(staleness: int, healed_after: float) -> None:
    """The trainer and one replica of each stage are cut off from the standby and the others: both sides have a whole
    pipeline, but only one has a majority."""
    done: list[bool] = []
    terms: list[int] = []
    losses: dict[int, set[int]] = {}
    followed: list[tuple[str, int]] = []

    def seen(event: Event) -> None:
        told = event.to_json()
        if event.kind == "leads":
            terms.append(told["term"])
        if event.kind == "follows":
            followed.append((told["trainer"], told["term"]))
        if event.kind == "stepped":
            losses.setdefault(told["step"], set()).add(told["loss"])

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.name, moment.stage, moment.step) == ("forward", STAGE, 1) and not done:
            done.append(True)
            here = [TRAINER.peer_id, *(swarm.live_at(stage)[0] for stage in range(3))]
            there = [name for name in (STANDBY_IDENTITY.peer_id, *swarm.peers) if name not in here]
            pairs = [(one, other) for one in here for other in there]
            cut(swarm, pairs)
            swarm.later(healed_after, lambda: [swarm.network.heal(*pair) for pair in pairs] and None)

    simulate(plain(staleness, 3, standby=True), watch, seen)
    assert max(terms) > 1
    assert [len(told) for told in losses.values()] == [1] * 5, "two trainers say different things of a step"
    assert followed[0] == (TRAINER.peer_id, 1)
    # Healed after a minute, the run is over, and there is nobody to follow.
    assert followed[-1][1] == (max(terms) if healed_after < 60 else 1), "one has given way, and does not say so"
    assert len(set(followed)) == len(followed), "it is said once of each term"


def test_the_trainer_cannot_reach_its_standby_but_everyone_else_can() -> None:
    """The standby wants to lead, and finds nobody who leaves a trainer that is heard."""
    done: list[bool] = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.name, moment.stage, moment.step) == ("forward", STAGE, 1) and not done:
            done.append(True)
            cut(swarm, [(TRAINER.peer_id, STANDBY_IDENTITY.peer_id)])

    chaos = simulate(replace(plain(1, 2, standby=True), steps=20), watch)
    assert count(chaos, '"event": "leads", "term": 2') == 1
    assert count(chaos, '"event": "stepped"') == 20
    assert count(chaos, '"event": "lost"') == 0


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_trainer_is_cut_off_when_the_last_step_is_done(staleness: int) -> None:
    """It has the losses, the peers have the state: it waits until it has that too, and tells nobody to leave before."""
    schedule = replace(plain(staleness, 2), checkpoints=2)
    cut_off: list[float] = []
    seen: list[str] = []
    swarms: list[SimulatedSwarm] = []

    def see(event: Event) -> None:
        told = event.to_json()
        seen.append(event.kind)
        if event.kind == "settled" and told["step"] == schedule.steps - 1:
            swarm = swarms[0]
            pairs = [(TRAINER.peer_id, name) for name in swarm.peers]
            cut(swarm, pairs)
            cut_off.append(swarm.now)
            swarm.later(20.0, lambda: [swarm.network.heal(*pair) for pair in pairs] and None)

    chaos = simulate(schedule, lambda swarm, peer, moment: swarms.append(swarm), see)
    assert len(cut_off) == 1
    assert chaos.finished_at > cut_off[0] + 20.0
    assert seen.index("checkpoint-failed") < seen.index("concluded") - 1
    assert "checkpoint-failed" not in seen[seen.index("concluded") :]
    kept = chaos.swarm.checkpoints
    assert isinstance(kept, MemoryCheckpoints)
    assert [checkpoint.closed for checkpoint in kept.kept] == [2, 4, 5]


def test_every_pair_of_peers_can_be_cut_for_a_while() -> None:
    """One after the other, so that no place in the protocol needs a particular pair."""
    names = [Identity.from_seed(f"peer {number}").peer_id for number in range(6)]
    pairs = list(combinations(names, 2))
    begun: list[bool] = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if not begun:
            begun.append(True)
            for number, (one, other) in enumerate(pairs):
                swarm.later(4.0 * number, lambda one=one, other=other: swarm.network.cut(one, other))  # type: ignore[misc]
                swarm.later(
                    4.0 * number + 3.5,
                    lambda one=one, other=other: swarm.network.heal(one, other),  # type: ignore[misc]
                )

    simulate(plain(1, 2), watch)
