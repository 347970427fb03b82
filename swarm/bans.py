"""Bans: a peer that failed or was silent is left alone for a growing while, and forgiven for good exchanges.

One caller's own experience with one peer; pure, no clock. Calls that had begun before a ban say nothing new when they
fail too: a peer that dies with eight calls open has failed once. A new incarnation of the peer is a new peer.
"""

from dataclasses import dataclass

FIRST_SECONDS = 2.0
LONGEST_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Ban:
    """`strikes`: failures not yet forgiven; `until`: the loop's time at which the ban is over."""

    strikes: int = 0
    until: float = 0.0

    def holds(self, now: float) -> bool:
        return now < self.until

    @property
    def on_probation(self) -> bool:
        """Whether the peer has yet to make good: once the ban is over it gets one call at a time."""
        return self.strikes > 0

    def after_failure(self, began: float, now: float) -> "Ban":
        """The ban after a call that began at `began` failed."""
        if self.strikes and began < self.until:
            return self
        seconds = min(FIRST_SECONDS * 2.0**self.strikes, LONGEST_SECONDS)
        return Ban(self.strikes + 1, now + seconds)

    def after_success(self) -> "Ban":
        """The ban after a good exchange: it is over, and half of what stood against the peer is forgotten."""
        return Ban(self.strikes // 2, 0.0) if self.strikes else self
