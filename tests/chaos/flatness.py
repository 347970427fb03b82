"""Whether the memory and the descriptors of processes stay flat: samples in, growth and a verdict out. Pure.

Growth is the Theil-Sen slope (the median of the slopes of all pairs of samples; Theil 1950, Sen 1968; weighted by
their distance in time, Scholz 1978), which a few samples far off do not move, times the length of the whole run. What
comes and goes within seconds, as streams do, is no growth: the samples of a window are one, their mean.

Processes of one kind run the same code, so they are judged together, by the pairs within each of them: what one that
lived for ten minutes happened to do in them (a neighbour came, it moved to another stage) would say little by itself,
and three times that of a whole run; a leak is in all of them. Who lived for most of the run is judged by itself too.
What comes before the warm-up is over does not count, and who becomes something else (a standby that leads) is another
one from then on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from statistics import fmean, median
from typing import NamedTuple


class Sample(NamedTuple):
    """`at`: seconds since the first sample of the run; `resident`: bytes of memory; `descriptors`: open files."""

    at: float
    resident: float
    descriptors: float


@dataclass
class Series:
    """One incarnation of a process, for as long as it was of one kind."""

    name: str
    pid: int
    kind: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def lived(self) -> float:
        return self.samples[-1].at - self.samples[0].at if self.samples else 0.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """`warm_up`: seconds at the beginning of a process that do not count; one that was seen for less than `least` is
    not judged, and one that was for the share `alone` of the run is by itself. `window`: see above, seconds. Over a run
    memory may grow by `resident` bytes or by `share` of its median, whichever is more, and `descriptors` by so many."""

    warm_up: float = 300.0
    least: float = 600.0
    alone: float = 0.7
    window: float = 10.0
    resident: float = 15e6
    share: float = 0.05
    descriptors: float = 10.0


class Verdict(NamedTuple):
    """Of a kind, or of one process of it. `processes`: how many were judged together; `seconds`: how long all of them
    were seen after their warm-up; medians of that time, growth over a whole run, and what is wrong with it ("" if
    nothing is)."""

    name: str
    processes: int
    seconds: float
    resident: float
    resident_growth: float
    descriptors: float
    descriptor_growth: float
    problem: str


def theil_sen(lines: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The median of the slopes of all pairs of points of the same line at different times, each weighing as much as its
    points are apart; 0 if there are none."""
    slopes = sorted(
        ((y2 - y1) / (x2 - x1), abs(x2 - x1))
        for line in lines
        for (x1, y1), (x2, y2) in combinations(line, 2)
        if x1 != x2
    )
    half = sum(weight for _, weight in slopes) / 2
    for slope, weight in slopes:
        half -= weight
        if half <= 0:
            return slope
    return 0.0


def windows(samples: Sequence[Sample], seconds: float) -> list[Sample]:
    """The mean of the samples of each window of so many seconds."""
    found = []
    for _, group in groupby(samples, lambda sample: sample.at // seconds):
        at, resident, descriptors = zip(*group, strict=True)
        found.append(Sample(fmean(at), fmean(resident), fmean(descriptors)))
    return found


def verdicts(seen: Sequence[Series], run_seconds: float, bounds: Bounds) -> list[Verdict]:
    """Of every kind, and of every process that was seen for most of the run."""
    found = []
    for kind in sorted({series.kind for series in seen}):
        judged = [series for series in seen if series.kind == kind and series.lived >= bounds.least]
        if judged:
            found.append(judge(kind, judged, run_seconds, bounds))
        for series in judged:
            if series.lived >= bounds.alone * run_seconds:
                found.append(judge(f"{series.name} alone", [series], run_seconds, bounds))
    return found


def judge(name: str, seen: Sequence[Series], run_seconds: float, bounds: Bounds) -> Verdict:
    """What processes have grown by, were they to go on like this for the whole run."""
    warm = [
        [sample for sample in series.samples if sample.at >= series.samples[0].at + bounds.warm_up] for series in seen
    ]
    seconds = sum(samples[-1].at - samples[0].at for samples in warm if samples)
    counted = [windows(samples, bounds.window) for samples in warm]
    resident = median(sample.resident for samples in counted for sample in samples)
    descriptors = median(sample.descriptors for samples in counted for sample in samples)
    grown = theil_sen([[(sample.at, sample.resident) for sample in samples] for samples in counted]) * run_seconds
    opened = theil_sen([[(sample.at, sample.descriptors) for sample in samples] for samples in counted]) * run_seconds
    problems = []
    if grown > max(bounds.resident, bounds.share * resident):
        problems.append("memory grows")
    if opened > bounds.descriptors:
        problems.append("descriptors grow")
    return Verdict(name, len(seen), seconds, resident, grown, descriptors, opened, " and ".join(problems))
