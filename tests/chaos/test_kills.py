"""Kills of any process but the trainer, at every kind of moment, on the exact backend: bit-equal to the reference."""

import random
from typing import Any

import pytest
from swarm_peer.simulations.virtual_time import run

from tests.chaos.schedules import MOMENTS, Kill, Schedule, kill_schedule
from tests.exact import exact_manifest, exact_swarm
from tests.exact_reference import reference

STAGES, STEPS, BATCH = 3, 4, 4
VIRTUAL_SECONDS = 200.0


def check(report: dict[str, Any], staleness: int, stages: int = STAGES, steps: int = STEPS, batch: int = BATCH) -> None:
    """P1, P2 and P3 of one run."""
    expected = reference(stages=stages, steps=steps, batch=batch, staleness=staleness)
    assert [step["loss"] for step in report["steps"]] == expected.losses
    assert [step["grad_norm"] for step in report["steps"]] == expected.norms
    assert [step["version"] for step in report["steps"]] == [max(0, step - staleness) for step in range(steps)]
    assert report["heldout"] == {"before": expected.before, "after": expected.after}
    assert (report["ledger"]["lost"], report["ledger"]["duplicated"]) == (0, 0)
    assert report["ledger"]["microbatches"] == steps * batch
    for replica, digest in zip(report["replicas"], expected.digests, strict=True):
        assert replica["version"] == steps
        assert set(replica["digests"].values()) == {digest}


def simulate(schedule: Schedule, staleness: int, seed: int, replicas: int = 2) -> dict[str, Any]:
    manifest = exact_manifest(stages=STAGES, steps=STEPS, batch=BATCH, staleness=staleness, replicas=replicas)
    swarm = exact_swarm(manifest, seed=seed, watch=schedule.watch)
    return run(swarm.run(), limit=VIRTUAL_SECONDS)


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_each_kind_of_moment(moment: str, staleness: int) -> None:
    killed = 0
    for stage in range(STAGES):
        schedule = Schedule([Kill(moment, stage, step=1, nth=1, delay=0.0)])
        report = simulate(schedule, staleness, seed=stage)
        check(report, staleness)
        killed += len(schedule.done)
        assert len(report["faults"]) == len(schedule.done)
    assert killed == (STAGES - 1 if moment == "below" else STAGES)


@pytest.mark.parametrize("tens", range(30))
def test_seeded_schedules(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        draw = random.Random(f"swarm {seed}")
        staleness, replicas = draw.randrange(2), draw.choice((2, 3))
        schedule = kill_schedule(seed, stages=STAGES, steps=STEPS, batch=BATCH)
        try:
            check(simulate(schedule, staleness, seed, replicas), staleness)
        except BaseException as error:
            error.add_note(f"seed {seed}, staleness {staleness}, {replicas} replicas, carried out: {schedule.done}")
            raise
