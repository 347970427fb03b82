"""What to say to a machine that is too small for what it is to host, and the check that says it. Pure.

Errors: `FittingError` with what is needed, what there is and what would fit. A volunteer can lend more memory or host
less; the base format and the number of stages are the organizer's to choose.
"""

from ..errors import FittingError
from .budget import Budget, budget, budget_lines, stages_text
from .machine import Device, Machine, bytes_text
from .manifest import Manifest

LEAST_SLOTS = 2
"""One visit that computes and one that waits below: with fewer, a peer idles whenever it waits."""


def checked(
    manifest: Manifest, span: range, machine: Machine, device: Device, slots: range | None = None
) -> tuple[Budget, list[str]]:
    """The budget of stages that this machine is to host, and its lines for people: graphs are kept if they fit, else
    computed again, with as many of `slots` as fit (by default, from `LEAST_SLOTS` to all of the run). Raises
    `FittingError` if the fewest do not fit either."""
    wanted = manifest.settings.pipeline.slots
    slots = slots or range(min(LEAST_SLOTS, wanted), wanted + 1)
    ways = [(slots[-1], False), *((count, True) for count in reversed(slots))]
    for count, recompute in ways:
        found = budget(manifest, span, slots=count, recompute=recompute)
        if found.fits(machine, device):
            fewer = [f"there is no memory for the {wanted} slots of the run"] if count < wanted else []
            return found, budget_lines(found, machine, device, fewer)
    found = budget(manifest, span, slots=slots[-1], recompute=True)
    table = "\n".join(budget_lines(found, machine, device, advice(manifest, found, machine, device)))
    what = stages_text(span)
    raise FittingError(f"{what} {'does' if len(span) == 1 else 'do'} not fit this machine.\n{table}")


def advice(manifest: Manifest, found: Budget, machine: Machine, device: Device) -> list[str]:
    """What would fit in place of a budget that does not, or how much less it would be."""
    lines: list[str] = []

    def consider(what: str, other: Budget) -> None:
        name, needed, there = max(other.against(machine, device), key=lambda entry: entry[1] - entry[2])
        verdict = "fits" if needed <= there else f"still too much by {bytes_text(needed - there)}"
        lines.append(f"{what}: {bytes_text(needed)} of {name}, {verdict}")

    span, slots = found.stages, found.slots
    if len(span) > 1:
        consider("one stage", budget(manifest, span[:1], slots=slots, recompute=found.recompute))
    if not found.recompute:
        consider("graphs computed again", budget(manifest, span, slots=slots, recompute=True))
    if slots > LEAST_SLOTS:
        least = budget(manifest, span, slots=LEAST_SLOTS, recompute=found.recompute)
        consider(f"with {LEAST_SLOTS} slots", least)
    for what, other in _smaller(manifest):
        stage = min(span.start, other.stages - 1)
        consider(
            f"with {what} (the organizer's choice)",
            budget(other, range(stage, stage + 1), slots=slots, recompute=found.recompute),
        )
    return lines


def too_small(manifest: Manifest, machine: Machine, stages: int) -> FittingError:
    """The error for a machine of which no device holds so many stages: what is missing on the nearest of them."""
    slots = min(LEAST_SLOTS, manifest.settings.pipeline.slots)
    if not machine.devices:
        return FittingError("this machine has no device that computes")
    wanted = [
        (budget(manifest, span, slots=slots, recompute=True), device)
        for device in machine.devices
        for span in spans_of(manifest, stages)
    ]

    def lacking(found: Budget, device: Device) -> int:
        return max(needed - there for _, needed, there in found.against(machine, device))

    found, device = min(wanted, key=lambda entry: lacking(*entry))
    needs = "; ".join(
        f"needs {bytes_text(needed)} of {name}, there are {bytes_text(there)}"
        for name, needed, there in found.against(machine, device)
        if needed > there
    )
    return FittingError(
        f"not even {stages_text(found.stages)} of {manifest.stages} fits on {device.name}: {needs}. "
        f"Free {bytes_text(lacking(found, device))}, or {organizers_choice(manifest, found)}"
    )


def _smaller(manifest: Manifest) -> list[tuple[str, Manifest]]:
    """The same run as its organizer could have made it: a smaller base, more stages."""
    settings, found = manifest.settings, []

    def with_model(what: str, **changes: object) -> None:
        model = settings.model.model_copy(update=changes)
        found.append((what, manifest.model_copy(update={"settings": settings.model_copy(update={"model": model})})))

    if settings.train.mode == "lora" and settings.model.base != "nf4":
        with_model("model.base = nf4", base="nf4")
    most = manifest.shape.num_hidden_layers
    if manifest.stages < most:
        with_model(f"model.stages = {min(most, 2 * manifest.stages)}", stages=min(most, 2 * manifest.stages))
    return found


def organizers_choice(manifest: Manifest, found: Budget) -> str:
    """What would make the first stage smaller, and how small."""
    options = [
        f"{what} ({bytes_text(budget(other, range(1), slots=found.slots, recompute=found.recompute).total)})"
        for what, other in _smaller(manifest)
    ]
    return f"ask the organizer for {' or '.join(options)}" if options else "take a machine with more memory"


def spans_of(manifest: Manifest, count: int) -> list[range]:
    """Every contiguous span of so many stages."""
    return [range(first, first + count) for first in range(manifest.stages - count + 1)]
