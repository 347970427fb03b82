"""SWARM's interleaved weighted round-robin (Ryabinin et al. 2023, arXiv 2301.11913, §3.2), the baseline.

Each peer carries the time that the work given to it is expected to take, by a smoothed mean of measured exchange times;
the next microbatch goes to the peer that carries least, ties at random.
"""

import random
from collections.abc import Sequence

from .routing import Replica


def round_robin(replicas: Sequence[Replica], now: float, draw: random.Random) -> Replica:
    """The policy (`routing.Policy`)."""
    least = min(replica.given for replica in replicas)
    return draw.choice([replica for replica in replicas if replica.given == least])
