"""Stochastic wiring: which replica of the next stage gets the next microbatch.

SWARM's interleaved weighted round-robin (Ryabinin et al. 2023, arXiv 2301.11913, §3.2), as pure functions over a frozen
state: each peer carries the time that the work given to it is expected to take; the next microbatch goes to the peer
that carries least, ties at random. The expectation is a smoothed mean of measured exchange times. A peer that failed
is left out until its directory record shows that it has spoken again. Knows no socket and no clock.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .directory import Record

SMOOTHING = 0.1
"""Weight of the newest measurement."""

UNMEASURED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that may be chosen: the expected seconds a visit, and the virtual time it has been given so far."""

    seconds: float = UNMEASURED_SECONDS
    measured: int = 0
    given: float = 0.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What one caller knows of the replicas of one stage. `failed`: the record's sequence when the peer failed."""

    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)


def observe(wiring: Wiring, records: Sequence[Record]) -> Wiring:
    """The wiring after a reading of the directory. A newcomer starts at the least time given so far."""
    start = min((candidate.given for candidate in wiring.candidates.values()), default=0.0)
    candidates = {record.peer: wiring.candidates.get(record.peer, Candidate(given=start)) for record in records}
    sequences = {record.peer: record.sequence for record in records}
    failed = {peer: at for peer, at in wiring.failed.items() if sequences.get(peer, at) <= at}
    return replace(wiring, candidates=candidates, failed=failed)


def choose(wiring: Wiring, excluded: Collection[str], draw: random.Random) -> tuple[str | None, Wiring]:
    """The peer for the next visit and the wiring after it; None if there is no candidate.

    `excluded` peers (tried already for this visit) are taken only when nobody else is left.
    """
    alive = [peer for peer in sorted(wiring.candidates) if peer not in wiring.failed]
    pool = [peer for peer in alive if peer not in excluded] or alive
    if not pool:
        return None, wiring
    least = min(wiring.candidates[peer].given for peer in pool)
    peer = draw.choice([peer for peer in pool if wiring.candidates[peer].given == least])
    chosen = wiring.candidates[peer]
    return peer, _with(wiring, peer, replace(chosen, given=chosen.given + chosen.seconds))


def measured(wiring: Wiring, peer: str, seconds: float) -> Wiring:
    """The wiring after an exchange of `seconds` with `peer`."""
    candidate = wiring.candidates.get(peer)
    if candidate is None:
        return wiring
    weight = max(SMOOTHING, 1 / (candidate.measured + 1))
    mean = candidate.seconds + weight * (seconds - candidate.seconds)
    return _with(wiring, peer, replace(candidate, seconds=mean, measured=candidate.measured + 1))


def failed(wiring: Wiring, peer: str, sequence: int) -> Wiring:
    """The wiring after `peer` failed while its record stood at `sequence`."""
    return replace(wiring, failed={**wiring.failed, peer: sequence})


def _with(wiring: Wiring, peer: str, candidate: Candidate) -> Wiring:
    return replace(wiring, candidates={**wiring.candidates, peer: candidate})
