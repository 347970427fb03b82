"""Checkpoints and epochs on virtual time: a run that is resumed, or goes back, draws the curve of one that never
stopped."""

from typing import Any

import pytest
from swarm_peer.simulations.devices import DURATIONS
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import events
from swarm_peer.swarm.checkpoint import Checkpoint
from swarm_peer.swarm.compute import BACKWARD, FORWARD
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.manifest import Manifest

from tests.exact import exact_manifest, exact_swarm, memory
from tests.exact_reference import reference

STEPS = 5
SLOW = {**DURATIONS, FORWARD: 0.5, BACKWARD: 1.0}
"""A step takes longer than a donor is busy with the checkpoint of the step before."""


def check(report: dict[str, Any], staleness: int) -> None:
    expected = reference(stages=3, steps=STEPS, batch=4, staleness=staleness)
    assert [step["step"] for step in report["steps"]] == list(range(STEPS))
    assert [step["loss"] for step in report["steps"]] == expected.losses
    assert [step["grad_norm"] for step in report["steps"]] == expected.norms
    assert report["heldout"] == {"before": expected.before, "after": expected.after}
    assert (report["ledger"]["lost"], report["ledger"]["duplicated"]) == (0, 0)
    assert report["ledger"]["microbatches"] == STEPS * 4
    for replica, digest in zip(report["replicas"], expected.digests, strict=True):
        assert set(replica["digests"].values()) == {digest}


def trained(manifest: Manifest, **options: Any) -> tuple[dict[str, Any], list[events.Event]]:
    told: list[events.Event] = []

    async def main() -> dict[str, Any]:
        options.setdefault("durations", SLOW)
        swarm = exact_swarm(manifest, emit=told.append, **options)
        report: dict[str, Any] = await swarm.run()
        assert swarm.trainer.beginning.origin is None, "a checkpoint takes memory as long as somebody holds it"
        return report

    return run(main(), limit=400.0), told


def all_checkpoints(staleness: int) -> tuple[Manifest, list[Checkpoint]]:
    manifest = exact_manifest(steps=STEPS, staleness=staleness)
    kept = memory(manifest)
    report, told = trained(manifest, checkpoints=kept)
    check(report, staleness)
    assert [event.step for event in told if isinstance(event, events.Checkpointed)] == [
        checkpoint.closed for checkpoint in kept.kept
    ]
    return manifest, kept.kept


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_that_is_resumed_at_any_step_draws_the_same_curve(staleness: int) -> None:
    manifest, kept = all_checkpoints(staleness)
    assert [checkpoint.closed for checkpoint in kept] == list(range(1, STEPS + 1))
    for checkpoint in kept:
        report, told = trained(manifest, origin=checkpoint)
        check(report, staleness)
        stepped = [event.step for event in told if isinstance(event, events.Stepped)]
        assert stepped == list(range(checkpoint.closed, STEPS))
        assert events.WentBack(checkpoint.closed, 0, 2) in told


def test_a_resumed_run_can_be_resumed_again() -> None:
    manifest, kept = all_checkpoints(1)
    again = memory(manifest)
    trained(manifest, origin=kept[1], checkpoints=again)
    assert [checkpoint.lineage.number for checkpoint in again.kept] == [2, 2, 2]
    report, told = trained(manifest, origin=again.kept[0])
    check(report, 1)
    assert events.WentBack(3, 0, 3) in told


def stage_lost_at(step: int, *, newcomer_after: float) -> Any:
    """Kills every replica of stage 1 when one of them computes in `step`; a stranger comes later."""
    killed: list[str] = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.name, moment.stage, moment.step) == ("forward", 1, step) and not killed:
            for name in swarm.live_at(1):
                killed.append(name)
                swarm.kill(name)
            swarm.later(newcomer_after, lambda: swarm.start_peer(100, None))

    return watch


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("step", range(2, STEPS))
def test_a_stage_that_has_lost_its_state_goes_back_to_the_last_checkpoint(staleness: int, step: int) -> None:
    manifest = exact_manifest(steps=STEPS, staleness=staleness)
    report, told = trained(
        manifest, checkpoints=memory(manifest, every=2), watch=stage_lost_at(step, newcomer_after=1.0)
    )
    check(report, staleness)
    back = [event for event in told if isinstance(event, events.WentBack)]
    waiting = [event for event in told if isinstance(event, events.Waiting)]
    assert len(back) == 1
    assert [event.stage for event in waiting] == [1]
    assert back[0].step == waiting[0].step <= step
    committed = [event.step for event in told if isinstance(event, events.Stepped)]
    assert len(committed) == STEPS + back[0].lost


def test_without_a_checkpoint_it_goes_back_to_the_beginning() -> None:
    manifest = exact_manifest(steps=STEPS)
    report, told = trained(manifest, watch=stage_lost_at(3, newcomer_after=1.0))
    check(report, 1)
    assert [(event.step, event.lost) for event in told if isinstance(event, events.WentBack)] == [(0, 2)]


def test_a_replica_that_returns_in_time_keeps_the_run_where_it_is() -> None:
    """Both replicas of a stage are cut off; a newcomer has the stage loaded; then one comes back with the state."""
    cut: list[str] = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.name, moment.stage, moment.step) == ("forward", 1, 2) and not cut:
            cut.extend(swarm.live_at(1))
            for name in cut:
                swarm.freeze(name)
                swarm.later(20.0, lambda name=name: swarm.thaw(name))
            swarm.later(5.0, lambda: swarm.start_peer(100, None))

    manifest = exact_manifest(steps=STEPS)
    report, told = trained(manifest, checkpoints=memory(manifest), watch=watch)
    check(report, 1)
    assert any(isinstance(event, events.Waiting) for event in told)
    assert not any(isinstance(event, events.WentBack) for event in told)
    newcomer = [event.member for event in told if isinstance(event, events.Joined)][6:]
    assert any(isinstance(event, events.Ready) and event.member in newcomer for event in told)
