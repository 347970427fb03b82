"""What a machine hosts of a run: on which device, how many stages, graphs kept or computed again, how many slots.

As many stages as fit with all slots of the manifest, contiguous (nothing crosses the link inside a span), where the
fewest replicas are. Graphs are kept where they fit, since computing them again costs half as much as it saves; where
not even one stage fits with all slots, fewer slots. Pure: the machine is measured by `peer/probe.py`, the weights are
loaded by others.

Errors: `FittingError` with the numbers, `UsageError` for what was asked for and cannot be.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import FittingError, UsageError
from .advice import LEAST_SLOTS, spans_of, too_small
from .budget import PROCESS_BYTES, Budget, budget
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
    besides: Collection[int] = (),
) -> Choice:
    """The best for one device, the fastest that a stage fits on. `replicas`: live peers by stage; `besides`: the stages
    that the machine has already.

    Raises `FittingError`, `UsageError`.
    """
    lent = overridden(machine, said)
    if said.stages is not None and not 1 <= said.stages <= manifest.stages:
        raise UsageError(f"--stages is {said.stages}; the run has {manifest.stages}")
    for device in sorted(lent.devices, key=lambda device: -device.flops):
        found = _choose_on(manifest, lent, device, replicas, said.stages, besides)
        if found is not None:
            return found
    raise too_small(manifest, lent, said.stages or 1)


def choose_each(
    manifest: Manifest, machine: Machine, replicas: Sequence[int], said: Overrides = AS_IT_IS
) -> list[Choice]:
    """What each device of one process hosts, those left out that have no room: stages are dealt to all alike, as
    `peer/span.py` does, none twice; RAM is counted once. Raises what `choose` raises."""
    lent = overridden(machine, said)
    counts = dict.fromkeys(lent.devices, 0)
    room = list(lent.devices)
    while room and sum(counts.values()) < (said.stages or manifest.stages):
        device = min(room, key=lambda device: counts[device])
        more = {**counts, device: counts[device] + 1}
        if _is_room(manifest, lent, replicas, more, device):
            counts = more
        else:
            room.remove(device)
    if sum(counts.values()) < (said.stages or 1):
        raise too_small(manifest, lent, said.stages or 1)
    return _dealt(manifest, lent, replicas, counts)


def _is_room(
    manifest: Manifest, lent: Machine, replicas: Sequence[int], counts: Mapping[Device, int], device: Device
) -> bool:
    """Whether a device has room for what it is dealt last; only a first stage may do with fewer slots."""
    try:
        dealt = next(choice for choice in _dealt(manifest, lent, replicas, counts) if choice.device == device)
    except FittingError:
        return False
    return counts[device] == 1 or dealt.slots == manifest.settings.pipeline.slots


def _dealt(manifest: Manifest, lent: Machine, replicas: Sequence[int], counts: Mapping[Device, int]) -> list[Choice]:
    """So many stages on each device. Raises `FittingError`."""
    choices: list[Choice] = []
    for device, count in counts.items():
        if count:
            alone = replace(lent, devices=(device,), ram=lent.ram - sum(_taken(choice) for choice in choices))
            besides = {stage for choice in choices for stage in choice.stages}
            choices.append(choose(manifest, alone, replicas, Overrides(stages=count), besides))
    return choices


def _taken(choice: Choice) -> int:
    """Bytes of RAM that one device's stages take beside the process itself."""
    return choice.budget.ram(choice.device) - PROCESS_BYTES


def pace_of(manifest: Manifest, machine: Machine, choices: Sequence[Choice]) -> Pace:
    """Of a machine whose devices compute side by side and share the link: nothing crosses it between their stages."""
    each = [
        pace(manifest, choice.stages, choice.device.flops, machine.link, recompute=choice.recompute)
        for choice in choices
    ]
    stages = sorted(stage for choice in choices for stage in choice.stages)
    moved = each
    if stages == list(range(stages[0], stages[-1] + 1)):
        moved = [pace(manifest, range(stages[0], stages[-1] + 1), 1.0, machine.link, recompute=False)]
    return Pace(max(one.compute for one in each), sum(one.up for one in moved), sum(one.down for one in moved))


def _choose_on(
    manifest: Manifest,
    machine: Machine,
    device: Device,
    replicas: Sequence[int],
    exactly: int | None,
    besides: Collection[int],
) -> Choice | None:
    slots = manifest.settings.pipeline.slots

    def fitting(count: int, slots: int) -> list[range]:
        spans = [span for span in spans_of(manifest, count) if not set(span) & set(besides)]
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
