"""`swarm-sim`: what a swarm would do, simulated by the swarm's own code.

Its exit codes are those of `swarm/flags.py`.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ..errors import UsageError
from ..swarm.flags import Program
from .emulation import PACKET_BYTES, Emulation
from .namespace import TCP
from .outcome import Outcome
from .planning import levers_of, plan
from .plots import check_plots, plot_outcome, plot_sweep
from .recorded import scenario_of
from .report import write_json, write_outcomes, write_points, write_text
from .scenario import Scenario, known_scenarios, load_scenario, parse_scenario
from .study import Study
from .sweep import Interval, Point, settings, sweep
from .tables import Grid, of_comparison, of_events, of_losses, of_outcomes, of_plan, of_points, of_stages, warnings_of

T = TypeVar("T")

LEAST_MTU, MOST_MTU = 576, 65000
"""Bytes of a packet: what IPv4 must carry, and a little less than it can."""

REPLAYED = 3
"""Seeds whose updates are replayed through real training."""


def main(arguments: Sequence[str] | None = None) -> int:
    commands = {
        "run": run_scenario,
        "emulate": run_emulation,
        "sweep": run_sweep,
        "compare": run_compare,
        "plan": run_plan,
        "from-log": run_from_log,
        "validate": run_validation,
        "list": run_list,
    }
    return _program().run(commands, arguments)


def _program() -> Program:
    commands = Program("swarm-sim", "Simulate a swarm: the real trainer and peers on virtual time.")
    running = commands.add_parser("run", help="simulate a scenario and say what came of it")
    _add_scenario(running)
    several = running.add_mutually_exclusive_group()
    several.add_argument("--seed", type=int, metavar="N", help="in place of the scenario's own seed")
    several.add_argument("--seeds", type=_some, metavar="K", help="seeds 0 to K-1, one after the other")
    running.add_argument(
        "--events",
        type=Path,
        metavar="DIR",
        help="keep the events of the last run here: swarm-coordinator replay shows it",
    )
    emulating = commands.add_parser("emulate", help="the same with real processes over an emulated internet (Linux)")
    _add_scenario(emulating)
    emulating.add_argument("--seed", type=int, metavar="N", help="in place of the scenario's own seed")
    emulating.add_argument("--mtu", type=_some, default=PACKET_BYTES, help="bytes of a packet (default: 1500)")
    _add_tcp(emulating)
    emulating.add_argument("--folder", type=Path, metavar="DIR", help="leave the processes' logs here")
    sweeping = commands.add_parser("sweep", help="every combination of some settings, with several seeds, in parallel")
    _add_scenario(sweeping)
    sweeping.add_argument(
        "--over", action="append", required=True, metavar="KEY=V,V,...", help="a key and its values; may be repeated"
    )
    _add_seeds(sweeping)
    comparing = commands.add_parser("compare", help="the values of one setting side by side, seed by seed")
    _add_scenario(comparing)
    comparing.add_argument("over", metavar="KEY=V,V,...", help="a key and its values; the first is compared with")
    _add_seeds(comparing)
    planning = commands.add_parser("plan", help="what must change to train so many tokens a second")
    _add_file(planning)
    planning.add_argument("--tokens", type=float, required=True, metavar="X", help="the goal: tokens a second")
    _add_jobs(planning)
    validating = commands.add_parser("validate", help="hold the simulator against closed forms and real processes")
    validating.add_argument(
        "cases", nargs="*", help="emulate only the cases whose names hold one of these words, and nothing but that"
    )
    validating.add_argument("--out", type=Path, metavar="FILE", help="write the page here, Markdown, and its figures")
    validating.add_argument("--emulations", type=_some, default=1, metavar="K", help="of each case (default: 1)")
    _add_tcp(validating)
    validating.add_argument("--closed-forms", action="store_true", help="nothing but those: nothing is emulated")
    recording = commands.add_parser("from-log", help="make a scenario of a run that has been")
    recording.add_argument("log", type=Path, help="its coordinator's events: the folder, or a file of it")
    recording.add_argument("scenario", type=Path, help="the file to write")
    commands.add_parser("list", help="the scenarios that come with the package")
    return commands


def _add_tcp(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tcp", default=TCP, metavar="NAME", help="its congestion control: cubic (default), bbr, ...")


def _add_file(command: argparse.ArgumentParser) -> None:
    command.add_argument("scenario", type=Path, help="a TOML file, or the name of one that `list` shows")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="a key of the scenario set otherwise, such as run.pipeline.staleness=0 or peers.0.count=40",
    )
    command.add_argument("--json", action="store_true", help="print everything as JSON instead of a table")


def _add_scenario(command: argparse.ArgumentParser) -> None:
    _add_file(command)
    command.add_argument(
        "--report", type=Path, metavar="FILE", help="write everything here: JSON, or a page for a name in .html"
    )
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw it here: .png, .svg or .pdf")


def _add_seeds(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seeds", type=_some, default=5, metavar="K", help="seeds 0 to K-1 (default: 5)")
    _add_jobs(command)


def _add_jobs(command: argparse.ArgumentParser) -> None:
    cores = os.cpu_count() or 1
    command.add_argument("--jobs", type=_some, default=cores, metavar="J", help="processes (default: one a core)")


def _some(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a number above 0")
    return int(text)


def run_list(options: argparse.Namespace) -> int:
    """One line a scenario."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for file in known_scenarios():
        scenario = load_scenario(file)
        table.add_row(f"[bold]{file.stem}[/bold]", scenario.title, f"{sum(g.count for g in scenario.peers)} peers")
    _console().print(table)
    return 0


def run_scenario(options: argparse.Namespace) -> int:
    """Simulates one scenario with one or several seeds. Raises `ScenarioError`, `StorageError`, `UsageError`."""
    scenario = load_scenario(options.scenario, options.changes)
    seeds = [_seed(options)] if options.seeds is None else list(range(options.seeds))
    outcomes = []
    with _progress(scenario.title, len(seeds)) as done:
        for seed in seeds:
            outcomes.append(Study(scenario, seed, options.events if seed == seeds[-1] else None).run())
            done()
    _give(options, scenario, outcomes)
    return 0


def run_emulation(options: argparse.Namespace) -> int:
    """Emulates one scenario, in real time. Raises `EmulationError`, and as `run_scenario` does."""
    scenario = load_scenario(options.scenario, options.changes)
    if not LEAST_MTU <= options.mtu <= MOST_MTU:
        raise UsageError(f"--mtu {options.mtu}: wanted {LEAST_MTU} to {MOST_MTU}")
    _give(options, scenario, [Emulation(scenario, _seed(options), options.folder, options.mtu, options.tcp).run()])
    return 0


def _give(options: argparse.Namespace, scenario: Scenario, outcomes: Sequence[Outcome]) -> None:
    """Shows what came of it, in every way that is wanted."""
    said = [outcome.to_json() for outcome in outcomes]
    _say(options, said, lambda: _show(outcomes))
    if options.report is not None:
        write_outcomes(options.report, scenario, outcomes) if _wants_page(options) else write_json(options.report, said)
    if options.plot is not None:
        plot_outcome(outcomes[0], options.plot)


def _seed(options: argparse.Namespace) -> int | None:
    """Raises `UsageError`."""
    seed: int | None = options.seed
    if seed is not None and seed < 0:
        raise UsageError(f"--seed {seed}: wanted 0 or more")
    return seed


def run_sweep(options: argparse.Namespace) -> int:
    """Simulates every combination. Raises as `run_scenario` does."""
    _sweep(options, options.over, of_points)
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Simulates the values of one setting. Raises as `run_scenario` does."""
    _sweep(options, [options.over], of_comparison)
    return 0


def run_plan(options: argparse.Namespace) -> int:
    """Pulls one lever at a time. Raises as `run_scenario` does."""
    scenario = load_scenario(options.scenario, options.changes)
    if not options.tokens > 0:
        raise UsageError(f"--tokens {options.tokens:g}: wanted more than 0")
    with _progress(scenario.title, len(levers_of(scenario))) as done:
        found = list(plan(scenario, options.tokens, options.jobs, done))
    _say(options, [asdict(pulled) for pulled in found], lambda: _print(of_plan(found, options.tokens)))
    return 0


def run_validation(options: argparse.Namespace) -> int:
    """Runs all of it, which takes minutes: the emulated part goes as fast as time does. Raises `EmulationError`, and as
    `run_scenario` does."""
    # Here, not at the top: real training takes torch, which costs seconds.
    from .publications import gpipe, rebalancing, utilization
    from .replayed_loss import replay
    from .validation import closed_forms, compare_all
    from .validation_page import Findings, figures_beside, write_page

    console = _console()
    if options.out is not None:
        check_plots()
        figures_beside(options.out)
    forms = []
    for form in closed_forms():
        forms.append(form)
        found = f"{form.simulated:.3f} {form.unit} simulated, {form.due:.3f} due"
        console.print(escape(f"{form.what}: {found} ({form.off:+.1%})"))
    tell = partial(console.print, markup=False)
    findings = Findings(forms)
    if not options.closed_forms:
        compared = compare_all(options.cases, options.emulations, options.tcp, tell)
        findings = Findings(forms, compared, tcp=options.tcp)
        if not options.cases:
            findings = replace(
                findings,
                utilized=_told(utilization(), tell),
                flushed=_told(gpipe(), tell),
                rebalanced=_told(rebalancing(), tell),
                replayed=_told(map(replay, range(REPLAYED)), tell),
            )
    if options.out is not None:
        write_page(options.out, findings)
    return 0


def _told(findings: Iterable[T], tell: Callable[[str], None]) -> list[T]:
    """All of them, each told of when it is there."""
    found = []
    for each in findings:
        tell(str(each))
        found.append(each)
    return found


def run_from_log(options: argparse.Namespace) -> int:
    """Writes the scenario of a recorded run. Raises `StorageError`, `ScenarioError`."""
    text = scenario_of(options.log)
    parse_scenario(text, str(options.scenario))
    write_text(options.scenario, text)
    _console().print(f"{options.scenario} is written: swarm-sim run {options.scenario}")
    return 0


def _sweep(options: argparse.Namespace, axes: Sequence[str], grid: Callable[[Sequence[Point]], Grid]) -> None:
    scenario = load_scenario(options.scenario, options.changes)
    runs = len(settings(axes)) * options.seeds
    with _progress(scenario.title, runs) as done:
        points = sweep(options.scenario, options.changes, axes, range(options.seeds), options.jobs, done)
    said = [
        {
            "changes": point.changes,
            "tokens_per_second": _to_json(point.tokens_per_second),
            "kept": _to_json(point.kept),
            "against_the_first": _to_json(point.against(points[0])),
            "outcomes": [outcome.to_json() for outcome in point.outcomes],
        }
        for point in points
    ]
    _say(options, said, lambda: _print(grid(points)))
    if options.report is not None:
        write_points(options.report, scenario, points) if _wants_page(options) else write_json(options.report, said)
    if options.plot is not None:
        plot_sweep(points, options.plot)


def _to_json(interval: Interval) -> list[float | None]:
    return [None if math.isnan(value) else value for value in (interval.mean, interval.half)]


def _say(options: argparse.Namespace, said: list[dict[str, Any]], show: Callable[[], None]) -> None:
    if options.json:
        print(json.dumps(said))
    else:
        show()


def _wants_page(options: argparse.Namespace) -> bool:
    return options.report is not None and options.report.suffix in (".html", ".htm")


@contextmanager
def _progress(title: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on the terminal; nothing where there is none."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def _console() -> Console:
    """Nothing is cut where the output goes to another program."""
    return Console(width=None if sys.stdout.isatty() else 160)


def _show(outcomes: Sequence[Outcome]) -> None:
    console = _console()
    console.print(f"[bold]{outcomes[0].scenario}[/bold]")
    _print(of_outcomes(outcomes))
    _print(of_losses(outcomes))
    if len(outcomes) > 1:
        console.print(f"[dim]seed {outcomes[0].seed}:[/dim]")
    _print(of_stages(outcomes[0]))
    if outcomes[0].happened:
        _print(of_events(outcomes[0]))
    for line in warnings_of(outcomes):
        console.print(f"[yellow]{escape(line)}[/yellow]")


def _print(grid: Grid) -> None:
    console = _console()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, name in enumerate(grid.columns):
        table.add_column(name, justify="right" if number else "left")
    for row in grid.rows:
        table.add_row(*map(escape, row))
    console.print(table)
    console.print(f"[dim]{grid.note}[/dim]\n" if grid.note else "")


if __name__ == "__main__":
    sys.exit(main())
