"""The trainer's ledger: for every (step, stage, index) at most one live member is credited.

Pure bookkeeping: no socket, clock or tensor. A member is credited by a path entry of Done, if it is live when Done
arrives; it loses its credits when it is lost, or when it names them as lacking. The invariant that makes the promise of
exactly-once: a stage is complete for a step when each index has its one holder, and a Reduce freezes each member's
contribution to exactly the indices credited to it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Credits of the open steps. `stages` and `microbatches` are those of the manifest. `changes` grows with every
    change: who looks again and again need not look while it stands."""

    stages: int
    microbatches: int
    changes: int = 0
    _credits: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)
    _settled: set[tuple[int, int]] = field(default_factory=set)

    def open(self, step: int) -> None:
        self.changes += 1
        for stage in range(self.stages):
            self._credits[step, stage] = {}

    def is_open(self, step: int) -> bool:
        return (step, 0) in self._credits

    @property
    def open_steps(self) -> list[int]:
        return sorted(step for step, stage in self._credits if stage == 0)

    def is_settled(self, step: int, stage: int) -> bool:
        return (step, stage) in self._settled

    def credit(self, step: int, stage: int, index: int, member: int) -> bool:
        """Credits `member` unless somebody is credited already; says whether it did. The caller knows it is live."""
        credits = self._credits.get((step, stage))
        if credits is None or index in credits:
            return False
        self.changes += 1
        credits[index] = member
        return True

    def credits_of(self, member: int) -> bool:
        """Whether a member is credited with anything of the open steps."""
        return any(member in credits.values() for credits in self._credits.values())

    def lose(self, member: int) -> list[tuple[int, int]]:
        """Takes every open credit from a lost member: the (step, index) of which a stage must be re-run."""
        self.changes += 1
        lost: list[tuple[int, int]] = []
        for (step, stage), credits in self._credits.items():
            if (step, stage) in self._settled:
                continue
            indices = [index for index, holder in credits.items() if holder == member]
            for index in indices:
                del credits[index]
            lost += [(step, index) for index in indices]
        return lost

    def settle(self, step: int, stages: Iterable[int]) -> None:
        """The reduction of these stages is chosen: the work is in it from now on, whoever dies."""
        self.changes += 1
        self._settled.update((step, stage) for stage in stages)

    def reopen(self, step: int, stages: Iterable[int], live: Collection[int]) -> None:
        """The chosen reduction is gone everywhere: only what live members still hold counts."""
        self.changes += 1
        for stage in stages:
            self._settled.discard((step, stage))
            credits = self._credits[step, stage]
            for index in [index for index, holder in credits.items() if holder not in live]:
                del credits[index]

    def void(self, step: int, stage: int, indices: Iterable[int], member: int) -> None:
        """Takes from a member the credits that it says it does not hold."""
        self.changes += 1
        credits = self._credits.get((step, stage), {})
        for index in indices:
            if credits.get(index) == member:
                del credits[index]

    def holder(self, step: int, stage: int, index: int) -> int | None:
        return self.credits(step, stage).get(index)

    def credits(self, step: int, stage: int) -> Mapping[int, int]:
        """The members credited at a stage, by index."""
        return self._credits.get((step, stage), {})

    def missing(self, step: int, index: int) -> list[int]:
        """The stages, ascending, for which nobody is credited with this microbatch."""
        return [
            stage
            for stage in range(self.stages)
            if (step, stage) not in self._settled and index not in self._credits.get((step, stage), {index: 0})
        ]

    def missing_indices(self, step: int, stages: Iterable[int]) -> list[int]:
        """The microbatches that lack a credit in any of `stages`."""
        wanted = set(stages)
        return [index for index in range(self.microbatches) if wanted.intersection(self.missing(step, index))]

    def complete(self, step: int, stages: Iterable[int]) -> bool:
        return all(len(self._credits[step, stage]) == self.microbatches for stage in stages)

    def indices(self, step: int, stage: int, member: int) -> tuple[int, ...]:
        """The indices credited to a member, ascending."""
        return tuple(sorted(index for index, holder in self._credits[step, stage].items() if holder == member))

    def close(self, step: int) -> None:
        self.changes += 1
        for stage in range(self.stages):
            self._credits.pop((step, stage), None)
            self._settled.discard((step, stage))


def first_gap(missing: list[int]) -> tuple[int, int]:
    """The lowest contiguous range of `missing` stages (not empty), as (first, last)."""
    last = first = missing[0]
    while last + 1 in missing:
        last += 1
    return first, last
