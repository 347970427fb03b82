"""The epochs of a run: going back to a checkpoint begins one, and what was done before from its first step on is no
part of the run any more.

An epoch's number is that of the term in which it was begun, signed by that term's trainer, so that nobody can invent
one. A `Lineage` is what somebody knows of them, and is never changed. Pure.

Errors: `TrustError` for epochs that do not prove themselves, `ProtocolError` for a list that is none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from ..errors import ProtocolError
from ..protos import swarm_pb2 as pb
from .authority import from_term, to_term
from .keys import Identity, ProvenTerms, SignedTerm, check_epoch, sign_epoch

MAX_EPOCHS = 256


def begin_epoch(trainer: Identity, run_id: str, term: SignedTerm, first: int) -> pb.Epoch:
    """The epoch that a term begins, with step `first`."""
    return pb.Epoch(term=from_term(term), first=first, signature=sign_epoch(trainer, run_id, term.number, first))


@dataclass(frozen=True)
class Lineage:
    """Epochs, by ascending number, each beginning at a later step than the one before: one that began at no later step
    has left nothing of those before it. Before the first of them there is epoch 0, from step 0 on."""

    epochs: tuple[pb.Epoch, ...] = ()

    @property
    def number(self) -> int:
        """Of the last epoch."""
        return self.epochs[-1].term.number if self.epochs else 0

    @property
    def first(self) -> int:
        """The step with which the last epoch begins."""
        return self.epochs[-1].first if self.epochs else 0

    def followed_by(self, epoch: pb.Epoch) -> "Lineage":
        kept = [earlier for earlier in self.epochs if earlier.first < epoch.first]
        return Lineage((*kept, epoch)[-MAX_EPOCHS:])

    def holds(self, epoch: int, step: int) -> bool:
        """Whether a step that was committed in `epoch` is part of the run."""
        numbers = [known.term.number for known in self.epochs]
        if epoch and epoch not in numbers:
            return False
        return all(known.first > step for known in self.epochs if known.term.number > epoch)


def read_lineage(epochs: Iterable[pb.Epoch], proven: ProvenTerms, run_id: str, sender: str) -> Lineage:
    """The epochs that somebody tells of, each proven. Raises `TrustError`, `ProtocolError`."""
    listed = tuple(epochs)
    if len(listed) > MAX_EPOCHS:
        raise ProtocolError(f"{sender} tells of {len(listed)} epochs; at most {MAX_EPOCHS} are kept")
    for epoch, later in pairwise(listed):
        if epoch.term.number >= later.term.number or epoch.first >= later.first:
            raise ProtocolError(f"{sender} tells of epochs that do not follow each other")
    for epoch in listed:
        proven.check(to_term(epoch.term))
        check_epoch(run_id, epoch.term.trainer, epoch.term.number, epoch.first, epoch.signature)
    return Lineage(listed)
