"""Who leads the run, as one peer knows it: the highest term that it has seen proven, and the closed marker.

Owns the checks of terms: a term is proven by its delegation (signed by the organizer's key of the manifest) and its own
signature, once; then it is known. Lower terms are fenced.
"""

from ..errors import RefusedError, TrustError
from ..protos import swarm_pb2 as pb
from .keys import ProvenTerms, SignedTerm
from .manifest import Manifest


def to_term(message: pb.Term) -> SignedTerm:
    return SignedTerm(message.number, message.trainer, message.delegation, message.signature)


def from_term(term: SignedTerm) -> pb.Term:
    return pb.Term(number=term.number, trainer=term.trainer, delegation=term.delegation, signature=term.signature)


class Authority:
    """The run id, the highest proven term and the closed marker: steps below `closed` are closed."""

    def __init__(self, manifest: Manifest, peer_id: str) -> None:
        self.run_id = manifest.run_id
        self.closed = 0
        self._peer_id = peer_id
        self._highest: tuple[int, str] = (0, "")
        self._proven = ProvenTerms(manifest)

    @property
    def term(self) -> int:
        return self._highest[0]

    def admit(self, message: pb.Term, sender: str) -> SignedTerm:
        """Checks a term and follows it if it is the highest. Raises `RefusedError` (UNTRUSTED or FENCED)."""
        term = to_term(message)
        try:
            self._proven.check(term)
        except TrustError as error:
            raise RefusedError("UNTRUSTED", f"{error} (sent by {sender})", self._peer_id) from error
        rank = (term.number, term.trainer)
        if rank < self._highest:
            raise RefusedError("FENCED", f"term {term.number} is below term {self._highest[0]}", self._peer_id)
        self._highest = rank
        return term

    def advance(self, closed: int) -> bool:
        """Moves the closed marker forward; says whether it moved."""
        if closed <= self.closed:
            return False
        self.closed = closed
        return True
