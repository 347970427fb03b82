"""What the updates of a simulated run do to the loss: their order and age, replayed through real training.

A simulated run counts tensors and computes none. Which version each step's gradients were computed at is what it knows
of them: with that the single-process reference (`peer/reference.py`) trains the same steps on real text.

Errors: those of `Study.run`; `ScenarioError` if it comes to no end, `UsageError` without the texts.
"""

from dataclasses import dataclass

from ..errors import ScenarioError
from ..peer.reference import run_reference
from ..swarm.freezing import prepare
from ..swarm.manifest import parse_settings
from .outcome import Outcome
from .scenario import parse_scenario
from .study import Study

STEPS = 40

RUN = f"""
seed = {{seed}}
[model]
name = "tiny"
[train]
mode = "full"
steps = {STEPS}
batch = 4
[data]
sequence_length = 64
[optimizer]
learning_rate = 1e-3
warmup_steps = 3
[pipeline]
min_replicas = 2
rebalance = 0
patience = 5
"""

CHURN = """
title = "Updates to be replayed"
minutes = 30

[coordinator]
checkpoint_every = 5

[[peers]]
name = "home"
count = 8
forward = 0.5
backward = 1.0
up = 20
down = 100
latency = 30
stays = { mean = 300 }
away = { mean = 10 }

[[events]]
kind = "lose"
at = 90
seconds = 20
stage = 1
"""


@dataclass(frozen=True, slots=True)
class Replayed:
    """Held-out losses (nats a token) after the same steps on the same data: with updates as `simulated`, with `none`
    late, with `all` late. `late`: how many of the simulated ones were; `undone`: steps that it did twice."""

    seed: int
    late: int
    undone: int
    lost: int
    before: float
    simulated: float
    none: float
    all: float


def simulate(seed: int) -> Outcome:
    """A run with machines that come and go and a stage that is lost, back to the last checkpoint."""
    run = "\n".join(f"[run.{line[1:]}" if line.startswith("[") else line for line in RUN.splitlines()[2:])
    return Study(parse_scenario(CHURN + run, "updates to be replayed"), seed).run()


def replay(seed: int) -> Replayed:
    """Trains three times."""
    outcome = simulate(seed)
    if not outcome.finished:
        raise ScenarioError(f"the run whose updates are replayed is not at its end with seed {seed}")
    prepared = prepare(parse_settings(RUN.format(seed=seed)), organizer="0" * 64, nonce="0" * 32)

    def trained(late: list[bool]) -> tuple[float, float]:
        report = run_reference(prepared.manifest, prepared.corpus, prepared.heldout, prepared.folder, late=late)
        return report["heldout"]["before"], report["heldout"]["after"]

    late = [versions > 0 for versions in outcome.stale]
    always = [step > 0 for step in range(STEPS)]
    before, simulated = trained(late)
    none = trained([False] * STEPS)[1]
    every = simulated if late == always else trained(always)[1]
    return Replayed(seed, sum(late), outcome.steps_undone, outcome.lost, before, simulated, none, every)
