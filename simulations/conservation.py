"""Conservation, as one who sees every process at once can check it at any moment of a simulated run: each microbatch
that was issued is, at every stage, counted, in flight, or declared lost and about to be issued again.

What the trainer believes is held against what the peers really hold: a credit whose holder is alive and has nothing is
an error, whatever the trainer would have made of it later.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass
class Conservation:
    """Checks one swarm again and again. What is credited is sorted by holder only when it has changed."""

    swarm: SimulatedSwarm
    _by_holder: dict[tuple[int, int], tuple[tuple[tuple[int, int], ...], dict[int, set[int]]]] = field(
        default_factory=dict
    )

    def check(self) -> Account:
        """The account of the trainer that leads. Raises `ConservationError` if it does not add up."""
        swarm = self.swarm
        trainer = swarm.trainer
        if trainer.transport.peer_id in swarm.killed or trainer.over:
            return Account(0, 0, 0, 0)
        ledger = trainer.ledger
        issued = counted = in_flight = 0
        for step in ledger.open_steps:
            begun = trainer.steps[step].issued
            issued += len(begun) * trainer.manifest.stages
            for stage in range(trainer.manifest.stages):
                if ledger.is_settled(step, stage):
                    counted += len(begun)
                    continue
                credits = ledger.credits(step, stage)
                counted += len(begun & credits.keys())
                in_flight += sum(trainer.driver.is_driven(step, index) for index in begun - credits.keys())
                for holder, indices in self._holders(step, stage, credits).items():
                    _check_holder(swarm, trainer, step, stage, indices, holder)
        account = Account(issued, counted, in_flight, issued - counted - in_flight)
        if account.lost:
            raise ConservationError(
                f"at {swarm.now:.6f} s: of {issued} issued, {counted} are counted, {in_flight} in flight, and "
                f"{account.lost} nobody works on"
            )
        return account

    def _holders(self, step: int, stage: int, credits: Mapping[int, int]) -> dict[int, set[int]]:
        """The indices credited to each member."""
        seen = tuple(credits.items())
        known = self._by_holder.get((step, stage))
        if known is not None and known[0] == seen:
            return known[1]
        holders: dict[int, set[int]] = {}
        for index, holder in seen:
            holders.setdefault(holder, set()).add(index)
        self._by_holder[step, stage] = seen, holders
        return holders


def _check_holder(
    swarm: SimulatedSwarm, trainer: Trainer, step: int, stage: int, indices: set[int], holder: int
) -> None:
    member = trainer.roster.get(holder)
    if member is None or not member.live or member.stage != stage:
        raise ConservationError(
            f"step {step}, stage {stage}, microbatches {sorted(indices)} are credited to {holder}, who is gone"
        )
    host = swarm.peers[member.peer].host
    if member.peer in swarm.killed or host is None or host.member != holder:
        return  # it is gone, and the trainer will hear of it
    lacking = indices - host.gradients.indices(0, step)
    if lacking and not host.gradients.taken_back(0, step):
        # Had it just dropped a sum to take something back, it would say so when asked to reduce.
        raise ConservationError(
            f"step {step}, stage {stage}, microbatches {sorted(lacking)} are credited to member {holder}, who does not "
            "hold them"
        )
