"""Hedging: a slow hop is asked of a second replica once, judged by its callee's own phases; the first Done wins."""

from typing import Any

import pytest
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import hedging
from swarm_peer.swarm.hedging import BUDGET, ENOUGH, FACTOR, LEAST_SECONDS, UNMEASURED_SECONDS, Budget, OwnTimes
from swarm_peer.swarm.hedging import PhaseClock as Clock
from swarm_peer.swarm.host import Moment

from tests.chaos.checks import check_promises
from tests.chaos.schedules import Schedule
from tests.exact import exact_manifest, exact_swarm

STEPS, BATCH = 12, 4
PLAIN = Schedule(0, staleness=1, replicas=2, standby=False, faults=(), steps=STEPS, batch=BATCH)
HUNG_STEP = 8
"""By then there are enough calls to judge by."""


# ---- the pure parts


def test_the_clock_runs_in_the_callees_own_phases_only() -> None:
    clock = Clock(0.0)
    assert clock.reaches(3.0) == 3.0
    clock = clock.entered(pb.QUEUED, 1.0).entered(pb.FORWARD, 2.0)
    assert clock.own(2.5) == 2.5
    below = clock.entered(pb.BELOW, 3.0)
    assert below.own(100.0) == 3.0
    assert below.reaches(4.0) is None
    back = below.entered(pb.BACKWARD, 100.0)
    assert back.own(100.5) == 3.5
    assert back.reaches(4.0) == 101.0


def test_a_visit_that_had_been_done_before_says_nothing_of_compute() -> None:
    assert not Clock(0.0).entered(pb.QUEUED, 0.1).entered(pb.HELD, 0.2).computed
    assert Clock(0.0).entered(pb.FORWARD, 0.1).computed


def test_the_limit_follows_the_slowest_of_recent_calls() -> None:
    times = OwnTimes()
    for _ in range(ENOUGH - 1):
        times.add(2.0)
    assert times.limit == UNMEASURED_SECONDS
    times.add(2.0)
    assert times.limit == FACTOR * 2.0
    for _ in range(hedging.WINDOW):
        times.add(1e-3)
    assert times.limit == LEAST_SECONDS


def test_the_budget_allows_a_few_hedges_and_then_one_a_second_or_every_tenth_call() -> None:
    budget, hedges = Budget(), 0
    while (after := budget.spend(0.0, 1.0)) is not None:
        budget, hedges = after, hedges + 1
    assert hedges == BUDGET
    assert budget.spend(0.5, 1.0) is None
    assert budget.spend(1.0, 1.0) is not None
    for _ in range(11):
        budget = budget.after_call()
    assert budget.spend(0.0, 1.0) is not None


def test_where_calls_take_long_hedges_begin_seldom() -> None:
    budget = Budget(left=0.0)
    assert budget.spend(29.0, 60.0) is None
    assert budget.spend(30.0, 60.0) is not None


# ---- whole swarms


def hung_run(stage: int, moment: str, *, replicas: int = 2, **options: Any) -> tuple[dict[str, Any], float, list[str]]:
    """A run in which the device hangs of the first peer that passes `moment` at `stage` in HUNG_STEP, for ever: the
    report, the virtual seconds until that step's last visit was held, and the name of that peer."""
    hung: list[str] = []
    times: dict[str, float] = {}

    def watch(swarm: SimulatedSwarm, peer: str, seen: Moment) -> None:
        if (seen.name, seen.stage, seen.step) == (moment, stage, HUNG_STEP) and not hung:
            hung.append(peer)
            swarm.devices[peer].hang()
            times["hung"] = swarm.now
            if "resume_after" in options:
                swarm.later(options["resume_after"], swarm.devices[peer].resume)
        if (seen.name, seen.stage, seen.step) == ("held", 0, HUNG_STEP) and hung:
            times["held"] = swarm.now

    manifest = exact_manifest(steps=STEPS, batch=BATCH, replicas=replicas)
    report = run(exact_swarm(manifest, watch=watch).run(), limit=120.0)
    return report, times["held"] - times["hung"], hung


@pytest.mark.parametrize("moment", ["forward", "backward"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_visit_that_hangs_is_rescued_by_another_replica(stage: int, moment: str) -> None:
    report, seconds, hung = hung_run(stage, moment)
    check_promises(report, PLAIN)
    assert hung
    assert report["faults"] == []
    assert report["ledger"]["reissued"] > 0
    assert seconds < 2 * FACTOR * LEAST_SECONDS


def test_with_a_single_replica_nothing_is_hedged() -> None:
    report, seconds, _ = hung_run(1, "forward", replicas=1, resume_after=20.0)
    check_promises(report, PLAIN)
    assert seconds > 20.0
    assert report["ledger"]["reissued"] == 0


def test_a_hop_is_not_hedged_while_it_waits_below() -> None:
    """The stage below has one replica, which hangs for a while: the stages above have others, and wait."""

    def watch(swarm: SimulatedSwarm, peer: str, seen: Moment) -> None:
        if (seen.name, seen.stage, seen.step) == ("forward", 2, HUNG_STEP) and not hung:
            hung.append(peer)
            swarm.devices[peer].hang()
            swarm.later(20.0, swarm.devices[peer].resume)

    hung: list[str] = []
    manifest = exact_manifest(steps=STEPS, batch=BATCH, replicas=1)
    report = run(exact_swarm(manifest, watch=watch, wanted=(0, 1, 2, 0, 1)).run(), limit=120.0)
    check_promises(report, PLAIN)
    assert hung
    assert report["ledger"]["reissued"] == 0
