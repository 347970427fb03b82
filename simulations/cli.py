"""`swarm-sim`: what a swarm would do, simulated by the swarm's own code.

Its exit codes are those of `swarm/flags.py`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from ..errors import StorageError, UsageError
from ..swarm.flags import Program
from .scenario import known_scenarios, load_scenario
from .study import MINUTE, Outcome, Study


def main(arguments: Sequence[str] | None = None) -> int:
    return _program().run({"run": run_scenario, "list": run_list}, arguments)


def _program() -> Program:
    commands = Program("swarm-sim", "Simulate a swarm: the real trainer and peers on virtual time.")
    running = commands.add_parser("run", help="simulate a scenario and say what came of it")
    running.add_argument("scenario", type=Path, help="a TOML file, or the name of one that `list` shows")
    several = running.add_mutually_exclusive_group()
    several.add_argument("--seed", type=int, metavar="N", help="in place of the scenario's own seed")
    several.add_argument("--seeds", type=_some, metavar="K", help="seeds 0 to K-1, one after the other")
    running.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="a key of the scenario set otherwise, such as run.pipeline.staleness=0 or peers.0.count=40",
    )
    running.add_argument("--report", type=Path, metavar="FILE", help="write everything here, JSON")
    running.add_argument("--json", action="store_true", help="print everything as JSON instead of a table")
    commands.add_parser("list", help="the scenarios that come with the package")
    return commands


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
    seeds = [options.seed] if options.seeds is None else list(range(options.seeds))
    if options.seed is not None and options.seed < 0:
        raise UsageError(f"--seed {options.seed}: wanted 0 or more")
    quiet = not sys.stderr.isatty()
    outcomes = []
    for seed in seeds:
        if not quiet:
            print(
                f"{scenario.title}: seed {seed if seed is not None else scenario.seed} …", file=sys.stderr, flush=True
            )
        outcomes.append(Study(scenario, seed).run())
    said = [outcome.to_json() for outcome in outcomes]
    if options.report is not None:
        try:
            options.report.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{options.report} cannot be written: {error}") from error
    if options.json:
        print(json.dumps(said))
    else:
        _show(outcomes)
    return 0


def _console() -> Console:
    """Nothing is cut where the output goes to another program."""
    return Console(width=None if sys.stdout.isatty() else 160)


def _show(outcomes: Sequence[Outcome]) -> None:
    console = _console()
    console.print(f"[bold]{outcomes[0].scenario}[/bold]")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("seed", "steps", "tokens/s", "kept", "a step", "lost", "recovery", "moved", "undone", "per token, up"):
        table.add_column(name, justify="right")
    for outcome in outcomes:
        table.add_row(*_cells(outcome))
    console.print(table)
    console.print("[dim]kept: of what the devices that were there could compute if nothing ever waited[/dim]")
    stages = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("stage", "replicas", "devices busy"):
        stages.add_column(name, justify="right")
    for stage, found in enumerate(outcomes[0].stages):
        stages.add_row(str(stage), f"{found.replicas:.1f}", f"{found.busy:.0%}")
    if len(outcomes) > 1:
        console.print(f"[dim]seed {outcomes[0].seed}:[/dim]")
    console.print(stages)
    for at, kind, hit in outcomes[0].happened:
        console.print(
            f"  {at / MINUTE:7.2f} min  {kind}: {hit} machines" if hit != 1 else f"  {at / MINUTE:7.2f} min  {kind}"
        )
    for outcome in outcomes:
        if outcome.explained:
            console.print(f"[yellow]seed {outcome.seed}: not one step: {outcome.explained}[/yellow]")


def _cells(outcome: Outcome) -> list[str]:
    tokens = sum(tokens for _, tokens in outcome.steps)
    recovery = f"{median(outcome.recoveries):.1f} s" if outcome.recoveries else "-"
    return [
        str(outcome.seed),
        f"{len(outcome.steps)}{'' if outcome.finished else ' so far'}",
        f"{outcome.tokens_per_second:,.0f}",
        f"{outcome.kept:.0%}",
        f"{outcome.step_seconds:.1f} s",
        str(outcome.lost),
        recovery,
        str(outcome.moved),
        str(outcome.steps_undone),
        _bytes(outcome.bytes_up / tokens) if tokens else "-",
    ]


def _bytes(count: float) -> str:
    return f"{count / 1e3:.1f} kB" if count >= 1000 else f"{count:.0f} B"


if __name__ == "__main__":
    sys.exit(main())
