"""What a machine hosts of a run: on which device, how many stages, graphs kept or computed again, how many slots.

As many stages as fit with all slots of the manifest, contiguous (nothing crosses the link inside a span), where the
fewest replicas are. Graphs are kept where they fit, since computing them again costs half as much as it saves; where
not even one stage fits with all slots, fewer slots. What turns out too large after all is stepped down one thing at a
time. Pure: the machine is measured by `peer/probe.py`, the weights are loaded by others.

Errors: `FittingError` with the numbers, `UsageError` for what was asked for and cannot be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import FittingError, UsageError
from .advice import LEAST_SLOTS, organizers_choice, spans_of, too_small
from .budget import Budget, budget, stages_text
from .machine import AS_IT_IS, Device, Machine, Overrides, bytes_text, overridden
from .manifest import Manifest
from .work import Pace, pace, shared_rate


@dataclass(frozen=True, slots=True)
class Choice:
    """What one device hosts."""

    device: Device
    budget: Budget

    @property
    def stages(self) -> range:
        return self.budget.stages

    @property
    def slots(self) -> int:
        return self.budget.slots

    @property
    def recompute(self) -> bool:
        return self.budget.recompute


def choose(
    manifest: Manifest,
    machine: Machine,
    replicas: Sequence[int],
    said: Overrides = AS_IT_IS,
    *,
    may_recompute: bool = True,
) -> Choice:
    """The best for one process, on the fastest device that a stage fits on. `replicas`: live peers by stage.

    Raises `FittingError`, `UsageError`.
    """
    lent = overridden(machine, said)
    if said.stages is not None and not 1 <= said.stages <= manifest.stages:
        raise UsageError(f"--stages is {said.stages}; the run has {manifest.stages}")
    for device in sorted(lent.devices, key=lambda device: -device.flops):
        found = _choose_on(manifest, lent, device, replicas, said.stages, may_recompute)
        if found is not None:
            return found
    raise too_small(manifest, lent, said.stages or 1, may_recompute=may_recompute)


def choose_all(
    manifest: Manifest, machine: Machine, replicas: Sequence[int], said: Overrides = AS_IT_IS
) -> list[Choice]:
    """A process for each device that a stage fits on, the fastest first; each takes its part of the RAM."""
    lent = overridden(machine, said)
    found: list[Choice] = []
    counts = list(replicas)
    for device in sorted(lent.devices, key=lambda device: -device.flops):
        choice = _choose_on(manifest, lent, device, counts, said.stages, True)
        if choice is None:
            continue
        found.append(choice)
        lent = replace(lent, ram=lent.ram - choice.budget.against(lent, device)[-1][1])
        for stage in choice.stages:
            counts[stage] += 1
    if not found:
        raise too_small(manifest, lent, said.stages or 1)
    return found


def stages_that_fit(
    manifest: Manifest, machine: Machine, said: Overrides = AS_IT_IS, *, may_recompute: bool = True
) -> int:
    """How many stages one process could host; 0 if none fits."""
    try:
        nobody = [0] * manifest.stages
        return len(choose(manifest, machine, nobody, replace(said, stages=None), may_recompute=may_recompute).stages)
    except FittingError:
        return 0


def rate(manifest: Manifest, machine: Machine, choices: Sequence[Choice]) -> float:
    """Visits a second of all devices of one machine together; the link is there once."""
    return shared_rate([pace_of(manifest, machine, choice) for choice in choices])


def pace_of(manifest: Manifest, machine: Machine, choice: Choice) -> Pace:
    return pace(manifest, choice.stages, choice.device.flops, machine.link, recompute=choice.recompute)


def step_down(manifest: Manifest, choice: Choice, *, may_recompute: bool = True) -> Choice:
    """The next smaller choice, after memory ran out: graphs computed again, then half of the slots, then a stage less
    (the last of the span). Raises `FittingError` when there is none."""
    stages, slots, recompute = choice.stages, choice.slots, choice.recompute
    if not recompute and may_recompute:
        recompute = True
    elif slots > LEAST_SLOTS:
        slots = max(LEAST_SLOTS, slots // 2)
    elif len(stages) > 1:
        stages = stages[:-1]
    else:
        raise FittingError(
            f"memory ran out on {choice.device.name} with the least that can be hosted: {stages_text(stages)}, "
            f"{slots} slots, {bytes_text(choice.budget.total)}; {organizers_choice(manifest, choice.budget)}"
        )
    return Choice(choice.device, budget(manifest, stages, slots=slots, recompute=recompute))


def _choose_on(
    manifest: Manifest,
    machine: Machine,
    device: Device,
    replicas: Sequence[int],
    exactly: int | None,
    may_recompute: bool,
) -> Choice | None:
    slots = manifest.settings.pipeline.slots

    def fitting(count: int, slots: int) -> list[range]:
        spans = spans_of(manifest, count)
        return [
            span for span in spans if budget(manifest, span, slots=slots, recompute=may_recompute).fits(machine, device)
        ]

    count = exactly
    if count is None:
        # A part of a span needs no more than the whole, so halving finds the longest that fits.
        count, beyond = 0, manifest.stages + 1
        while beyond - count > 1:
            middle = (count + beyond) // 2
            count, beyond = (middle, beyond) if fitting(middle, slots) else (count, middle)
    spans = fitting(count, slots) if count else []
    if not spans:
        slots = min(LEAST_SLOTS, slots)
        spans = fitting(exactly or 1, slots)
    if not spans:
        return None
    span = min(spans, key=lambda span: (sorted(replicas[stage] for stage in span), span.start))
    return Choice(device, _roomiest(manifest, machine, device, span, slots, may_recompute))


def _roomiest(
    manifest: Manifest, machine: Machine, device: Device, span: range, slots: int, may_recompute: bool
) -> Budget:
    """The best way to host a span of which it is known that it fits with so many slots."""
    for more in range(manifest.settings.pipeline.slots, slots, -1):
        found = budget(manifest, span, slots=more, recompute=may_recompute)
        if found.fits(machine, device):
            slots = more
            break
    kept = budget(manifest, span, slots=slots, recompute=False)
    return kept if kept.fits(machine, device) else budget(manifest, span, slots=slots, recompute=True)
