"""What a machine hosts of a run: on which device, how many stages, graphs kept or computed again, how many slots.

As many stages as fit with all slots of the manifest, contiguous (nothing crosses the link inside a span), where the
fewest replicas are. Graphs are kept where they fit, since computing them again costs half as much as it saves; where
not even one stage fits with all slots, fewer slots. Pure: the machine is measured by `peer/probe.py`, the weights are
loaded by others.

Errors: `FittingError` with the numbers, `UsageError` for what was asked for and cannot be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from .advice import LEAST_SLOTS, spans_of, too_small
from .budget import Budget, budget
from .machine import AS_IT_IS, Device, Machine, Overrides, overridden
from .manifest import Manifest
from .work import Pace, pace


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
) -> Choice:
    """The best for one process, on the fastest device that a stage fits on. `replicas`: live peers by stage.

    Raises `FittingError`, `UsageError`.
    """
    lent = overridden(machine, said)
    if said.stages is not None and not 1 <= said.stages <= manifest.stages:
        raise UsageError(f"--stages is {said.stages}; the run has {manifest.stages}")
    for device in sorted(lent.devices, key=lambda device: -device.flops):
        found = _choose_on(manifest, lent, device, replicas, said.stages)
        if found is not None:
            return found
    raise too_small(manifest, lent, said.stages or 1)


def pace_of(manifest: Manifest, machine: Machine, choice: Choice) -> Pace:
    return pace(manifest, choice.stages, choice.device.flops, machine.link, recompute=choice.recompute)


def _choose_on(
    manifest: Manifest,
    machine: Machine,
    device: Device,
    replicas: Sequence[int],
    exactly: int | None,
) -> Choice | None:
    slots = manifest.settings.pipeline.slots

    def fitting(count: int, slots: int) -> list[range]:
        spans = spans_of(manifest, count)
        return [span for span in spans if budget(manifest, span, slots=slots, recompute=True).fits(machine, device)]

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
    return Choice(device, _roomiest(manifest, machine, device, span, slots))


def _roomiest(manifest: Manifest, machine: Machine, device: Device, span: range, slots: int) -> Budget:
    """The best way to host a span of which it is known that it fits with so many slots."""
    for more in range(manifest.settings.pipeline.slots, slots, -1):
        found = budget(manifest, span, slots=more, recompute=True)
        if found.fits(machine, device):
            slots = more
            break
    kept = budget(manifest, span, slots=slots, recompute=False)
    return kept if kept.fits(machine, device) else budget(manifest, span, slots=slots, recompute=True)
