"""How much there is to compute and to send for one visit, and how long that takes on a machine.

Useful operations only: two for each weight and token going down; the same again going back if the base is frozen (the
weights have no gradient), twice if they are trained; once more where the forward pass is computed again. Decoding of a
quantized base is in the measured rate of a device, not in the work. A device computes while its link sends, so the
slower of the two sets the pace. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .machine import Link
from .manifest import Manifest
from .model.names import block_linears
from .sizes import traffic, visit_tokens


def worth(costs: Sequence[float], stage: int) -> float:
    """What one microbatch of a stage is credited with: the stage's share of the model's work (`costs`: operations of
    each stage's visit), times the number of stages."""
    total = sum(costs)
    return costs[stage] / total * len(costs) if total else 1.0


def stage_worth(manifest: Manifest, stage: int) -> float:
    return worth([forward_flops(manifest, range(at, at + 1)) for at in range(manifest.stages)], stage)


def forward_flops(manifest: Manifest, stages: range) -> float:
    """Operations of one visit's forward pass through a span of stages."""
    shape, tokens = manifest.shape, visit_tokens(manifest)
    layers = sum(len(manifest.layers(stage)) for stage in stages)
    weights = sum(rows * columns for rows, columns in block_linears(shape, 0).values())
    if manifest.settings.train.mode == "lora":
        rank = manifest.settings.train.lora_rank
        weights += sum(rank * (rows + columns) for rows, columns in block_linears(shape, 0).values())
    # Causal attention: half of two products of [length, length] and [length, head_dim] for each head.
    queries = shape.num_attention_heads * shape.head_dim
    attention = 2.0 * tokens * manifest.settings.data.sequence_length * queries
    total = layers * (2.0 * tokens * weights + attention)
    if stages.stop == manifest.stages:
        total += 2.0 * tokens * shape.vocab_size * shape.hidden_size
    return total


def backward_flops(manifest: Manifest, stages: range, *, recompute: bool) -> float:
    """Operations of one visit's backward pass."""
    passes = (2 if manifest.settings.train.mode == "full" else 1) + recompute
    return passes * forward_flops(manifest, stages)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that one visit keeps a machine's device and either direction of its link."""

    compute: float
    up: float
    down: float

    @property
    def seconds(self) -> float:
        """From one visit to the next, all three being busy at once."""
        return max(self.compute, self.up, self.down)

    @property
    def limit(self) -> str:
        """Which of the three sets the pace."""
        named = {"compute": self.compute, "uplink": self.up, "downlink": self.down}
        return max(named, key=lambda name: named[name])


def pace(manifest: Manifest, stages: range, flops: float, link: Link, *, recompute: bool) -> Pace:
    """Of one device with the whole link to itself, hosting a span of stages."""
    moved = traffic(manifest, stages)
    work = forward_flops(manifest, stages) + backward_flops(manifest, stages, recompute=recompute)
    return Pace(work / flops, 8 * moved.sent / link.up, 8 * moved.received / link.down)
