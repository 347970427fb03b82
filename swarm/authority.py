"""Who leads the run, as one peer knows it: the highest term that it has seen proven, and the closed marker.

Owns the checks of terms: a term is proven by its delegation (signed by the organizer's key of the manifest) and its own
signature, once; then it is known. Lower terms are fenced.
"""

import math
from collections.abc import Callable

from ..errors import RefusedError, TrustError
from ..protos import swarm_pb2 as pb
from .keys import ProvenTerms, SignedTerm
from .manifest import Manifest


def to_term(message: pb.Term) -> SignedTerm:
    return SignedTerm(message.number, message.trainer, message.delegation, message.signature)


def from_term(term: SignedTerm) -> pb.Term:
    return pb.Term(number=term.number, trainer=term.trainer, delegation=term.delegation, signature=term.signature)


def to_refused(error: RefusedError, authority: "Authority") -> pb.Refused:
    """The refusal as a message; one for a lower term shows the higher one, which proves itself."""
    refused = pb.Refused(reason=error.reason, detail=error.detail)
    if error.reason == "FENCED":
        refused.proof.CopyFrom(authority.highest)
    return refused


class Authority:
    """The run id, the highest proven term and the closed marker: steps below `closed` are closed.

    With a standby configured, a higher term is refused for as long as the trainer that is followed is `heard`.
    """

    def __init__(self, manifest: Manifest, peer_id: str, now: Callable[[], float]) -> None:
        self.run_id = manifest.run_id
        self.closed = 0
        self.founders: tuple[int, ...] = ()
        """With whom the epoch began (`crew.py`); none if no trainer has told."""

        self.epoch = 0
        """Of which what this peer holds is."""

        self.highest = pb.Term()
        self._loyal = manifest.settings.pipeline.silence if manifest.settings.pipeline.standby else 0.0
        self._peer_id = peer_id
        self._now = now
        self._heard_at = -math.inf
        self._proven = ProvenTerms(manifest)

    @property
    def term(self) -> int:
        return self.highest.number

    def heard(self) -> None:
        """The trainer that is followed has spoken on its control stream."""
        self._heard_at = self._now()

    def lost(self) -> None:
        """The control stream has ended: whoever leads next is followed."""
        self._heard_at = -math.inf

    def admit(self, message: pb.Term, sender: str) -> SignedTerm:
        """Checks a term and follows it if it is the highest. Raises `RefusedError` (UNTRUSTED or FENCED)."""
        term = to_term(message)
        try:
            self._proven.check(term)
        except TrustError as error:
            raise RefusedError("UNTRUSTED", f"{error} (sent by {sender})", self._peer_id) from error
        rank, followed = (term.number, term.trainer), (self.highest.number, self.highest.trainer)
        if rank < followed:
            raise RefusedError("FENCED", f"term {term.number} is below term {followed[0]}", self._peer_id)
        if rank > followed:
            if self._now() < self._heard_at + self._loyal:
                raise RefusedError("TRAINER_ALIVE", f"the trainer of term {followed[0]} is heard", self._peer_id)
            self.highest = message
        return term

    def enter(self, epoch: int) -> None:
        """What this peer does from now on is of another epoch."""
        self.epoch, self.closed, self.founders = epoch, 0, ()

    def follow(self, closed: int) -> None:
        """Takes a trainer's word that no more is closed: it may not have heard of what one before it has closed, and
        has a part of that done anew."""
        self.closed = min(self.closed, closed)

    def advance(self, closed: int) -> bool:
        """Moves the closed marker forward; says whether it moved."""
        if closed <= self.closed:
            return False
        self.closed = closed
        return True
