"""A swarm as rates alone: machines come and go by a seeded trace, placement and rebalancing are the product's.

A stage is as fast as its replicas together, the run as its slowest stage. Nobody computes anything. Time is in seconds
of the trace; nothing sleeps.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from swarm_peer.swarm.placement import Hosted
from swarm_peer.swarm.rebalancing import Move

HOUR = 3600.0
LEAST_AWAY = 60.0
TURNS = 20


@dataclass(frozen=True, slots=True)
class Trace:
    """How machines come and go. All are there at first. `losses`: preemptions of a machine an hour, besides waves; a
    wave takes a share of one of the zones, and comes `waves` times an hour. Whoever is gone comes back after `back`
    seconds in the mean, after a wave `back_after_wave`. `skew`: the fastest machine is so many times as fast as the
    slowest (log-uniform)."""

    machines: int = 400
    hours: float = 32.0
    losses: float = 0.02
    back: float = 1200.0
    waves: float = 0.25
    zones: int = 8
    back_after_wave: float = 3600.0
    rising: float = 0.0
    skew: float = 1.0

    def rates(self, seed: int) -> list[float]:
        draw = random.Random(f"rates {seed}")
        return [self.skew ** draw.random() if self.skew > 1 else 1.0 for _ in range(self.machines)]

    def events(self, seed: int) -> Iterator[tuple[float, int, bool]]:
        """(second, machine, whether it comes), in order."""
        draw = random.Random(f"trace {seed}")
        up = list(range(self.machines))
        zone = [draw.randrange(self.zones) for _ in up]
        coming: list[tuple[float, int]] = []
        end = self.hours * HOUR
        now = wave = loss = 0.0
        while True:
            # Both are drawn at their highest rate, and thinned.
            wave = wave if wave > now else now + _wait(draw, self.waves * (1 + self.rising))
            loss = now + _wait(draw, len(up) * self.losses * (1 + self.rising))
            now = min(wave, loss, coming[0][0] if coming else math.inf)
            if now >= end:
                return
            if coming and now == coming[0][0]:
                up.append(heapq.heappop(coming)[1])
                yield now, up[-1], True
            elif draw.random() < (now / end) ** self.rising:
                hit, share = draw.randrange(self.zones), draw.uniform(0.2, 0.9)
                gone = [machine for machine in up if zone[machine] == hit and draw.random() < share]
                gone = gone if now == wave else [draw.choice(up)]
                for machine in gone:
                    up.remove(machine)
                    back = self.back_after_wave if now == wave else self.back
                    heapq.heappush(coming, (now + LEAST_AWAY + draw.expovariate(1 / back), machine))
                    yield now, machine, False


def _wait(draw: random.Random, hourly: float) -> float:
    return draw.expovariate(hourly / HOUR) if hourly else math.inf


Place = Callable[[Sequence[Sequence[Hosted]]], int]
Decide = Callable[[float, Sequence[Sequence[Hosted]]], Move | None]
Settled = Callable[[float, int, bool], None]


@dataclass(frozen=True, slots=True)
class Moved:
    """A move that has ended: `ok` if its mover arrived."""

    began: float
    ended: float
    machine: int
    source: int
    target: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Span:
    """From `since` to `until` nothing changed: the rate of the slowest stage, and the true rates of all who serve."""

    since: float
    until: float
    slowest: float
    serving: tuple[float, ...]


class Churn:
    """One run of a trace under a policy.

    `hosts`: the stage of each machine at first; by default they are dealt out, the fastest first. `loading`: seconds
    that a joiner or a mover loads; a mover serves its old stage meanwhile, and stays there if it has become the last.
    `noise`: measured rates are off by up to that share; they are known after `measured_after` seconds, and measured
    anew every twenty `tick`s, by turns.
    """

    def __init__(
        self,
        trace: Trace,
        seed: int,
        stages: int,
        place: Place,
        decide: Decide | None = None,
        settled: Settled | None = None,
        *,
        hosts: Sequence[int] | None = None,
        loading: float = 0.0,
        noise: float = 0.05,
        measured_after: float = 60.0,
        tick: float = 30.0,
    ) -> None:
        self.trace, self.seed, self.stages, self.hosts = trace, seed, stages, hosts
        self.place, self._decide, self._settled = place, decide, settled
        self.loading, self.noise, self.measured_after, self.tick = loading, noise, measured_after, tick
        self.rates = trace.rates(seed)
        self.moves: list[Moved] = []
        self.spans: list[Span] = []
        self.losses = 0
        self.emptied: list[Move] = []
        """Moves of the last one of a stage that served."""
        self._draw = random.Random(f"noise {seed}")
        self._at: list[dict[int, Hosted]] = [{} for _ in range(stages)]
        self._where: dict[int, int] = {}
        self._queue: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = self._members = 0
        self._moving: dict[int, tuple[Move, float]] = {}
        self._changed = 0.0

    def simulate(self) -> "Churn":
        for machine, stage in enumerate(self.hosts or self._dealt_out()):
            self._host(machine, stage, since=-HOUR, ready=True, measured=True)
        for when, machine, comes in self.trace.events(self.seed):
            self._later(when, partial(self._come_or_go, machine, comes))
        end = self.trace.hours * HOUR
        if self._decide:
            self._later(0.0, self._ticking)
        while self._queue and self._queue[0][0] < end:
            now, _, act = heapq.heappop(self._queue)
            act(now)
        self._record(end)
        return self

    # ---- what happens

    def _ticking(self, now: float) -> None:
        """A twentieth of the rates is measured anew; the policy is asked."""
        for machine in range(round(now / self.tick) % TURNS, self.trace.machines, TURNS):
            if machine in self._where:
                at = self._at[self._where[machine]]
                was = at[machine]
                rate = self._measure(machine) if was.rate else 0.0
                at[machine] = Hosted(was.member, was.peer, rate, was.since, was.ready)
        self._ask(now)
        self._later(now + self.tick, self._ticking)

    def _come_or_go(self, machine: int, comes: bool, now: float) -> None:
        self._record(now)
        if comes:
            self._host(machine, self.place(self.snapshot()), since=now, ready=not self.loading)
            self._later(now + self.loading, partial(self._loaded, machine, self._members))
        else:
            del self._at[self._where.pop(machine)][machine]
            self.losses += 1
            if machine in self._moving:
                self._end_move(now, machine, ok=False)
        self._ask(now)

    def _loaded(self, machine: int, member: int, now: float) -> None:
        hosted = self._find(machine, member)
        if hosted:
            self._record(now)
            self._at[self._where[machine]][machine] = replace(hosted, ready=True)
            self._later(now + self.measured_after, lambda later: self._measured(later, machine, member))

    def _measured(self, now: float, machine: int, member: int) -> None:
        hosted = self._find(machine, member)
        if hosted:
            self._at[self._where[machine]][machine] = replace(hosted, rate=self._measure(machine))

    def _ask(self, now: float) -> None:
        move = self._decide(now, self.snapshot()) if self._decide else None
        if move is None:
            return
        machine = next(at for at, hosted in self._at[move.source].items() if hosted.member == move.member)
        if self._is_last(machine, move.source):
            self.emptied.append(move)
        self._moving[machine] = move, now
        self._later(now + self.loading, lambda later: self._arrive(later, machine, move))

    def _arrive(self, now: float, machine: int, move: Move) -> None:
        if self._moving.get(machine, (None,))[0] is not move:
            return
        if self._is_last(machine, move.source):
            self._end_move(now, machine, ok=False)
            return
        self._record(now)
        del self._at[move.source][machine]
        self._host(machine, move.target, since=now, ready=True)
        member = self._members
        self._later(now + self.measured_after, lambda later: self._measured(later, machine, member))
        self._end_move(now, machine, ok=True)

    def _end_move(self, now: float, machine: int, ok: bool) -> None:
        move, began = self._moving.pop(machine)
        self.moves.append(Moved(began, now, machine, move.source, move.target, ok))
        if self._settled:
            self._settled(now, move.member, ok)

    # ---- the state

    def snapshot(self) -> list[list[Hosted]]:
        return [list(hosted.values()) for hosted in self._at]

    def _dealt_out(self) -> list[int]:
        """To and fro over the stages, the fastest machines first."""
        hosts = [0] * self.trace.machines
        order = sorted(range(self.trace.machines), key=lambda machine: -self.rates[machine])
        for index, machine in enumerate(order):
            column, at = divmod(index, self.stages)
            hosts[machine] = at if column % 2 == 0 else self.stages - 1 - at
        return hosts

    def _is_last(self, machine: int, stage: int) -> bool:
        return not any(hosted.ready for at, hosted in self._at[stage].items() if at != machine)

    def _host(self, machine: int, stage: int, *, since: float, ready: bool, measured: bool = False) -> None:
        self._members += 1
        rate = self._measure(machine) if measured else 0.0
        self._at[stage][machine] = Hosted(self._members, f"machine {machine}", rate, since, ready)
        self._where[machine] = stage

    def _find(self, machine: int, member: int) -> Hosted | None:
        hosted = self._at[self._where[machine]][machine] if machine in self._where else None
        return hosted if hosted and hosted.member == member else None

    def _measure(self, machine: int) -> float:
        return self.rates[machine] * (1 + self.noise * (2 * self._draw.random() - 1))

    def _record(self, now: float) -> None:
        """The span that ends now. To be called before anything changes who serves where."""
        if now > self._changed:
            rates = [[self.rates[machine] for machine, hosted in at.items() if hosted.ready] for at in self._at]
            serving = tuple(rate for stage in rates for rate in stage)
            self.spans.append(Span(self._changed, now, min(sum(stage) for stage in rates), serving))
        self._changed = now

    def _later(self, when: float, act: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (when, self._order, act))
