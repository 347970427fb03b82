"""The steps of a run, as the trainer keeps them: what was begun, what came of it, and what the report says.

Pure bookkeeping over path entries and the members' own reports; no socket, no tensor.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..protos import swarm_pb2 as pb
from .backend import Scalar


@dataclass
class Step:
    """One step. `held`: by stage and member, the indices that the member reported in the committed attempt."""

    number: int
    tokens: int = 0
    began: float | None = None
    issued: set[int] = field(default_factory=set)
    losses: dict[int, Scalar] = field(default_factory=dict)
    held: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    taken_back: dict[int, int] = field(default_factory=dict)
    begun: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """By (stage, index, member): how many times that member began this stage-visit."""

    loss: Scalar = 0
    grad_norm: Scalar = 0
    seconds: float = 0.0
    committed: bool = False
    commit: pb.Commit | None = None
    """A Commit of this step that another trainer has sent: it is finished as it is."""

    final: pb.Totals | None = None
    epoch: int | None = None
    """In which it was committed, if not in the one that goes on."""

    def saw_begun(self, index: int, entries: Iterable[pb.PathEntry]) -> None:
        if self.final is not None:
            return
        for entry in entries:
            key = (entry.stage, index, entry.member)
            self.begun[key] = max(self.begun.get(key, 0), entry.begun)

    def saw_taken_back(self, member: int, count: int) -> None:
        self.taken_back[member] = max(self.taken_back.get(member, 0), count)

    def totals(self, stages: int, microbatches: int) -> pb.Totals:
        """The ledger of this step, from what members reported of the committed attempts."""
        if self.final is not None:
            return self.final
        lost = duplicated = 0
        for stage in range(stages):
            holders = [0] * microbatches
            for (at, _), indices in self.held.items():
                if at == stage:
                    for index in indices:
                        holders[index] += 1
            lost += holders.count(0)
            duplicated += sum(count > 1 for count in holders)
        visits = sum(self.begun.values())
        return pb.Totals(
            microbatches=microbatches,
            lost=lost,
            duplicated=duplicated,
            reissued=max(0, visits - len({(stage, index) for stage, index, _ in self.begun})),
            taken_back=sum(self.taken_back.values()),
        )

    def finish(self, stages: int, microbatches: int) -> None:
        """Keeps the totals of a closed step and lets go of what they were counted from."""
        self.final = self.totals(stages, microbatches)
        for counted in (self.issued, self.losses, self.held, self.taken_back, self.begun):
            counted.clear()
