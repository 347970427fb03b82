"""What must change for a swarm to train so many tokens a second: one lever at a time, each pulled as little as will do.

A lever's smallest sufficient setting is searched among `FACTORS`, with the strongest one first: what that does not
reach, the lever alone does not. Every setting is simulated with the same seed, so the volunteers are the same.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Literal

from .scenario import Group, Scenario, Spread
from .study import Study

FACTORS = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)

Kind = Literal["staleness", "codecs", "batch", "slots", "count", "up", "latency", "speed", "stays"]


@dataclass(frozen=True, slots=True)
class Lever:
    """`group`: whose peers it is about, None for settings of the run."""

    kind: Kind
    group: int | None = None

    @property
    def factors(self) -> Sequence[float]:
        """How far it can be pulled."""
        return (1.0,) if self.kind in ("staleness", "codecs") else FACTORS

    def pull(self, scenario: Scenario, factor: float) -> tuple[Scenario, str]:
        """The scenario with it, and what it then is."""
        if self.group is not None:
            group, said = _changed(scenario.peers[self.group], self.kind, factor)
            peers = tuple(group if number == self.group else each for number, each in enumerate(scenario.peers))
            return scenario.model_copy(update={"peers": peers}), said
        run = scenario.run
        if self.kind == "staleness":
            delayed = run.pipeline.model_copy(update={"staleness": 1})
            return _with(scenario, "pipeline", delayed), "updates delayed by one step (staleness 1)"
        if self.kind == "codecs":
            smaller = run.codecs.model_copy(update={"activations": "int4", "gradients": "int4"})
            return _with(scenario, "codecs", smaller), "activations and gradients of 4 bits (int4)"
        if self.kind == "slots":
            slots = round(run.pipeline.slots * factor)
            return _with(
                scenario, "pipeline", run.pipeline.model_copy(update={"slots": slots})
            ), f"{slots} slots a peer"
        batch = round(run.train.batch * factor / run.train.microbatch) * run.train.microbatch
        return _with(scenario, "train", run.train.model_copy(update={"batch": batch})), f"steps of {batch} samples"


def _with(scenario: Scenario, name: str, part: object) -> Scenario:
    return scenario.model_copy(update={"run": scenario.run.model_copy(update={name: part})})


def _changed(group: Group, kind: Kind, factor: float) -> tuple[Group, str]:
    """Peers of a kind that are better at one thing."""
    if kind == "count":
        count = round(group.count * factor)
        return group.model_copy(update={"count": count}), f"{count} peers of the kind {group.name!r}"
    if kind == "up":
        up = _times(group.up, factor)
        return group.model_copy(update={"up": up}), f"{_told(up)} Mbit/s up for {group.name!r}"
    if kind == "latency":
        latency = _times(group.latency, 1 / factor)
        return group.model_copy(update={"latency": latency}), f"{_told(latency)} ms of latency for {group.name!r}"
    if kind == "stays":
        assert group.stays is not None
        stays = group.stays.model_copy(update={"mean": group.stays.mean * factor})
        return group.model_copy(update={"stays": stays}), f"{group.name!r} stay for {stays.mean / 60:.0f} min"
    said = f"devices {factor:g} times as fast for {group.name!r}"
    if group.teraflops is not None:
        return group.model_copy(update={"teraflops": _times(group.teraflops, factor)}), said
    assert group.forward is not None
    assert group.backward is not None
    pace = {"forward": group.forward / factor, "backward": group.backward / factor}
    return group.model_copy(update=pace), said


def _times(spread: Spread, factor: float) -> Spread:
    return (spread[0] * factor, spread[1] * factor) if isinstance(spread, tuple) else spread * factor


def _told(spread: Spread) -> str:
    return f"{spread[0]:.3g} to {spread[1]:.3g}" if isinstance(spread, tuple) else f"{spread:.3g}"


def levers_of(scenario: Scenario) -> list[Lever]:
    """All that can be changed of it for the better."""
    found = [Lever("batch"), Lever("slots")]
    if scenario.run.pipeline.staleness == 0:
        found.insert(0, Lever("staleness"))
    if scenario.run.codecs.activations != "int4" or scenario.run.codecs.gradients != "int4":
        found.insert(0, Lever("codecs"))
    for number, group in enumerate(scenario.peers):
        found += [] if group.sessions else [Lever("count", number)]
        found += [Lever("speed", number)]
        found += [Lever("up", number)] if group.up else []
        found += [Lever("latency", number)] if group.latency else []
        found += [Lever("stays", number)] if group.stays is not None else []
    return found


@dataclass(frozen=True, slots=True)
class Pulled:
    """A lever, as little as reaches the goal, or else as far as it goes."""

    change: str
    tokens_per_second: float
    reached: bool


def plan(scenario: Scenario, goal: float, jobs: int, done: Callable[[], None] = lambda: None) -> Iterator[Pulled]:
    """First the scenario as it is; unless that will do, then every lever; `done` is called after each. Raises what a
    run raises."""
    now = Study(scenario).run().tokens_per_second
    yield Pulled("as it is", now, now >= goal)
    if now >= goal:
        return
    levers = levers_of(scenario)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(_least, [scenario] * len(levers), levers, [goal] * len(levers)):
            yield found
            done()


def _least(scenario: Scenario, lever: Lever, goal: float) -> Pulled:
    factors = lever.factors
    best = _pull(scenario, lever, factors[-1], goal)
    low, high = 0, len(factors) - 1
    while best.reached and low < high:
        middle = (low + high) // 2
        found = _pull(scenario, lever, factors[middle], goal)
        if found.reached:
            best, high = found, middle
        else:
            low = middle + 1
    return best


def _pull(scenario: Scenario, lever: Lever, factor: float, goal: float) -> Pulled:
    changed, said = lever.pull(scenario, factor)
    rate = Study(changed).run().tokens_per_second
    return Pulled(said, rate, rate >= goal)
