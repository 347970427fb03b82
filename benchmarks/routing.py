"""Routing policies side by side, on virtual time with the real trainer and peers (`tests/closed_loop.py`).

    python benchmarks/routing.py [--only NAME...] [--seconds S]
    python benchmarks/routing.py --views [--seconds S]

Throughput is given as a share of what the devices could do at most, beside the 99th percentile of a microbatch's
seconds. Two columns live here only. `SWARM's rule` is its round-robin with its way with a slow peer: a deadline of
30 s, after which another is asked, and which is not held against anybody; the second column is that round-robin with
our hedging and bans. `all-knowing` sees every queue at once, also what others have just sent there.

`--views`: by how many replicas of a large stage a peer should go.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))

from swarm_peer.simulations.devices import SimulatedDevice
from swarm_peer.swarm import peer
from swarm_peer.swarm.compute import BACKWARD, FORWARD
from swarm_peer.swarm.hedging import Budget, OwnTimes
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.neighbours import Call
from swarm_peer.swarm.routing import Replica

from tests.closed_loop import EVEN, UNEVEN, WARM_UP_SECONDS, Loop, Script, Served, closed_loop

HANG_AT = WARM_UP_SECONDS
RECOVERED_SECONDS = 60.0
DRIFT_SECONDS = 30.0
KILL_SECONDS, DOWN_SECONDS = 15.0, 8.0
SWARM_DEADLINE_SECONDS = 30.0


@dataclass
class AllKnowing:
    """The policy that knows, at every peer, the work that is there or under way to it, and how fast the device is."""

    loop: Loop
    _sent: dict[str, float] = field(default_factory=dict)
    _done: dict[str, float] = field(default_factory=dict)

    def __call__(self, replicas: Sequence[Replica], now: float, draw: Random) -> Replica:
        costs = [self._cost(replica.peer) for replica in replicas]
        chosen = draw.choice([replica for replica, cost in zip(replicas, costs, strict=True) if cost == min(costs)])
        self._sent[chosen.peer] = self._sent.get(chosen.peer, 0.0) + 1
        return chosen

    def watch(self, peer: str, moment: Moment) -> None:
        """A visit has had a third of its compute when it goes on below, and all when it is held."""
        last = moment.stage == self.loop.stages - 1
        share = {"below": 1 / 3, "held": 1.0 if last else 2 / 3}.get(moment.name, 0.0)
        self._done[peer] = self._done.get(peer, 0.0) + share

    def _cost(self, peer: str) -> float:
        device: SimulatedDevice = self.loop.swarm.devices[peer]
        if peer in self.loop.swarm.killed:
            self._sent[peer] = self._done[peer] = 0.0  # nothing of it comes back
            return float("inf")
        if not device.going:
            return float("inf")
        service = device.durations[FORWARD] + device.durations[BACKWARD]
        ahead = max(0.0, self._sent.get(peer, 0.0) - self._done.get(peer, 0.0))
        return (ahead + 0.5) * service


def nothing(loop: Loop) -> None:
    """Nothing happens."""


def drift(loop: Loop) -> None:
    """Speeds move on to the next peer, again and again; their sum stays."""

    def turn(times: int) -> None:
        loop.set_rates([*loop.rates[-times % 8 :], *loop.rates[: -times % 8]])
        loop.swarm.later(DRIFT_SECONDS, lambda: turn(times + 1))

    loop.swarm.later(DRIFT_SECONDS, lambda: turn(1))


def kills(loop: Loop) -> None:
    """A peer is killed and comes back, one after the other."""

    def kill(victim: int) -> None:
        name = loop.name(0, victim % 8)
        loop.swarm.kill(name)
        loop.swarm.later(DOWN_SECONDS, lambda: back(name, victim % 8))
        loop.swarm.later(KILL_SECONDS, lambda: kill(victim + 1))

    def back(name: str, replica: int) -> None:
        loop.swarm.restart(name)
        loop.set_rate(0, replica, loop.rates[replica])

    loop.swarm.later(HANG_AT, lambda: kill(0))


def hang(loop: Loop) -> None:
    """The device of one peer hangs for ever; its heartbeats go on."""
    loop.swarm.later(HANG_AT, lambda: loop.swarm.devices[loop.name(0, 3)].hang())


@dataclass(frozen=True, slots=True)
class Scenario:
    """`left`: the share of the capacity that what happens leaves; measured from `since` on."""

    name: str
    rates: Sequence[float]
    in_flight: Sequence[int]
    stages: int = 1
    batch: int | None = None
    script: Script = nothing
    left: float = 1.0
    since: float = WARM_UP_SECONDS


SCENARIOS = (
    Scenario("equal", EVEN, (16, 32, 64)),
    Scenario("uneven", UNEVEN, (16, 32, 64)),
    Scenario("uneven, 2 stages", UNEVEN, (32, 64), stages=2),
    Scenario("uneven, 3 stages", UNEVEN, (48, 96), stages=3),
    Scenario("drifting", UNEVEN, (32, 64), script=drift),
    Scenario("failing", EVEN, (32, 64), batch=100, script=kills, left=1 - DOWN_SECONDS / KILL_SECONDS / 8),
    Scenario("hanging", EVEN, (32, 64), script=hang, left=7 / 8, since=HANG_AT + RECOVERED_SECONDS),
)


LARGE = Scenario("three stages of 48", UNEVEN * 6, (400,), stages=3)
VIEWS = (4, 8, 16, 48)


def swarm_served(scenario: Scenario, in_flight: int, seconds: float) -> Served:
    with (
        patch.object(OwnTimes, "limit", SWARM_DEADLINE_SECONDS),
        patch.object(Budget, "spend", lambda budget, now: budget),
        patch.object(Call, "overtaken", lambda call, now: None),
    ):
        return _served(scenario, in_flight, seconds, "round-robin")


def round_robin_served(scenario: Scenario, in_flight: int, seconds: float) -> Served:
    return _served(scenario, in_flight, seconds, "round-robin")


def least_work_served(scenario: Scenario, in_flight: int, seconds: float) -> Served:
    return _served(scenario, in_flight, seconds, "least-work")


def all_knowing_served(scenario: Scenario, in_flight: int, seconds: float) -> Served:
    loop = Loop(scenario.rates, in_flight, scenario.stages, scenario.batch)
    policy = AllKnowing(loop)
    loop.watch = policy.watch
    until = scenario.since + seconds
    return closed_loop(loop, until=until, since=scenario.since, script=scenario.script, policies={"least-work": policy})


def _served(scenario: Scenario, in_flight: int, seconds: float, routing: str) -> Served:
    loop = Loop(scenario.rates, in_flight, scenario.stages, scenario.batch)
    until = scenario.since + seconds
    return closed_loop(loop, until=until, since=scenario.since, script=scenario.script, routing=routing)


POLICIES: dict[str, Callable[[Scenario, int, float], Served]] = {
    "SWARM's rule": swarm_served,
    "its round-robin": round_robin_served,
    "least work (default)": least_work_served,
    "all-knowing": all_knowing_served,
}


def views(seconds: float) -> None:
    print(f"| {LARGE.name}, {LARGE.in_flight[0]} in flight: a peer goes by | share | p99 s |")
    print("|---|---|---|")
    for view in VIEWS:
        with patch.object(peer, "VIEW", view):
            served = least_work_served(LARGE, LARGE.in_flight[0], seconds)
        print(f"| {view} | {served.rate / sum(LARGE.rates):.3f} | {served.p99:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[scenario.name for scenario in SCENARIOS])
    parser.add_argument("--seconds", type=float, default=120.0, help="virtual seconds that are measured")
    parser.add_argument("--views", action="store_true", help="by how many replicas of a large stage a peer should go")
    options = parser.parse_args()
    if options.views:
        views(options.seconds)
        return
    print(f"| swarm | in flight | {' | '.join(f'{name}: share | p99 s' for name in POLICIES)} |")
    print("|---|---|" + "---|---|" * len(POLICIES))
    for scenario in SCENARIOS:
        if options.only and scenario.name not in options.only:
            continue
        for in_flight in scenario.in_flight:
            cells = []
            for served_by in POLICIES.values():
                served = served_by(scenario, in_flight, options.seconds)
                cells.append(f"{served.rate / (scenario.left * sum(scenario.rates)):.3f} | {served.p99:.2f}")
            print(f"| {scenario.name} | {in_flight} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
