"""Whether the memory and the descriptors of processes stay flat: samples in, growth and a verdict out. Pure.

Growth is the Theil-Sen slope (the median of the slopes of all pairs of samples; Theil 1950, Sen 1968), which a few
samples far off do not move, times the length of the whole run: a process that was watched for a third of it is judged
by what it would have grown to. What comes before the warm-up is over does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import NamedTuple


class Sample(NamedTuple):
    """`at`: seconds since the first sample of the run; `resident`: bytes of memory; `descriptors`: open files."""

    at: float
    resident: int
    descriptors: int


@dataclass
class Series:
    """One incarnation of a process."""

    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def lived(self) -> float:
        return self.samples[-1].at - self.samples[0].at if self.samples else 0.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """`warm_up`: seconds at the beginning of a process that do not count; one that was seen for less than `least` is
    not judged. Over a run memory may grow by `resident` bytes or by `share` of its median, whichever is more, and
    `descriptors` by so many."""

    warm_up: float = 180.0
    least: float = 480.0
    resident: float = 15e6
    share: float = 0.05
    descriptors: float = 10.0


class Verdict(NamedTuple):
    """Medians after the warm-up, growth over the whole run, and what is wrong with it ("" if nothing is)."""

    name: str
    pid: int
    lived: float
    resident: float
    resident_growth: float
    descriptors: float
    descriptor_growth: float
    problem: str


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes of all pairs of points at different times; 0 if there are none."""
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x1 != x2]
    return median(slopes) if slopes else 0.0


def judge(series: Series, run_seconds: float, bounds: Bounds) -> Verdict | None:
    """What a process has grown by, were it to go on like this for the whole run; None if it was seen for too short."""
    if series.lived < bounds.least:
        return None
    begins = series.samples[0].at + bounds.warm_up
    counted = [sample for sample in series.samples if sample.at >= begins]
    resident = median(sample.resident for sample in counted)
    descriptors = median(sample.descriptors for sample in counted)
    grown = theil_sen([(sample.at, sample.resident) for sample in counted]) * run_seconds
    opened = theil_sen([(sample.at, sample.descriptors) for sample in counted]) * run_seconds
    problems = []
    if grown > max(bounds.resident, bounds.share * resident):
        problems.append("memory grows")
    if opened > bounds.descriptors:
        problems.append("descriptors grow")
    return Verdict(series.name, series.pid, series.lived, resident, grown, descriptors, opened, " and ".join(problems))
