"""Stochastic wiring: which replica of the next stage gets the next microbatch.

What one caller knows of the replicas of one stage is a frozen `Wiring`; the functions here say how a record, a call, an
answer or a failure changes it, and who may be chosen at all: a banned peer (`bans.py`) only when nobody else is left, a
peer on probation for one call at a time. Whom of those to choose is a `Policy`: SWARM's in `round_robin.py`, ours in
`least_work.py`. Knows no socket and no clock.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from ..protos import swarm_pb2 as pb
from .bans import Ban
from .directory import SEQUENCE_BITS, Record
from .loads import MAX_SECONDS, Load

SMOOTHING = 0.1
"""Weight of the newest measurement of an exchange."""

UNMEASURED_SECONDS = 1.0
MAX_EXCESS = 16.0


class Place(Enum):
    """Where a call of ours is at its callee: under way to it, waiting for its forward (or in it), past it. The value is
    where a `Replica` counts such calls."""

    SENT = "sent"
    AHEAD = "ahead"
    RETURNING = "returning"


PLACES = {
    pb.QUEUED: Place.AHEAD,
    pb.FORWARD: Place.AHEAD,
    pb.BELOW: Place.RETURNING,
    pb.RETURNED: Place.RETURNING,
    pb.BACKWARD: Place.RETURNING,
}


class Replica(NamedTuple):
    """One peer that may be chosen, as this caller knows it. Times are in seconds, of the loop's clock.

    Measured here: `seconds` an exchange over `measured` ones, `link` from a call to its acceptance, `excess` how many
    times longer than it says its visits take. `given`: the virtual time that round-robin has handed out. `sent`,
    `ahead`, `returning`: own open calls by their place. Said by the peer at `heard`: `load`, of which `others` is the
    backlog that is not ours.
    """

    peer: str
    sequence: int = 0
    ban: Ban = Ban()
    seconds: float = UNMEASURED_SECONDS
    measured: int = 0
    given: float = 0.0
    link: float | None = None
    excess: float = 1.0
    sent: int = 0
    ahead: int = 0
    returning: int = 0
    load: Load | None = None  # the last three: what the peer says
    others: float = 0.0
    heard: float = 0.0

    @property
    def open(self) -> int:
        return self.sent + self.ahead + self.returning

    def is_free(self, now: float) -> bool:
        return not self.ban.holds(now) and not (self.ban.on_probation and self.open)


Policy = Callable[[Sequence[Replica], float, random.Random], Replica]
"""Chooses from replicas (not empty, by ascending peer id), given the time and a source of chance."""


class Wiring(NamedTuple):
    """What one caller knows of the replicas of one stage, by ascending peer id."""

    replicas: Mapping[str, Replica] = MappingProxyType({})

    def replaced(self, replica: Replica) -> "Wiring":
        return Wiring({**self.replicas, replica.peer: replica})


def observe(wiring: Wiring, records: Sequence[Record], now: float) -> Wiring:
    """The wiring after a reading of the directory. A newcomer starts at the least time given so far; so does a peer
    that has come again in a new incarnation, of which nothing is held against it."""
    start = min((replica.given for replica in wiring.replicas.values()), default=0.0)
    replicas = {}
    for record in sorted(records, key=lambda record: record.peer):
        known = wiring.replicas.get(record.peer)
        if known is None:
            known = _newcomer(record, start, now)
        elif record.sequence >> SEQUENCE_BITS > known.sequence >> SEQUENCE_BITS:
            again = _newcomer(record, start, now)
            known = again._replace(sent=known.sent, ahead=known.ahead, returning=known.returning)
        newer = record.sequence > known.sequence
        replicas[record.peer] = known._replace(sequence=record.sequence) if newer else known
    return Wiring(replicas)


def _newcomer(record: Record, start: float, now: float) -> Replica:
    replica = Replica(record.peer, given=start, heard=now)
    if record.throughput <= 0:
        return replica
    # A record does not say how the time divides; the usual third and two thirds only weigh what is half done.
    service = min(MAX_SECONDS, 1 / record.throughput)
    load = Load(service / 3, service * 2 / 3, backlog=min(MAX_SECONDS, service * record.queue))
    return replica._replace(load=load, others=load.backlog)


def choose(
    wiring: Wiring, policy: Policy, excluded: Collection[str], now: float, draw: random.Random
) -> Replica | None:
    """The replica for the next visit; None if there is none.

    `excluded` peers (tried already for this visit) are taken only when nobody else is left, banned ones after those.
    """
    everyone = list(wiring.replicas.values())
    free = [replica for replica in everyone if replica.is_free(now)]
    pool = [replica for replica in free if replica.peer not in excluded] or free
    pool = pool or [replica for replica in everyone if not replica.ban.holds(now)]
    if not pool:
        return min(everyone, key=lambda replica: replica.ban.until, default=None)
    return policy(pool, now, draw)


def another(
    wiring: Wiring, policy: Policy, excluded: Collection[str], now: float, draw: random.Random
) -> Replica | None:
    """A replica beside the `excluded` ones to hedge with; None if nobody else is well."""
    pool = [replica for replica in wiring.replicas.values() if replica.is_free(now) and replica.peer not in excluded]
    return policy(pool, now, draw) if pool else None


def called(wiring: Wiring, peer: str, now: float) -> Wiring:
    """The wiring after a call of `peer` was begun. Who is banned meanwhile shall not be owed anything later."""
    replica = wiring.replicas.get(peer)
    if replica is None:
        return wiring
    given = replica.given + replica.seconds
    replicas = {
        name: other._replace(given=max(other.given, replica.given)) if other.ban.holds(now) else other
        for name, other in wiring.replicas.items()
    }
    return Wiring({**replicas, peer: replica._replace(given=given, sent=replica.sent + 1)})


def moved(wiring: Wiring, peer: str, before: Place, after: Place | None) -> Wiring:
    """The wiring after an open call of `peer` went from one place to another, or ended."""
    replica = wiring.replicas.get(peer)
    if replica is None or before is after:
        return wiring
    # It may have been gone from the records in between: then there is nothing to take away.
    counts = {before.value: max(0, getattr(replica, before.value) - 1)}
    if after is not None:
        counts[after.value] = getattr(replica, after.value) + 1
    return wiring.replaced(replica._replace(**counts))


def told(wiring: Wiring, peer: str, load: Load, now: float) -> Wiring:
    """The wiring after `peer` has said how loaded it is. It had not seen what is under way to it."""
    replica = wiring.replicas.get(peer)
    if replica is None:
        return wiring
    ours = replica.ahead * load.service + replica.returning * load.backward
    return wiring.replaced(Replica(*replica[:-3], load, max(0.0, load.backlog - ours), now))


def accepted(wiring: Wiring, peer: str, seconds: float) -> Wiring:
    """The wiring after `peer` took `seconds` to accept a call."""
    replica = wiring.replicas.get(peer)
    if replica is None:
        return wiring
    link = seconds if replica.link is None else replica.link + SMOOTHING * (seconds - replica.link)
    return wiring.replaced(replica._replace(link=link))


def succeeded(wiring: Wiring, peer: str, seconds: float) -> Wiring:
    """The wiring after a good exchange of `seconds` with `peer`."""
    replica = wiring.replicas.get(peer)
    if replica is None:
        return wiring
    timed = _timed(replica, seconds)
    return wiring.replaced(timed._replace(ban=timed.ban.after_success()))


def compared(wiring: Wiring, peer: str, seconds: float, expected: float) -> Wiring:
    """The wiring after a call took `seconds` where `expected` were, with the excess that was known then."""
    replica = wiring.replicas.get(peer)
    if replica is None or expected <= 0:
        return wiring
    ratio = min(MAX_EXCESS, max(1 / MAX_EXCESS, seconds / expected))
    excess = min(MAX_EXCESS, max(1.0, replica.excess * ratio**SMOOTHING))
    return wiring.replaced(replica._replace(excess=excess))


def failed(wiring: Wiring, peer: str, began: float, now: float) -> Wiring:
    """The wiring after a call of `peer` that began at `began` failed, or was overtaken by its hedge."""
    replica = wiring.replicas.get(peer)
    if replica is None:
        return wiring
    return wiring.replaced(replica._replace(ban=replica.ban.after_failure(began, now)))


def overtaken(wiring: Wiring, peer: str, began: float, now: float) -> Wiring:
    """The wiring after a call of `peer` lost to its hedge: the time it has taken counts, and it is banned."""
    replica = wiring.replicas.get(peer)
    if replica is None:
        return wiring
    return failed(wiring.replaced(_timed(replica, now - began)), peer, began, now)


def gone(wiring: Wiring, peer: str) -> Wiring:
    """The wiring without `peer`, until a record shows it again."""
    return Wiring({name: replica for name, replica in wiring.replicas.items() if name != peer})


def _timed(replica: Replica, seconds: float) -> Replica:
    weight = max(SMOOTHING, 1 / (replica.measured + 1))
    mean = replica.seconds + weight * (seconds - replica.seconds)
    return replica._replace(seconds=mean, measured=replica.measured + 1)
