"""Conservation, as one who sees every process at once can check it at any moment of a simulated run: each microbatch
that was issued is, at every stage, counted, in flight, or declared lost and about to be issued again.

What the trainer believes is held against what the peers really hold: a credit whose holder is alive and has nothing is
an error, whatever the trainer would have made of it later.
"""

from typing import NamedTuple

from ..errors import ConservationError
from ..swarm.roster import Member
from ..swarm.trainer import Trainer
from .swarm import SimulatedSwarm


class Account(NamedTuple):
    """Units of one microbatch at one stage, over the steps that are open."""

    issued: int
    counted: int
    in_flight: int
    lost: int


class _Open(NamedTuple):
    """A stage of an open step whose reduction is not chosen: the microbatches that were issued and that nobody is
    credited with."""

    step: int
    lacking: frozenset[int]


class _Credited(NamedTuple):
    """The microbatches of an open step and stage that one member is credited with."""

    step: int
    stage: int
    indices: frozenset[int]
    member: Member


class Conservation:
    """Checks one swarm again and again. The ledger is read anew only when it has changed."""

    def __init__(self, swarm: SimulatedSwarm) -> None:
        self._swarm = swarm
        self._trainer: Trainer | None = None
        self._read = (0, 0)
        self._issued = 0
        self._open: list[_Open] = []
        self._credited: list[_Credited] = []

    def check(self) -> Account:
        """The account of the trainer that leads. Raises `ConservationError` if it does not add up."""
        swarm = self._swarm
        if not swarm.is_led:
            return Account(0, 0, 0, 0)
        trainer = swarm.trainer
        if trainer.transport.peer_id in swarm.killed or trainer.over:
            return Account(0, 0, 0, 0)
        self._read_ledger(trainer)
        lacking = in_flight = 0
        for step, missing in self._open:
            if missing:
                lacking += len(missing)
                in_flight += len(missing.intersection(trainer.driver.driven(step)))
        peers, killed = swarm.peers, swarm.killed
        for credited in self._credited:
            step, stage, indices, member = credited
            host = peers[member.peer].host
            if not member.live or member.stage != stage:
                raise ConservationError(f"{_describe(credited)} are credited to {member.number}, who is gone")
            if host is None or host.member != member.number or member.peer in killed:
                continue  # it is gone, and the trainer will hear of it
            gradients, epoch = host.gradients, trainer.beginning.epoch
            if gradients.lacking(epoch, step, indices) and not gradients.taken_back(epoch, step):
                # Had it just dropped a sum to take something back, it would say so when asked to reduce.
                raise ConservationError(
                    f"{_describe(credited)} are credited to member {member.number}, who does not hold them all"
                )
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
        self._open, self._credited = [], []
        for step, indices in begun.items():
            for stage in range(stages):
                if ledger.is_settled(step, stage):
                    continue
                credits = ledger.credits(step, stage)
                self._open.append(_Open(step, frozenset(indices - credits.keys())))
                held: dict[int, set[int]] = {}
                for index, holder in credits.items():
                    held.setdefault(holder, set()).add(index)
                for holder, credited in held.items():
                    member = trainer.roster.get(holder)
                    if member is None:
                        raise ConservationError(f"step {step}, stage {stage}: {holder} is credited and unknown")
                    self._credited.append(_Credited(step, stage, frozenset(credited), member))


def _describe(credited: _Credited) -> str:
    return f"step {credited.step}, stage {credited.stage}, microbatches {sorted(credited.indices)}"
