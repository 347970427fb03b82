"""Seeded schedules that mix all faults, on virtual time: bit-equal to the reference, conserved at every event."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from swarm_peer.errors import ConservationError

from tests.chaos.__main__ import problem_of
from tests.chaos.checks import check_promises
from tests.chaos.mutants import MUTANTS
from tests.chaos.on_torch import problem_on_torch
from tests.chaos.schedules import (
    MOMENTS,
    Fault,
    Schedule,
    Trigger,
    draw_elastic,
    draw_schedule,
    draw_wrong_state,
    kill_at,
)
from tests.chaos.shrinking import shrink
from tests.chaos.virtual import Chaos
from tests.chaos.written import LIMIT, WRITTEN, over_while_a_stage_is_away

PLAIN = Schedule(seed=0, staleness=1, replicas=2, standby=False, faults=())


def check_seed(seed: int) -> None:
    schedule = draw_schedule(seed)
    chaos = Chaos(schedule)
    try:
        check_promises(chaos.simulate(), schedule)
    except BaseException as error:
        error.add_note(f"python -m tests.chaos replay {seed}    # carried out: {chaos.done}")
        raise


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_each_kind_of_moment(moment: str, staleness: int) -> None:
    killed = 0
    for stage in range(PLAIN.stages):
        schedule = Schedule(stage, staleness, 2, standby=False, faults=(kill_at(moment, stage, step=1, nth=1),))
        chaos = Chaos(schedule)
        report = chaos.simulate()
        check_promises(report, schedule)
        killed += len(chaos.done)
        assert len(report["faults"]) == len(chaos.done)
    assert killed == (PLAIN.stages - 1 if moment == "below" else PLAIN.stages)


@pytest.mark.parametrize("tens", range(10))
def test_seeded_schedules(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        check_seed(seed)


@pytest.mark.parametrize("seed", [853, 1104, 1309, 1470, 2251, 2622, 2778, 2915, 3069, 5689, 6041, 6168, 7681, 8563])
def test_schedules_that_once_found_a_hole(seed: int) -> None:
    check_seed(seed)


def check_elastic(seed: int) -> Chaos:
    schedule = draw_elastic(seed)
    chaos = Chaos(schedule)
    try:
        check_promises(chaos.simulate(), schedule)
    except BaseException as error:
        error.add_note(f"python -m tests.chaos replay {seed} --elastic    # carried out: {chaos.done}")
        raise
    return chaos


@pytest.mark.parametrize("seed", [734, 932, 1468, 2742, 3001, 3949, 4310, 6135, 6644, 6763, 6815, 7143, 8026, 8284])
def test_elastic_schedules_that_once_found_a_hole(seed: int) -> None:
    check_elastic(seed)


@pytest.mark.parametrize("tens", range(20))
def test_elastic_schedules(tens: int) -> None:
    """Joins, moves, leaves, stages that lose their last replica, runs that go back, trainers that resume."""
    done = [check_elastic(seed) for seed in range(10 * tens, 10 * tens + 10)]
    assert any("went-back" in line for chaos in done for line in chaos.log)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("write", WRITTEN)
def test_schedules_written_by_hand(write: Callable[[int], Schedule], seed: int) -> None:
    problem, chaos = problem_of(write(seed), LIMIT)
    if problem is not None:
        problem.add_note(f"carried out: {chaos.done}")
        raise problem
    assert len(chaos.done) == len(chaos.schedule.faults)


@pytest.mark.slow
@pytest.mark.parametrize("hundreds", range(1, 11))
def test_a_thousand_seeded_schedules(hundreds: int) -> None:
    for seed in range(100 * hundreds, 100 * hundreds + 100):
        check_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("hundreds", range(2, 102))
def test_ten_thousand_elastic_schedules(hundreds: int) -> None:
    for seed in range(100 * hundreds, 100 * hundreds + 100):
        check_elastic(seed)


# ---- the same on torch


@pytest.mark.parametrize("seed", range(20))
def test_seeded_schedules_on_torch(seed: int) -> None:
    problem, chaos = problem_on_torch(draw_schedule(seed))
    if problem is not None:
        problem.add_note(f"carried out: {chaos.done}")
        raise problem


def test_a_gradient_that_is_not_finite_is_computed_again_on_torch() -> None:
    schedule = replace(PLAIN, faults=(Fault("nan", 0.0, 0.0, trigger=Trigger("forward", 0, 1, 1)),))
    problem, chaos = problem_on_torch(schedule)
    assert problem is None
    assert [fault.kind for fault in chaos.done] == ["nan"]


# ---- the product around it


def test_the_same_seed_gives_the_same_log_in_another_process(tmp_path: Path) -> None:
    logs = []
    for hash_seed in ("1", "2"):
        out = tmp_path / hash_seed
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-m", "tests.chaos", "replay", "11", "--log", str(out)]
        root = Path(__file__).parents[2]
        subprocess.run(command, check=True, cwd=root, env=environment, capture_output=True, timeout=120)
        logs.append(out.read_bytes())
    assert logs[0] == logs[1]
    assert logs[0].count(b"\n") > 100


def test_a_failing_schedule_is_shrunk_to_what_it_needs() -> None:
    needed = kill_at("reduce", 1, step=1)
    others = tuple(Fault("slow", at, 2.0, f"peer {number}") for number, at in enumerate((1.0, 2.0, 3.0)))
    schedule = Schedule(0, 1, 3, standby=True, faults=(*others, needed), latency=(0.02, 0.2), directory_delay=0.3)

    def breaks(schedule: Schedule) -> bool:
        with MUTANTS["no-rerun"].broken():
            return isinstance(problem_of(schedule)[0], ConservationError)

    smallest = shrink(schedule, breaks)
    assert [fault.kind for fault in smallest.faults] == ["kill"]
    assert (smallest.replicas, smallest.standby, smallest.latency) == (2, False, PLAIN.latency)
    assert Schedule.from_json(smallest.to_json()) == smallest


@pytest.mark.parametrize("seed", range(10))
def test_a_wrong_state_is_found_and_fetched_anew(seed: int) -> None:
    schedule = draw_wrong_state(seed)
    chaos = Chaos(schedule)
    report = chaos.simulate()
    check_promises(report, schedule)
    found = [fault for fault in report["faults"] if "differs from the other replicas" in fault["why"]]
    assert bool(found) == bool(chaos.done)


@pytest.mark.parametrize("seed", range(4, 7))
def test_a_run_is_over_when_somebody_of_every_stage_is_there(seed: int) -> None:
    """Of seed 5 the report had a newcomer's empty state for a stage."""
    assert problem_of(over_while_a_stage_is_away(seed))[0] is None
