"""What came of a simulated run, drawn. Needs matplotlib. Errors: `UsageError` without it, `StorageError`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StorageError, UsageError
from .outcome import MINUTE, Outcome

if TYPE_CHECKING:
    from .sweep import Point

SMOOTHED_STEPS = 5


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'swarm-peer[sim]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_outcome(outcome: Outcome, file: Path) -> None:
    """Tokens a second over time beside the bound and what happened; stages; recoveries."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(3, 1, figsize=(10, 10), height_ratios=(3, 2, 2))
    flow, stages, recoveries = axes
    minutes, rates = _rates(outcome)
    flow.plot(minutes, rates, drawstyle="steps-post", label="trained")
    flow.axhline(outcome.bound, color="0.6", linestyle="--", label="devices alone, on average")
    for at, kind, hit in outcome.happened:
        flow.axvline(at / MINUTE, color="C3", linewidth=0.8)
        flow.annotate(f"{kind} ({hit})", (at / MINUTE, 0.98), xycoords=("data", "axes fraction"), rotation=90, va="top")
    flow.set(title=outcome.scenario, xlabel="minutes", ylabel="tokens a second", ylim=(0, None))
    flow.legend(loc="lower right")
    numbers = range(len(outcome.stages))
    stages.bar(numbers, [100 * stage.busy for stage in outcome.stages])
    stages.set(xlabel="stage", xticks=list(numbers), ylabel="devices busy, %", ylim=(0, 100))
    others = stages.twinx()
    others.plot(numbers, [stage.replicas for stage in outcome.stages], "k_", markersize=16)
    others.set(ylabel="replicas, on average", ylim=(0, None))
    if outcome.recoveries:
        recoveries.hist(outcome.recoveries, bins=30)
    recoveries.set(xlabel="seconds from a loss until its work was done by others", ylabel="losses")
    _save(figure, file)


def plot_sweep(points: Sequence["Point"], file: Path) -> None:
    """The tokens a second of every setting, with their intervals."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(10, 1.5 + 0.4 * len(points)))
    found = [point.tokens_per_second for point in points]
    axis.barh(range(len(points)), [each.mean for each in found], xerr=[each.half for each in found], capsize=4)
    axis.set_yticks(range(len(points)), [", ".join(point.changes) or "as it is" for point in points])
    axis.invert_yaxis()
    axis.set(title=points[0].outcomes[0].scenario, xlabel="tokens a second (95 %)", xlim=(0, None))
    _save(figure, file)


def _rates(outcome: Outcome) -> tuple[list[float], list[float]]:
    """Over some steps each: (minute at which they began, tokens a second)."""
    minutes, rates = [], []
    for first in range(0, len(outcome.steps) - 1, SMOOTHED_STEPS):
        window = outcome.steps[first : first + SMOOTHED_STEPS + 1]
        seconds = window[-1][0] - window[0][0]
        if seconds:
            minutes.append(window[0][0] / MINUTE)
            rates.append(sum(tokens for _, tokens in window[1:]) / seconds)
    return minutes, rates


def _save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise StorageError(f"{file} cannot be written: {error}") from error
    finally:
        _pyplot().close(figure)
