"""Keeps books of a run of a scenario while it goes on: what was trained, by whom, and what befell it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any, NamedTuple

from ..swarm.manifest import Manifest
from ..swarm.sizes import visit_tokens
from .machines import Machine
from .outcome import Losses, Outcome, StageOutcome
from .scenario import Happening, Scenario

LEAST_TIMED = 3
"""With more steps than this, the last one of a finished run is not timed."""

NOTED_SHARE = 200
"""Where more machines than that come and go, not each changes what all could do by anything to speak of."""

SEEN = frozenset({"stepped", "lost", "left", "moved", "went-back"})
"""The kinds of events that count."""


@dataclass
class Stay:
    """A peer at a stage, from when it was placed there until it was gone; `worked`: seconds of visits so far."""

    machine: Machine
    stage: int
    began: float
    worked: Callable[[], float]
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """Tokens a second from `at` on: of all machines that were up; of those that hosted a stage, if work
    were divided perfectly; and of the weakest stage."""

    at: float
    up: float
    hosting: float
    weakest: float


class Look(NamedTuple):
    """`waiting`: visits in front of the devices of each stage; `sent`: bytes of all machines so far."""

    waiting: Sequence[int]
    sent: float


@dataclass
class Books:
    """`now`: seconds since the scenario began."""

    scenario: Scenario
    manifest: Manifest
    seed: int
    machines: Sequence[Machine]
    now: Callable[[], float]
    look: Callable[[], Look] = field(default=lambda: Look((), 0.0))
    """What is seen of the swarm at this moment."""

    steps: list[tuple[float, int]] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)
    _undone: int = 0
    """Tokens of steps that were committed and are not any more."""

    _capacities: list[Capacity] = field(default_factory=list)
    _unnoted: int = 0
    """Machines that have come or gone since the last look at what all could do."""

    _happened: list[tuple[float, str, int]] = field(default_factory=list)
    _stays: list[Stay] = field(default_factory=list)
    _here: dict[int, Stay] = field(default_factory=dict)
    """Those that have not ended, by their place among all."""

    _looks: list[tuple[float, Look]] = field(default_factory=list)

    def see(self, event: dict[str, Any]) -> None:
        """An event of a coordinator, as it is told in JSON; of those that are `SEEN`."""
        kind = event["event"]
        if kind == "moved" and event["error"]:
            return
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if kind == "stepped":
            self.steps.append((self.now(), event["tokens"]))
            self.stale.append(event["step"] - event["version"])
            self._looks.append((self.now(), self.look()))
        elif kind == "went-back" and event["lost"]:
            self._counts["undone"] = self._counts.get("undone", 0) + event["lost"]
            self._undone += sum(tokens for _, tokens in self.steps[-event["lost"] :])
            del self.steps[-event["lost"] :], self.stale[-event["lost"] :]

    def tell(self, happening: Happening, hit: int) -> None:
        """So many machines were hit."""
        self._happened.append((self.now(), happening.kind, hit))

    def begin_stay(self, machine: Machine, stage: int, worked: Callable[[], float]) -> Callable[[], None]:
        """A peer is at a stage; the answer says that it is gone."""
        stay, number = Stay(machine, stage, self.now(), worked), len(self._stays)
        self._stays.append(stay)
        self._here[number] = stay
        self.note()

        def end() -> None:
            stay.ended = self.now()
            del self._here[number]
            self.note()

        return end

    def note(self) -> None:
        """A machine has come or gone; of many, all are looked at no sooner than for a two-hundredth of them."""
        self._unnoted += 1
        if self._unnoted * NOTED_SHARE >= len(self._here):
            self._look_at_all()

    def _look_at_all(self) -> None:
        self._unnoted = 0
        here = self._here.values()
        hosting = {stay.machine.number: stay.machine for stay in here}
        stages = [0.0] * self.manifest.stages
        for stay in here:
            stages[stay.stage] += 1 / sum(stay.machine.seconds[stay.stage]) / stay.machine.slowdown
        tokens = visit_tokens(self.manifest)
        self._capacities.append(
            Capacity(
                self.now(),
                tokens * _rate([machine for machine in self.machines if machine.up or machine.number in hosting]),
                tokens * _rate(hosting.values()),
                tokens * min(stages),
            )
        )

    # ---- what came of it

    def outcome(
        self,
        report: dict[str, Any],
        *,
        finished: bool,
        bytes_up: float,
        bytes_down: float,
        explained: str,
        router: float = 0.0,
    ) -> Outcome:
        """`report`: of the coordinator that led at the end."""
        now = self.now()
        if self._unnoted:
            self._look_at_all()
        # Devices work at the next step while one is closed: at the first one's that counts, so the last does not.
        timed = self.steps[:-1] if finished and len(self.steps) > LEAST_TIMED else self.steps
        first, last = (timed[0][0], timed[-1][0]) if timed else (0.0, 0.0)
        measured = last - first
        trained = sum(tokens for _, tokens in timed[1:])
        rate = trained / measured if measured else 0.0
        bound = self._mean("up", first, last)
        times = [at for at, _ in self.steps]
        return Outcome(
            scenario=self.scenario.title,
            seed=self.seed,
            seconds=now,
            finished=finished,
            steps=tuple(self.steps),
            measured=measured,
            tokens_per_second=rate,
            bound=bound,
            losses=self._losses(rate, bound, report["ledger"]["reissued"], first, last),
            step_seconds=median([after - before for before, after in pairwise(times)] or [0.0]),
            stages=tuple(self._stage(stage, now) for stage in range(self.manifest.stages)),
            lost=self._counts.get("lost", 0),
            left=self._counts.get("left", 0),
            moved=self._counts.get("moved", 0),
            went_back=self._counts.get("went-back", 0),
            steps_undone=self._counts.get("undone", 0),
            recoveries=tuple(fault["rerouted_s"] for fault in report["faults"] if fault.get("rerouted_s") is not None),
            reissued=report["ledger"]["reissued"],
            stale=tuple(self.stale),
            traffic=tuple((at, look.sent) for at, look in self._looks),
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            happened=tuple(self._happened),
            explained=explained,
            router=router,
        )

    def _losses(self, rate: float, bound: float, reissued: int, first: float, last: float) -> Losses:
        if not bound:
            return Losses(0.0, 0.0, 0.0, 0.0)
        hosting, weakest = self._mean("hosting", first, last), self._mean("weakest", first, last)
        visits = len(self.steps) * self.manifest.microbatches * self.manifest.stages
        repeated = rate * reissued / visits if visits else 0.0
        repeated += self._undone / (last - first) if last > first else 0.0
        return Losses(
            absent=(bound - hosting) / bound,
            uneven=(hosting - weakest) / bound,
            repeated=repeated / bound,
            waited=(weakest - repeated - rate) / bound,
        )

    def _mean(self, name: str, first: float, last: float) -> float:
        return mean_of([(capacity.at, getattr(capacity, name)) for capacity in self._capacities], first, last)

    def _stage(self, stage: int, now: float) -> StageOutcome:
        stays = [stay for stay in self._stays if stay.stage == stage]
        seconds = sum((now if stay.ended is None else stay.ended) - stay.began for stay in stays)
        worked = sum(stay.worked() for stay in stays)
        waiting = [look.waiting[stage] for _, look in self._looks if look.waiting]
        return StageOutcome(
            replicas=seconds / now if now else 0.0,
            busy=worked / seconds if seconds else 0.0,
            waiting=fmean(waiting) if waiting else 0.0,
        )


def _rate(machines: Iterable[Machine]) -> float:
    """Microbatches a second of whole models."""
    return float(sum(machine.rate / machine.slowdown for machine in machines))


def mean_of(values: Sequence[tuple[float, float]], first: float, last: float) -> float:
    """The mean over a span of time of what changes at (time, value)."""
    if last <= first:
        return 0.0
    ends = [at for at, _ in values[1:]] + [last]
    total = sum(
        value * max(0.0, min(end, last) - max(at, first)) for (at, value), end in zip(values, ends, strict=True)
    )
    return total / (last - first)
