"""Conservation, as one who sees every process at once can check it at any moment of a simulated run: each microbatch
that was issued is, at every stage, counted, in flight, or declared lost and about to be issued again.

What the trainer believes is held against what the peers really hold: a credit whose holder is alive and has nothing is
an error, whatever the trainer would have made of it later.
"""

from dataclasses import dataclass

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


def check(swarm: SimulatedSwarm) -> Account:
    """The account of the trainer that leads. Raises `ConservationError` if it does not add up."""
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
            for index in begun:
                holder = credits.get(index)
                if holder is not None:
                    counted += 1
                    _check_holder(swarm, trainer, step, stage, index, holder)
                elif trainer.driver.is_driven(step, index):
                    in_flight += 1
    account = Account(issued, counted, in_flight, issued - counted - in_flight)
    if account.lost:
        raise ConservationError(
            f"at {swarm.now:.6f} s: of {issued} issued, {counted} are counted, {in_flight} in flight, and "
            f"{account.lost} nobody works on"
        )
    return account


def _check_holder(swarm: SimulatedSwarm, trainer: Trainer, step: int, stage: int, index: int, holder: int) -> None:
    member = trainer.roster.get(holder)
    if member is None or not member.live or member.stage != stage:
        raise ConservationError(f"step {step}, stage {stage}, microbatch {index} is credited to {holder}, who is gone")
    peer = swarm.peers[member.peer]
    host = peer.host
    if member.peer in swarm.killed or host is None or host.member != holder:
        return  # it is gone, and the trainer will hear of it
    if not host.gradients.holds(0, step, index) and not host.gradients.taken_back(0, step):
        # Had it just dropped a sum to take something back, it would say so when asked to reduce.
        raise ConservationError(
            f"step {step}, stage {stage}, microbatch {index} is credited to member {holder}, who does not hold it"
        )
