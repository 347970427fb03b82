"""The one-step-delayed update: what a step costs while the step before it is being reduced and applied."""

from typing import Any

import pytest
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.compute import BACKGROUND, BACKWARD, FORWARD
from swarm_peer.swarm.host import Moment

from tests.exact import exact_manifest, exact_swarm

LONG_REDUCE = {FORWARD: 0.05, BACKWARD: 0.1, BACKGROUND: 2.0}


def moments_of(staleness: int) -> tuple[dict[str, Any], list[tuple[float, Moment]]]:
    seen: list[tuple[float, Moment]] = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        seen.append((swarm.now, moment))

    manifest = exact_manifest(steps=4, batch=4, staleness=staleness)
    swarm = exact_swarm(manifest, watch=watch, durations=LONG_REDUCE)
    return run(swarm.run(), limit=500.0), seen


def first(seen: list[tuple[float, Moment]], name: str, step: int) -> float:
    return min(at for at, moment in seen if (moment.name, moment.step) == (name, step))


def last(seen: list[tuple[float, Moment]], name: str, step: int) -> float:
    return max(at for at, moment in seen if (moment.name, moment.step) == (name, step))


def test_with_staleness_1_the_next_step_computes_while_this_one_is_reduced() -> None:
    _, seen = moments_of(1)
    for step in range(3):
        assert last(seen, "held", step + 1) < first(seen, "applied", step)


def test_with_staleness_0_the_next_step_waits_for_the_update() -> None:
    _, seen = moments_of(0)
    for step in range(3):
        assert first(seen, "forward", step + 1) > first(seen, "applied", step)


def test_a_long_reduce_is_hidden_only_by_the_delay() -> None:
    def end(seen: list[tuple[float, Moment]]) -> float:
        return max(at for at, _ in seen)

    assert end(moments_of(1)[1]) < end(moments_of(0)[1])


@pytest.mark.parametrize("staleness", [0, 1])
def test_no_microbatch_mixes_versions(staleness: int) -> None:
    report, _ = moments_of(staleness)
    assert [step["version"] for step in report["steps"]] == [max(0, step - staleness) for step in range(4)]
