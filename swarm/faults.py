"""Lost peers and how long it took to go on without them, as the trainer sees it."""

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass
class Fault:
    """One lost member. `affected`: the (step, index) that were open at it or credited to it and are re-run."""

    member: int
    peer: str
    stage: int
    at_step: int
    why: str
    lost_at: float
    affected: frozenset[tuple[int, int]]
    rerouted_at: float | None = None


@dataclass
class FaultLog:
    """All faults of a run, in the order of their discovery."""

    faults: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        self.faults.append(fault)

    def done(self, step: int, index: int, missing: Collection[int], now: float) -> list[Fault]:
        """Notes that a microbatch came back, for which nobody is credited at the stages that are `missing`; the faults
        that this ends."""
        ended = [
            fault
            for fault in self.faults
            if fault.rerouted_at is None and (step, index) in fault.affected and fault.stage not in missing
        ]
        for fault in ended:
            fault.rerouted_at = now
        return ended
