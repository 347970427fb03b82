"""Hedging: when a slow hop is asked of a second replica as well.

A call is judged by its callee's own phases (queued, forward, backward), never by what it waits for below: `PhaseClock`
runs only meanwhile. `OwnTimes` remembers how long that took in recent calls of the stage; a call beyond a few times
their 95th percentile is hedged, as far as the `Budget` goes, which keeps a swarm that has become slower as a whole from
doing everything twice. Until its callee has all of it a call is judged by how long that took others, and not before
that is known: on a slow link everything takes long, and would the longer if it were sent twice. (Dean and Barroso, "The
Tail at Scale", 2013.) Pure: times are passed in.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from ..protos import swarm_pb2 as pb

FACTOR = 3.0
"""k of k x p95."""

LEAST_SECONDS = 1.0
"""No call is hedged sooner: a pause of the machine or the network is not a slow peer."""

UNMEASURED_SECONDS = 30.0
"""The limit before there are enough calls to judge by."""

ENOUGH = 8
WINDOW = 100
"""Calls that the percentile is taken of: at least, at most."""

PERCENTILE = 0.95

BUDGET = 8.0
"""Hedges that may begin at once."""

BUDGET_PER_CALL = 0.1
BUDGET_PER_SECOND, BUDGET_PER_LIMIT = 1.0, 2.0
"""Whichever is less: it lets a swarm go on in which everything waits for hung visits. Where calls take long, because
links are slow, a hedge a second would take more of them than there is, and make every call late."""


class PhaseClock(NamedTuple):
    """Seconds a call has spent in its callee's own phases. `since`: from when on it runs; None: it stands still.
    `computed`: whether the callee has begun to compute for this call."""

    since: float | None
    spent: float = 0.0
    computed: bool = False

    def entered(self, phase: pb.Phase, now: float) -> "PhaseClock":
        """The clock after the callee has entered a phase."""
        spent = self.own(now)
        computed = self.computed or phase in (pb.FORWARD, pb.BACKWARD)
        return PhaseClock(None if phase == pb.BELOW else now, spent, computed)

    def own(self, now: float) -> float:
        return self.spent + (0.0 if self.since is None else max(0.0, now - self.since))

    def reaches(self, limit: float) -> float | None:
        """The time at which it will have run for `limit` seconds; None while it stands still."""
        return None if self.since is None else self.since + limit - self.spent


@dataclass(slots=True)
class OwnTimes:
    """Own-phase seconds of recent calls of one stage, and the limit that follows from them; or those until a callee had
    all of a call."""

    _limit: float = UNMEASURED_SECONDS
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)
        if len(self._recent) >= ENOUGH:
            ranked = sorted(self._recent)
            self._limit = max(LEAST_SECONDS, FACTOR * ranked[int(PERCENTILE * (len(ranked) - 1))])

    @property
    def limit(self) -> float:
        """Seconds after which a call is hedged."""
        return self._limit

    def limit_of(self, expected: float) -> float:
        """The same of a call that was expected to take so long, by what its callee said, for which it does not count
        any more once others have been measured."""
        return self._limit if len(self._recent) >= ENOUGH else max(self._limit, FACTOR * expected)


class Budget(NamedTuple):
    """How many hedges may begin, as of a time."""

    left: float = BUDGET
    at: float = 0.0

    def after_call(self) -> "Budget":
        return self._replace(left=min(BUDGET, self.left + BUDGET_PER_CALL))

    def spend(self, now: float, limit: float) -> "Budget | None":
        """The budget after one more hedge, of a call that is beyond this limit; None if it does not allow one yet."""
        rate = min(BUDGET_PER_SECOND, BUDGET_PER_LIMIT / limit)
        left = min(BUDGET, self.left + rate * max(0.0, now - self.at))
        return Budget(left - 1, now) if left >= 1 else None
