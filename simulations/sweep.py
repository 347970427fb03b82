"""Many runs of one scenario: settings times seeds, in parallel, and how sure one may be of what they say.

Every setting is run with the same seeds: the volunteers, their links and their sessions are then the same, so that two
settings are compared seed by seed. Intervals are Student's, at 95 %.
"""

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

from ..errors import UsageError
from .outcome import Outcome
from .scenario import load_scenario
from .study import Study

STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""The two-sided 95 % quantile of Student's t for 1 to 10 degrees of freedom."""

NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and how far it may be off, at 95 %; `half` is nan where one run says nothing of that."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        if len(values) < 2:
            return cls(values[0], math.nan)
        freedom = len(values) - 1
        quantile = STUDENT_95[freedom - 1] if freedom <= len(STUDENT_95) else _student(freedom)
        return cls(fmean(values), quantile * stdev(values) / math.sqrt(len(values)))


def _student(freedom: int) -> float:
    """Cornish and Fisher's expansion, right to three places from eleven degrees of freedom on."""
    z = NORMAL_95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True, slots=True)
class Point:
    """One setting: `changes` are `key=value`, `outcomes` in the order of the seeds."""

    changes: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def tokens_per_second(self) -> Interval:
        return Interval.of([outcome.tokens_per_second for outcome in self.outcomes])

    @property
    def kept(self) -> Interval:
        return Interval.of([outcome.kept for outcome in self.outcomes])

    def against(self, base: "Point") -> Interval:
        """How many times as many tokens a second as the base, seed by seed; nan if the base made none."""
        pairs = zip(self.outcomes, base.outcomes, strict=True)
        ratios = [
            ours.tokens_per_second / theirs.tokens_per_second if theirs.tokens_per_second else math.nan
            for ours, theirs in pairs
        ]
        return Interval.of(ratios)


def settings(axes: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of `key=value,value,...`. Raises `UsageError`."""
    choices = []
    for axis in axes:
        key, equals, values = axis.partition("=")
        if not key or not equals or not all(_split(values)):
            raise UsageError(f"{axis!r}: wanted key=value,value,... such as run.pipeline.staleness=0,1")
        choices.append([f"{key}={value}" for value in _split(values)])
    return list(product(*choices))


def _split(values: str) -> list[str]:
    """At commas that are in no bracket."""
    found, depth = [""], 0
    for letter in values:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [value.strip() for value in found]


def sweep(
    scenario: Path,
    changes: Sequence[str],
    axes: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
    done: Callable[[], None] = lambda: None,
) -> list[Point]:
    """Runs every setting with every seed on `jobs` processes; `done` is called after each run. Raises what a run
    raises, `ScenarioError`, `UsageError`."""
    points = settings(axes)
    for point in points:
        load_scenario(scenario, (*changes, *point))  # before anything is run
    found: dict[tuple[int, int], Outcome] = {}
    for place, outcome in _run_all(scenario, changes, points, seeds, jobs):
        found[place] = outcome
        done()
    return [Point(point, tuple(found[number, seed] for seed in seeds)) for number, point in enumerate(points)]


def _run_all(
    scenario: Path, changes: Sequence[str], points: Sequence[tuple[str, ...]], seeds: Sequence[int], jobs: int
) -> Iterator[tuple[tuple[int, int], Outcome]]:
    work = {
        (number, seed): (scenario, (*changes, *point), seed) for number, point in enumerate(points) for seed in seeds
    }
    if jobs == 1:
        for place, arguments in work.items():
            yield place, _run_one(*arguments)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(_run_one, *arguments): place for place, arguments in work.items()}
        for future in as_completed(running):
            yield running[future], future.result()


def _run_one(scenario: Path, changes: tuple[str, ...], seed: int) -> Outcome:
    return Study(load_scenario(scenario, changes), seed).run()
