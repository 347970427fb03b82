"""What a stage has learned from each microbatch and not yet given to an update.

Gradients are kept apart per microbatch, within a memory budget; beyond it they are summed, and taking one back drops
the sum. So those are summed first that the trainer has credited, and those are dropped first with which it has credited
another replica, that was asked as well and was faster: a member whose budget runs short is told which those are.
Accepting a Reduce freezes the contribution to exactly the set that the trainer credits: what is held beyond it is
taken back, what is lacking is named. Knows no tensor, socket or clock; one per stage of a peer.
"""

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field

from .backend import Gradient, StageBackend
from .messages import in_bits


@dataclass(frozen=True, slots=True)
class Frozen:
    """A contribution: the sum over `indices`, None if there are none; or what it lacks. `taken_back` counts drops."""

    indices: tuple[int, ...]
    gradient: Gradient | None
    lacking: tuple[int, ...]


@dataclass
class _Step:
    apart: dict[int, Gradient] = field(default_factory=dict)
    summed: Gradient | None = None
    summed_indices: tuple[int, ...] = ()
    own: frozenset[int] = frozenset()
    credited: bytes = b""
    taken_back: int = 0


class GradientStore:
    """Gradients of the open steps of one stage. `budget` is in bytes over all of them."""

    def __init__(self, backend: StageBackend, budget: int) -> None:
        self._backend = backend
        self._budget = budget
        self._steps: dict[tuple[int, int], _Step] = {}

    def holds(self, epoch: int, step: int, index: int) -> bool:
        entry = self._steps.get((epoch, step))
        return entry is not None and (index in entry.apart or index in entry.summed_indices)

    def lacking(self, epoch: int, step: int, wanted: Set[int]) -> Set[int]:
        """Those of some microbatches of a step whose gradients are not held."""
        entry = self._steps.get((epoch, step))
        if entry is None:
            return wanted
        return frozenset() if entry.apart.keys() >= wanted else wanted - entry.apart.keys() - set(entry.summed_indices)

    def add(self, epoch: int, step: int, index: int, gradient: Gradient) -> None:
        """Adds the gradient of one microbatch; one that is held already stays as it is."""
        if self.holds(epoch, step, index):
            return
        self._steps.setdefault((epoch, step), _Step()).apart[index] = gradient
        while self._held() * self._backend.gradient_bytes > self._budget and self._make_room():
            pass

    @property
    def short(self) -> bool:
        """Whether half of the budget is used."""
        return 2 * self._held() * self._backend.gradient_bytes > self._budget

    def credit(self, epoch: int, step: int, own: Collection[int], credited: bytes) -> None:
        """The trainer has credited this member with its own, and it or other replicas with those whose bits are set
        (`messages.to_bits`)."""
        entry = self._steps.get((epoch, step))
        if entry is not None:
            entry.own, entry.credited = frozenset(own), credited

    def _held(self) -> int:
        return sum(len(entry.apart) + (entry.summed is not None) for entry in self._steps.values())

    def _make_room(self) -> bool:
        """Drops one that does not count, or sums one more; False if nothing is apart."""
        apart = [(entry, index) for entry in self._steps.values() for index in entry.apart]
        if not apart:
            return False
        for entry, index in apart:
            if in_bits(entry.credited, index) and index not in entry.own:
                del entry.apart[index]
                entry.taken_back += 1
                return True
        entry, index = next(((entry, index) for entry, index in apart if index in entry.own), apart[0])
        gradient = entry.apart.pop(index)
        entry.summed = self._backend.add([gradient] if entry.summed is None else [entry.summed, gradient])
        entry.summed_indices = (*entry.summed_indices, index)
        return True

    def freeze(self, epoch: int, step: int, credited: Sequence[int]) -> Frozen:
        """Takes back everything beyond `credited` and sums the rest in ascending index.

        If something is lacking, nothing is summed and `lacking` names it.
        """
        entry = self._steps.setdefault((epoch, step), _Step())
        self._take_back(entry, frozenset(credited))
        lacking = tuple(index for index in credited if not self.holds(epoch, step, index))
        if lacking:
            return Frozen(tuple(credited), None, lacking)
        addends = [entry.apart[index] for index in sorted(entry.apart)]
        if entry.summed is not None:
            addends.insert(0, entry.summed)
        return Frozen(tuple(credited), self._backend.add(addends) if addends else None, ())

    def _take_back(self, entry: _Step, credited: Collection[int]) -> None:
        for index in [index for index in entry.apart if index not in credited]:
            del entry.apart[index]
            entry.taken_back += 1
        if any(index not in credited for index in entry.summed_indices):
            entry.taken_back += len(entry.summed_indices)
            entry.summed, entry.summed_indices = None, ()

    def held(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The indices held of each open (epoch, step), ascending."""
        return {key: tuple(sorted((*entry.apart, *entry.summed_indices))) for key, entry in sorted(self._steps.items())}

    def taken_back(self, epoch: int, step: int) -> int:
        """Stage-visits removed so far from the sum of a step."""
        entry = self._steps.get((epoch, step))
        return entry.taken_back if entry else 0

    def close(self, epoch: int, closed: int) -> None:
        """Lets go of the steps below `closed`."""
        for key in [key for key in self._steps if key < (epoch, closed)]:
            del self._steps[key]
