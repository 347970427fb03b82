"""Our routing policy: the replica with the least work in front, where work is what it takes until a visit is served.

Work is the link, what is in front of the visit, a part of its own compute, and what comes below. In front is what the
caller's own open calls still need, which it knows exactly, and what other callers have there, by the peer's last word.
A peer that takes longer than it says is believed that much less. What a peer said long ago fades: its queue within
seconds, its pace more slowly towards what is usual in the stage, so that one that was slow once is tried again.

Counting all of the visit's own compute would be the shortest expected delay, which serves each visit best and leaves
slow devices idle (Whitt 1986, "Deciding which queue to join"); counting none of it keeps all busy and sends a visit to
a slow one while a fast one is about to be free. Half is as good as the better of both (`benchmarks/routing.py`).
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from .loads import UNMEASURED, Load
from .routing import Replica

QUEUE_FADES_SECONDS = 2.0
"""Half-life of what other callers had in a peer's queue."""

PACE_FADES_SECONDS = 20.0
"""Half-life of how a peer's pace differs from the usual."""

OWN_COMPUTE_SHARE = 0.5
"""How much of a visit's own compute counts in the choice."""


class Forecast(NamedTuple):
    """Seconds of a visit that is sent now: on the `link`, for the work `ahead` of it, in its own `service`, `below`."""

    link: float
    ahead: float
    service: float
    below: float

    @property
    def own(self) -> float:
        """Until the peer has done its own part."""
        return self.link + self.ahead + self.service

    @property
    def total(self) -> float:
        return self.own + self.below

    @property
    def cost(self) -> float:
        """By which peers are chosen."""
        return self.total - (1 - OWN_COMPUTE_SHARE) * self.service


def least_work(replicas: Sequence[Replica], now: float, draw: random.Random) -> Replica:
    """The policy (`routing.Policy`)."""
    costs = [forecast.cost for forecast in forecasts(replicas, now)]
    least = min(costs)
    return draw.choice([replica for replica, cost in zip(replicas, costs, strict=True) if cost == least])


def forecasts(replicas: Sequence[Replica], now: float) -> list[Forecast]:
    """What is expected of each replica. What is not known of one is taken to be as usual among the others."""
    usual = _usual(replicas)
    link = _mean([replica.link for replica in replicas if replica.link is not None] or [0.0])
    return [_forecast(replica, usual, link, now) for replica in replicas]


def _forecast(replica: Replica, usual: Load, link: float, now: float) -> Forecast:
    age = max(0.0, now - replica.heard)
    trust = _left(age, PACE_FADES_SECONDS)
    said = replica.load or usual
    forward = usual.forward + trust * (said.forward * replica.excess - usual.forward)
    backward = usual.backward + trust * (said.backward * replica.excess - usual.backward)
    others = replica.others * _left(age, QUEUE_FADES_SECONDS)
    ours = (replica.sent + replica.ahead) * (forward + backward) + replica.returning * backward
    return Forecast(link if replica.link is None else replica.link, others + ours, forward + backward, said.below)


def _left(age: float, half_life: float) -> float:
    return math.exp2(-age / half_life)


def _usual(replicas: Sequence[Replica]) -> Load:
    loads = [replica.load for replica in replicas if replica.load is not None]
    if not loads:
        return Load(*UNMEASURED)
    return Load(
        forward=_mean([load.forward for load in loads]),
        backward=_mean([load.backward for load in loads]),
        below=_mean([load.below for load in loads]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
