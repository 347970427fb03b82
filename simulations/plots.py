"""What came of simulated runs, drawn. Needs matplotlib. Errors: `UsageError` without it, `StorageError`."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StorageError, UsageError
from .outcome import MINUTE, Outcome

if TYPE_CHECKING:
    from .publications import Utilization
    from .sweep import Point
    from .validation import Compared

SMOOTHED_STEPS = 5
CAUSES = {
    "absent": "machines that hosted nothing",
    "uneven": "stages stronger than the weakest",
    "repeated": "work done again",
    "waited": "waiting: links, pipeline, losses",
}
COLOURS = {"trained": "#2a6f97", "absent": "#bbbbbb", "uneven": "#f2b134", "repeated": "#c8553d", "waited": "#ead7c3"}


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'swarm-peer[sim]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def check_plots() -> None:
    """Raises `UsageError` if nothing can be drawn here."""
    _pyplot()


def plot_outcome(outcome: Outcome, file: Path) -> None:
    """Everything that is drawn of one run."""
    _save(_figure(outcome), file)


def svg_of(outcome: Outcome) -> str:
    """The same as an SVG element."""
    return _svg(_figure(outcome))


def _figure(outcome: Outcome) -> Any:
    figure = _pyplot().figure(figsize=(11, 12), layout="constrained")
    axes = figure.subplot_mosaic(
        [["flow", "flow"], ["losses", "losses"], ["stages", "queues"], ["recoveries", "stale"], ["traffic", "traffic"]],
        height_ratios=(3, 0.7, 2, 1.6, 1.6),
    )
    figure.suptitle(outcome.scenario)
    _draw_flow(axes["flow"], outcome)
    _draw_losses(axes["losses"], outcome)
    _draw_stages(axes["stages"], axes["queues"], outcome)
    if outcome.recoveries:
        axes["recoveries"].hist(outcome.recoveries, bins=30, color="C3")
    axes["recoveries"].set(xlabel="seconds from a loss until its work was done by others", ylabel="losses")
    ages = sorted(set(outcome.stale)) or [0]
    axes["stale"].bar(ages, [outcome.stale.count(age) for age in ages], color="C0")
    axes["stale"].set(xlabel="versions by which a step's gradients were old", ylabel="steps", xticks=ages)
    minutes, rates = _traffic(outcome)
    axes["traffic"].plot(minutes, rates, drawstyle="steps-post")
    axes["traffic"].set(xlabel="minutes", ylabel="Mbit/s sent by all", ylim=_from_zero(rates))
    return figure


def _draw_flow(axis: Any, outcome: Outcome) -> None:
    minutes, rates = _rates(outcome)
    axis.plot(minutes, rates, drawstyle="steps-post", label="trained")
    axis.axhline(outcome.bound, color="0.6", linestyle="--", label="devices alone, on average")
    for at, kind, hit in outcome.happened:
        axis.axvline(at / MINUTE, color="C3", linewidth=0.8)
        axis.annotate(f"{kind} ({hit})", (at / MINUTE, 0.98), xycoords=("data", "axes fraction"), rotation=90, va="top")
    axis.set(xlabel="minutes", ylabel="tokens a second", ylim=_from_zero([*rates, outcome.bound]))
    axis.legend(loc="lower right")


def _draw_losses(axis: Any, outcome: Outcome) -> None:
    """Where what the devices could have done went."""
    shares = {"trained": outcome.kept} | {cause: getattr(outcome.losses, cause) for cause in CAUSES}
    begins = 0.0
    for name, share in shares.items():
        share = max(0.0, share)
        label = f"{CAUSES.get(name, name)} {share:.0%}"
        axis.barh(0, 100 * share, left=100 * begins, color=COLOURS[name], label=label)
        begins += share
    axis.set(yticks=[], xlabel="% of what the devices could do", xlim=(0, 100 * max(1.0, begins)))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.9), ncols=3, frameon=False)


def _draw_stages(axis: Any, queues: Any, outcome: Outcome) -> None:
    numbers = range(len(outcome.stages))
    axis.bar(numbers, [100 * stage.busy for stage in outcome.stages])
    axis.set(xlabel="stage", ylabel="devices busy, %", ylim=(0, 100))
    others = axis.twinx()
    others.plot(numbers, [stage.replicas for stage in outcome.stages], "k_", markersize=12)
    others.set(ylabel="replicas, on average", ylim=(0, None))
    queues.bar(numbers, [stage.waiting for stage in outcome.stages], color="C1")
    queues.set(xlabel="stage", ylabel="visits waiting for a device")
    for each in (axis, queues):
        each.xaxis.get_major_locator().set_params(integer=True)


def plot_sweep(points: Sequence["Point"], file: Path) -> None:
    """The tokens a second of every setting, with their intervals."""
    _save(_sweep_figure(points), file)


def svg_of_sweep(points: Sequence["Point"]) -> str:
    """The same as an SVG element."""
    return _svg(_sweep_figure(points))


def plot_agreement(compared: Sequence["Compared"], file: Path) -> None:
    """Tokens a second of the same scenarios, simulated over emulated, with what is within a tenth."""
    figure, axis = _pyplot().subplots(figsize=(7, 6), layout="constrained")
    top = 1.15 * max(max(each.rates) for each in compared)
    axis.fill_between([0, top], [0, 0.9 * top], [0, 1.1 * top], color="0.92", label="within 10 %")
    axis.plot([0, top], [0, top], color="0.6", linewidth=0.8)
    for fitted, marker in ((True, "o"), (False, "s")):
        chosen = [each for each in compared if each.case.fitted is fitted]
        simulated, emulated = [each.rates[0] for each in chosen], [each.rates[1] for each in chosen]
        axis.plot(emulated, simulated, marker, label="used for fitting" if fitted else "not used for fitting")
    axis.set(xlabel="emulated, tokens a second", ylabel="simulated", xlim=(0, top), ylim=(0, top))
    axis.legend(loc="upper left")
    _save(figure, file)


def plot_utilization(found: Sequence["Utilization"], file: Path) -> None:
    """Over added latency, by width: published ones dashed."""
    from .publications import ADDED_LATENCIES

    figure, axis = _pyplot().subplots(figsize=(8, 5), layout="constrained")
    for each in found:
        label = f"{each.width} wide, {'SWARM' if each.published else 'simulated'}"
        shares = [100 * share for share in each.shares]
        axis.plot(ADDED_LATENCIES, shares, marker="o", linestyle="--" if each.published else "-", label=label)
    axis.set(xlabel="added latency, ms", ylabel="% of the time that devices are used", ylim=(0, 100))
    axis.legend(fontsize="small")
    _save(figure, file)


def _sweep_figure(points: Sequence["Point"]) -> Any:
    figure, axis = _pyplot().subplots(figsize=(10, 1.5 + 0.4 * len(points)), layout="constrained")
    found = [point.tokens_per_second for point in points]
    axis.barh(range(len(points)), [each.mean for each in found], xerr=[each.half for each in found], capsize=4)
    axis.set_yticks(range(len(points)), [", ".join(point.changes) or "as it is" for point in points])
    axis.invert_yaxis()
    axis.set(title=points[0].outcomes[0].scenario, xlabel="tokens a second (95 %)", xlim=(0, None))
    return figure


def _from_zero(values: Sequence[float]) -> tuple[float, float]:
    return 0.0, 1.1 * max(values, default=0.0) or 1.0


def _rates(outcome: Outcome) -> tuple[list[float], list[float]]:
    """Over some steps each: (minute at which they began, tokens a second)."""
    done, total = [], 0
    for at, tokens in outcome.steps:
        total += tokens
        done.append((at, float(total)))
    return _slopes(done)


def _traffic(outcome: Outcome) -> tuple[list[float], list[float]]:
    """Over some steps each: (minute at which they began, Mbit/s)."""
    minutes, rates = _slopes(outcome.traffic)
    return minutes, [8e-6 * rate for rate in rates]


def _slopes(values: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Of what has come to (time, sum) at every step."""
    minutes, rates = [], []
    for first in range(0, len(values) - 1, SMOOTHED_STEPS):
        (began, before), (ended, after) = values[first], values[min(first + SMOOTHED_STEPS, len(values) - 1)]
        if ended > began:
            minutes.append(began / MINUTE)
            rates.append((after - before) / (ended - began))
    return minutes, rates


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    _pyplot().close(figure)
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def _save(figure: Any, file: Path) -> None:
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise StorageError(f"{file} cannot be written: {error}") from error
    finally:
        _pyplot().close(figure)
