"""What a trainer knows of a run and its members, in the form of events. Pure."""

from collections import Counter

from .budget import budget
from .events import Joined, Opened, Recalled, Settled
from .manifest import Manifest
from .pulse import MAX_COUNT, clean
from .roster import Member
from .sizes import ELEMENT_BYTES, base_form, boundary_bytes
from .steps import Step
from .work import forward_flops

RELAYED = "/p2p-circuit"


def opened(manifest: Manifest) -> Opened:
    """The manifest in a few numbers."""
    settings, shape = manifest.settings, manifest.shape
    stages = [range(stage, stage + 1) for stage in range(manifest.stages)]
    samples, length = settings.train.microbatch, settings.data.sequence_length
    codecs = settings.codecs
    layers = [manifest.layers(stage) for stage in range(manifest.stages)]
    return Opened(
        run_id=manifest.run_id,
        model=settings.model.name,
        mode=settings.train.mode,
        base=base_form(manifest),
        stages=manifest.stages,
        steps=settings.train.steps,
        microbatches=manifest.microbatches,
        step_tokens=settings.train.batch * length,
        staleness=settings.pipeline.staleness,
        min_replicas=settings.pipeline.min_replicas,
        slots=settings.pipeline.slots,
        activations=codecs.activations,
        gradients=codecs.gradients,
        activation_bytes=boundary_bytes(shape, samples, length, codecs.activations, codecs.block),
        gradient_bytes=boundary_bytes(shape, samples, length, codecs.gradients, codecs.block),
        plain_bytes=samples * length * shape.hidden_size * ELEMENT_BYTES["fp32"],
        layers=tuple((found[0], found[-1]) for found in layers),
        costs=tuple(forward_flops(manifest, stage) for stage in stages),
        memory=tuple(budget(manifest, stage, slots=settings.pipeline.slots, recompute=True).total for stage in stages),
    )


def joined(member: Member) -> Joined:
    """A new member, with what it says of itself."""
    about = member.about
    return Joined(
        member.number,
        member.peer,
        member.stage,
        name=clean(about.name),
        version=clean(about.version),
        device=clean(about.device),
        memory=min(about.memory, MAX_COUNT),
        up=min(about.up, MAX_COUNT),
        down=min(about.down, MAX_COUNT),
        relayed=bool(member.addresses) and all(RELAYED in address for address in member.addresses),
    )


def settled(step: Step, stages: int, microbatches: int) -> Settled:
    """A step that is closed, before it lets go of what its totals are counted from."""
    counted: Counter[int] = Counter()
    for (_, number), indices in step.held.items():
        counted[number] += len(indices)
    totals = step.totals(stages, microbatches)
    return Settled(
        step.number,
        tuple(sorted((number, count) for number, count in counted.items() if count)),
        totals.microbatches,
        totals.lost,
        totals.duplicated,
        totals.reissued,
        totals.taken_back,
    )


def recalled(step: Step) -> Recalled:
    """A step that another trainer has told of."""
    totals = step.final
    assert totals is not None
    return Recalled(
        step.number,
        step.loss,
        step.grad_norm,
        step.tokens,
        step.seconds,
        totals.microbatches,
        totals.lost,
        totals.duplicated,
        totals.reissued,
        totals.taken_back,
    )
