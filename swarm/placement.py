"""Where a joiner is placed: on the stage where it raises the run's throughput most. Pure; knows no socket, no clock.

A run is as fast as its slowest stage, and a stage as fast as its replicas together, so that is the stage whose rates
have the least sum. What is measured is never exact: sums that measurement cannot tell apart count as equal, and then
the fewest replicas decide, as they do where nothing is measured. `rebalancing.py` judges by the same sums.

Errors: `ValueError` where there is no stage to choose from.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

NOISE = 0.10
"""How far the measured rates of two equal replicas may be apart. Over n replicas it averages out: their sum is off by
1/sqrt(n) of it, which for more than ten replicas is less than one of them brings; a tenth of the sum would be more."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """One replica of a stage. `member`: its number, the newest have the highest; `peer`: whose it is, by its key.

    `rate`: visits a second that it could do (1 / the seconds of its own phases, not what it was given to do), 0 while
    that is not measured. `since`: when it came to this stage. `ready`: whether it takes visits, or still loads.
    `leaving`: whether it is about to go; then its stage can do without it only when another has come. `besides`: other
    stages of the same machine. A mover that loads counts where it is on its way to.
    """

    member: int
    peer: str
    rate: float = 0.0
    since: float = 0.0
    ready: bool = True
    leaving: bool = False
    besides: tuple[int, ...] = ()


Stages = Sequence[Sequence[Hosted]]
"""The replicas of each stage."""


def staying(replicas: Sequence[Hosted]) -> list[Hosted]:
    """Those that are not about to go: no one else is counted on."""
    return [hosted for hosted in replicas if not hosted.leaving]


def typical_rate(stages: Stages) -> float:
    """What a replica counts as whose rate is not measured: the mean of those of the run that are, 1 if none is."""
    measured = [hosted.rate for replicas in stages for hosted in replicas if hosted.rate > 0]
    return math.fsum(measured) / len(measured) if measured else 1.0


def total_rate(replicas: Sequence[Hosted], typical: float) -> float:
    """Visits a second of a stage; the same in whatever order its replicas are given."""
    return math.fsum([hosted.rate if hosted.rate > 0 else typical for hosted in replicas])


def place(stages: Stages, besides: Collection[int] = (), min_replicas: int = 1) -> int:
    """The stage for a joiner whose machine hosts `besides`; a span of stages comes of repeated calls.

    A stage with fewer than `min_replicas` comes first. Ties: the fewest replicas, then the fewest that are about to go
    (with none at all the run stands still), then a stage next to one of `besides` (nothing crosses the link inside a
    span), then the lowest. Nothing measured: the fewest replicas, then the lowest.
    """
    counted = [staying(replicas) for replicas in stages]
    replicas = {at: those for at, those in enumerate(counted) if at not in besides}
    if not replicas:
        raise ValueError(f"a joiner whose machine hosts {sorted(besides)} of {len(stages)} stages: none is left for it")
    measured = any(hosted.rate > 0 for stage in counted for hosted in stage)
    candidates = [at for at, those in replicas.items() if len(those) < min_replicas]
    if measured and not candidates:
        typical = typical_rate(counted)
        totals = {at: total_rate(those, typical) for at, those in replicas.items()}
        least = min(totals, key=lambda at: totals[at])
        equal = totals[least] * (1 + NOISE / math.sqrt(max(1, len(replicas[least]))))
        candidates = [at for at, total in totals.items() if total <= equal]

    def order(at: int) -> tuple[int, int, bool, int]:
        apart = measured and not {at - 1, at + 1} & set(besides)
        return len(replicas[at]), len(stages[at]), apart, at

    return min(candidates or replicas, key=order)
