"""What must hold of every run, whatever happened in it: promises P1, P2 and P3 (DESIGN §2)."""

from functools import cache
from typing import Any

from tests.chaos.schedules import CORRUPT, Schedule
from tests.exact_reference import Reference, reference


@cache
def expected_of(stages: int, steps: int, batch: int, staleness: int) -> Reference:
    return reference(stages=stages, steps=steps, batch=batch, staleness=staleness)


def check_promises(report: dict[str, Any], schedule: Schedule) -> None:
    """The report is bit-equal to the reference: losses, norms, held-out loss, states; each microbatch counted once.

    Where a state has gone wrong, what others computed with it stands: then only its last part is promised.
    """
    check_counts(report, schedule)
    if any(fault.kind == CORRUPT for fault in schedule.faults):
        return
    expected = expected_of(schedule.stages, schedule.steps, schedule.batch, schedule.staleness)
    steps = range(schedule.steps)
    assert [step["loss"] for step in report["steps"]] == expected.losses
    assert [step["grad_norm"] for step in report["steps"]] == expected.norms
    assert [step["version"] for step in report["steps"]] == [max(0, step - schedule.staleness) for step in steps]
    assert report["heldout"] == {"before": expected.before, "after": expected.after}
    for replica, digest in zip(report["replicas"], expected.digests, strict=True):
        assert set(replica["digests"].values()) == {digest}


def check_counts(report: dict[str, Any], schedule: Schedule) -> None:
    """Nothing is lost or counted twice, and the replicas of a stage end with one state."""
    assert (report["ledger"]["lost"], report["ledger"]["duplicated"]) == (0, 0)
    assert report["ledger"]["microbatches"] == schedule.steps * schedule.batch
    assert len(report["replicas"]) == schedule.stages
    for replica in report["replicas"]:
        assert replica["version"] == schedule.steps
        assert len(set(replica["digests"].values())) == 1
