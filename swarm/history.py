"""What is past: the committed steps, as trainers and standbys tell them to each other, and as the report shows them.

Owns the held-out losses and, for a trainer that comes after another, what that one has told. Pure bookkeeping; the
streams are `admission.py`'s and `succession.py`'s. Errors: `ProtocolError` for what another trainer sent.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..protos import swarm_pb2 as pb
from .backend import Scalar
from .epochs import Lineage
from .manifest import Manifest
from .messages import from_scalar, to_scalar
from .report import parse_replicas
from .steps import Step

EPOCH_0 = Lineage()
ANOTHER = "the trainer before"


class History:
    """`steps` is shared with the trainer, whose own steps it holds too; `known` is what was told before its term;
    `recalled` hears of every step that is taken up."""

    def __init__(
        self,
        manifest: Manifest,
        steps: dict[int, Step],
        known: Iterable[pb.Past],
        recalled: Callable[[Step], None] = lambda step: None,
        lineage: Lineage = EPOCH_0,
    ) -> None:
        self._manifest = manifest
        self._steps = steps
        self._recalled = recalled
        self.lineage = lineage
        self.told = {past.step: past for past in known if self._is_part(past)}
        self.heldout: dict[str, Scalar | None] = {"before": None, "after": None}
        self.replicas: list[Any] = []
        """At the end of the run, as a trainer before this one saw it."""

    @property
    def is_whole(self) -> bool:
        """Whether the run had come to its end before this trainer's term, and it was told of all of it."""
        steps = range(self._manifest.settings.train.steps)
        return all(step in self.told for step in steps) and self.told[steps[-1]].HasField("heldout_after")

    def _is_part(self, past: pb.Past) -> bool:
        return self.lineage.holds(past.epoch, past.step)

    def follow(self, lineage: Lineage) -> None:
        """The run is in another epoch than was known: what was told of steps that are no part of it is forgotten."""
        self.lineage = lineage
        self.told = {step: past for step, past in self.told.items() if self._is_part(past)}

    def learn(self, past: pb.Past) -> None:
        """What a trainer before this one knows of a step."""
        if self._is_part(past):
            self.told[past.step] = past

    def hear(self, past: pb.Past) -> None:
        """What a peer knows of a step; what a coordinator has told is better known."""
        if self._is_part(past):
            self.told.setdefault(past.step, past)

    def recall(self, closed: int) -> None:
        """Takes up what was told of the steps below `closed`."""
        for step in sorted(self.told):
            if step < closed:
                self.remember(self.told[step])

    def remember(self, past: pb.Past) -> None:
        """Takes up a step that was closed before this trainer's term, unless it is known."""
        if past.step in self._steps or not self._is_part(past):
            return
        step = Step(past.step, tokens=past.tokens, seconds=past.seconds, committed=True, final=past.totals)
        step.epoch = past.epoch
        step.loss = from_scalar(past.loss, "loss", ANOTHER)
        step.grad_norm = from_scalar(past.grad_norm, "gradient norm", ANOTHER)
        self._steps[past.step] = step
        self._recalled(step)
        if past.HasField("heldout"):
            self.heldout["before"] = from_scalar(past.heldout, "held-out loss", ANOTHER)
        if past.HasField("heldout_after"):
            self.heldout["after"] = from_scalar(past.heldout_after, "held-out loss", ANOTHER)
            self.replicas = parse_replicas(past.replicas)

    def tell(self, first: int, committed: int, report: Mapping[str, Any]) -> list[pb.Past]:
        """The committed steps from `first` on, for a standby; `report`: what has happened so far."""
        return [
            self.of(self._steps[number], report)
            for number in range(first, committed)
            if number in self._steps and self._steps[number].committed
        ]

    def of(self, step: Step, report: Mapping[str, Any]) -> pb.Past:
        """One step, as it is told."""
        past = pb.Past(
            step=step.number,
            loss=to_scalar(step.loss),
            grad_norm=to_scalar(step.grad_norm),
            tokens=step.tokens,
            seconds=step.seconds,
            totals=step.totals(self._manifest.stages, self._manifest.microbatches),
            epoch=step.epoch if step.epoch is not None else self.lineage.number,
        )
        if self.heldout["before"] is not None:
            past.heldout.CopyFrom(to_scalar(self.heldout["before"]))
        if self.heldout["after"] is not None and step.number == self._manifest.settings.train.steps - 1:
            past.heldout_after.CopyFrom(to_scalar(self.heldout["after"]))
            past.replicas = json.dumps(report["replicas"])
        return past
