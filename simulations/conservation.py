"""Conservation, as one who sees every process at once can check it at any moment of a simulated run: each microbatch
that was issued is, at every stage, counted, in flight, or declared lost and about to be issued again.

What the trainer believes is held against what the peers really hold: a credit whose holder is alive and has nothing is
an error, whatever the trainer would have made of it later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import ConservationError
from ..swarm.trainer import Trainer
from .swarm import SimulatedSwarm


@dataclass(frozen=True, slots=True)
class Account:
    """Units of one microbatch at one stage, over the steps that are open."""

    issued: int
    counted: int
    in_flight: int
    lost: int


class _Open(NamedTuple):
    """A stage of an open step whose reduction is not chosen: the microbatches that were issued and that nobody is
    credited with, and the others by who is."""

    step: int
    stage: int
    lacking: frozenset[int]
    held: Mapping[int, frozenset[int]]


class Conservation:
    """Checks one swarm again and again. The ledger is read anew only when it has changed."""

    def __init__(self, swarm: SimulatedSwarm) -> None:
        self._swarm = swarm
        self._trainer: Trainer | None = None
        self._read = (0, 0)
        self._issued = 0
        self._open: list[_Open] = []

    def check(self) -> Account:
        """The account of the trainer that leads. Raises `ConservationError` if it does not add up."""
        swarm = self._swarm
        trainer = swarm.trainer
        if trainer.transport.peer_id in swarm.killed or trainer.over:
            return Account(0, 0, 0, 0)
        self._read_ledger(trainer)
        lacking = in_flight = 0
        for entry in self._open:
            lacking += len(entry.lacking)
            in_flight += len(entry.lacking.intersection(trainer.driver.driven(entry.step)))
            for holder, indices in entry.held.items():
                _check_holder(swarm, trainer, entry.step, entry.stage, indices, holder)
        account = Account(self._issued, self._issued - lacking, in_flight, lacking - in_flight)
        if account.lost:
            raise ConservationError(
                f"at {swarm.now:.6f} s: of {account.issued} issued, {account.counted} are counted, {in_flight} in "
                f"flight, and {account.lost} nobody works on"
            )
        return account

    def _read_ledger(self, trainer: Trainer) -> None:
        ledger, stages = trainer.ledger, trainer.manifest.stages
        begun = {step: trainer.steps[step].issued for step in ledger.open_steps}
        issued = stages * sum(map(len, begun.values()))
        if trainer is self._trainer and self._read == (ledger.changes, issued):
            return
        self._trainer, self._read, self._issued = trainer, (ledger.changes, issued), issued
        self._open = []
        for step, indices in begun.items():
            for stage in range(stages):
                if not ledger.is_settled(step, stage):
                    credits = ledger.credits(step, stage)
                    held: dict[int, set[int]] = {}
                    for index, holder in credits.items():
                        held.setdefault(holder, set()).add(index)
                    fixed = {holder: frozenset(credited) for holder, credited in held.items()}
                    self._open.append(_Open(step, stage, frozenset(indices - credits.keys()), fixed))


def _check_holder(
    swarm: SimulatedSwarm, trainer: Trainer, step: int, stage: int, indices: frozenset[int], holder: int
) -> None:
    member = trainer.roster.get(holder)
    if member is None or not member.live or member.stage != stage:
        raise ConservationError(
            f"step {step}, stage {stage}, microbatches {sorted(indices)} are credited to {holder}, who is gone"
        )
    host = swarm.peers[member.peer].host
    if member.peer in swarm.killed or host is None or host.member != holder:
        return  # it is gone, and the trainer will hear of it
    lacking = host.gradients.lacking(0, step, indices)
    if lacking and not host.gradients.taken_back(0, step):
        # Had it just dropped a sum to take something back, it would say so when asked to reduce.
        raise ConservationError(
            f"step {step}, stage {stage}, microbatches {sorted(lacking)} are credited to member {holder}, who does not "
            "hold them"
        )
