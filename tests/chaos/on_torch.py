"""Fault schedules on the tiny torch model, judged by the single-process reference."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from swarm_peer.peer.reference import run_reference
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.swarm.arithmetic import RealArithmetic
from swarm_peer.swarm.backend import ForwardResult, StageInput
from swarm_peer.swarm.manifest import Manifest
from swarm_peer.swarm.model.weights import stage_base
from swarm_peer.swarm.optimizer import StageState
from swarm_peer.swarm.peer import Parts
from swarm_peer.swarm.torch_backend import TorchBackend

from tests.chaos.schedules import Schedule
from tests.chaos.virtual import Chaos, delegations_of
from tests.test_agreement import assert_agree, assert_clean
from tests.tiny import corpora, tiny_manifest, tiny_swarm

TOLERANCE = 1e-4
"""Of losses and norms: sums of floats in another order."""


class FaultyTorchBackend(TorchBackend):
    """Makes one gradient of NaN when told to."""

    wrong_next = False

    def forward(self, state: StageState, visit: StageInput, *, train: bool) -> ForwardResult:
        result = super().forward(state, visit, train=train)
        if not train or not self.wrong_next:
            return result
        self.wrong_next = False
        context = replace(result.context, root=result.context.root * torch.nan)
        return ForwardResult(result.output, result.loss, context)


@cache
def tiny_reference(manifest: Manifest) -> dict[str, Any]:
    return run_reference(manifest, *corpora(), None)


def problem_on_torch(schedule: Schedule) -> tuple[Exception | None, Chaos]:
    """What a schedule breaks on the tiny model, if anything, and the run. Odd seeds train LoRA, even ones all of it."""
    manifest = tiny_manifest(
        mode="lora" if schedule.seed % 2 else "full",
        staleness=schedule.staleness,
        replicas=schedule.replicas,
        steps=schedule.steps,
        batch=schedule.batch,
    )
    pipeline = manifest.settings.pipeline.model_copy(update={"standby": schedule.standby})
    manifest = manifest.model_copy(update={"settings": manifest.settings.model_copy(update={"pipeline": pipeline})})

    def build(schedule: Schedule, chaos: Chaos) -> SimulatedSwarm:
        return tiny_swarm(
            manifest,
            seed=schedule.seed,
            latency=schedule.latency,
            delegations=delegations_of(schedule, manifest),
            watch=chaos.watch,
            emit=chaos.emit,
            parts=Parts(
                backend=lambda manifest, stage: FaultyTorchBackend(manifest, stage, stage_base(manifest, stage, None)),
                arithmetic=RealArithmetic,
            ),
        )

    chaos = Chaos(schedule)
    try:
        report = chaos.simulate(build)
        assert_agree(report, tiny_reference(manifest), TOLERANCE)
        assert_clean(report, schedule.steps)
    except Exception as error:
        return error, chaos
    return None, chaos
