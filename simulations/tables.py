"""What came of runs, as tables: the same on a terminal and in a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .outcome import MINUTE, Outcome
from .planning import Pulled
from .sweep import Interval, Point

KEPT = "kept: of what the devices that were there could compute if nothing ever waited"


@dataclass(frozen=True, slots=True)
class Grid:
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def of_outcomes(outcomes: Sequence[Outcome]) -> Grid:
    """A line a run."""
    columns = ("seed", "steps", "tokens/s", "kept", "a step", "lost", "recovery", "moved", "undone", "up per token")
    busiest = max(outcome.router for outcome in outcomes)
    note = f"{KEPT}\nthe router took {busiest:.0%} of a core at most" if busiest else KEPT
    return Grid(columns, tuple(_cells(outcome) for outcome in outcomes), note)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    return (
        str(outcome.seed),
        f"{len(outcome.steps)}{'' if outcome.finished else ' so far'}",
        f"{outcome.tokens_per_second:,.0f}",
        f"{outcome.kept:.0%}",
        f"{outcome.step_seconds:.1f} s",
        str(outcome.lost),
        f"{median(outcome.recoveries):.1f} s" if outcome.recoveries else "-",
        str(outcome.moved),
        str(outcome.steps_undone),
        f"{outcome.bytes_up / outcome.tokens / 1e3:.1f} kB" if outcome.tokens else "-",
    )


def of_losses(outcomes: Sequence[Outcome]) -> Grid:
    """Where what the devices could have done went."""
    columns = ("seed", "trained", "hosted nothing", "uneven stages", "done again", "waited")
    rows = []
    for outcome in outcomes:
        losses = outcome.losses
        shares = (outcome.kept, losses.absent, losses.uneven, losses.repeated, losses.waited)
        rows.append((str(outcome.seed), *(f"{share:.1%}" for share in shares)))
    return Grid(columns, tuple(rows))


def of_stages(outcome: Outcome) -> Grid:
    """A line a stage."""
    rows = [
        (str(stage), f"{found.replicas:.1f}", f"{found.busy:.0%}", f"{found.waiting:.1f}")
        for stage, found in enumerate(outcome.stages)
    ]
    return Grid(("stage", "replicas", "devices busy", "visits waiting"), tuple(rows))


def of_events(outcome: Outcome) -> Grid:
    """What befell the swarm."""
    rows = [(f"{at / MINUTE:.2f} min", kind, str(hit)) for at, kind, hit in outcome.happened]
    return Grid(("after", "what", "machines"), tuple(rows))


def of_points(points: Sequence[Point]) -> Grid:
    """A line a setting."""
    columns = ("setting", "tokens/s", "kept", "lost", "moved", "undone")
    return Grid(columns, tuple(_point_cells(point) for point in points), _how_sure(points))


def of_comparison(points: Sequence[Point]) -> Grid:
    """The same, and how many times the first."""
    rows = tuple(
        (*_point_cells(point), "" if point is points[0] else text_of(point.against(points[0]), ".3f"))
        for point in points
    )
    plain = of_points(points)
    return Grid((*plain.columns, "times the first"), rows, plain.note)


def _point_cells(point: Point) -> tuple[str, ...]:
    counts = [sum(getattr(outcome, name) for outcome in point.outcomes) for name in ("lost", "moved", "steps_undone")]
    name = ", ".join(change.removeprefix("run.") for change in point.changes)
    return (name, text_of(point.tokens_per_second, ",.0f"), text_of(point.kept, ".0%"), *map(str, counts))


def of_plan(found: Sequence[Pulled], goal: float) -> Grid:
    """A line a lever: those that reach the goal first."""
    now, *levers = found
    ordered = [now, *sorted(levers, key=lambda pulled: not pulled.reached)]
    rows = []
    for pulled in ordered:
        reached = "reached" if pulled.reached else f"{pulled.tokens_per_second / goal:.0%} of it"
        rows.append((pulled.change, f"{pulled.tokens_per_second:,.0f}", reached))
    notes = [] if levers else ["nothing must change"]
    if levers and not any(pulled.reached for pulled in levers):
        notes = ["no single change is enough: change the scenario by the one that helps most, and plan again"]
    return Grid(("one change alone", "tokens/s", f"the goal of {goal:,.0f}"), tuple(rows), "\n".join(notes))


def text_of(interval: Interval, form: str) -> str:
    """A mean and, where it is known, how far it may be off."""
    return f"{interval.mean:{form}}" + ("" if interval.half != interval.half else f" ± {interval.half:{form}}")


def _how_sure(points: Sequence[Point]) -> str:
    return f"{len(points[0].outcomes)} seeds each; ± is the 95 % interval of the mean; counts are of all seeds"


def warnings_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Why runs came to nothing."""
    return [f"seed {outcome.seed}: {outcome.explained}" for outcome in outcomes if outcome.explained]
