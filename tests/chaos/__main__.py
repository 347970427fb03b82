"""Fault schedules from the command line.

    python -m tests.chaos run FIRST LAST [--mutant NAME]      run seeds FIRST..LAST-1, say which break a promise
    python -m tests.chaos replay SEED [--log FILE]            run one seed again and show (or write) its event log
    python -m tests.chaos replay --file SCHEDULE.json         the same for a schedule that was shrunk or written by hand
    python -m tests.chaos shrink SEED [--out FILE]            find a smallest schedule that still breaks
    python -m tests.chaos real SEED [--minutes 5] [--report FILE] [--logs FOLDER]
                                                              the same on real processes: kills, freezes, bad links,
                                                              leaves, joins, moves
    python -m tests.chaos soak [SEED] [--minutes 30] [--out FOLDER] [--warm-up S] [--least S]
                                                              churn of all kinds, and whether any process grows

Exit code 1 if a promise was broken.
"""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from tests.chaos.checks import check_promises
from tests.chaos.elastic_mutants import ELASTIC_MUTANTS
from tests.chaos.mutants import MUTANTS
from tests.chaos.schedules import Schedule, draw_elastic, draw_schedule
from tests.chaos.shrinking import shrink
from tests.chaos.virtual import VIRTUAL_SECONDS, Chaos

EVERY_MUTANT = MUTANTS | ELASTIC_MUTANTS


def problem_of(schedule: Schedule, limit: float = VIRTUAL_SECONDS) -> tuple[Exception | None, Chaos]:
    """What a schedule breaks, if anything, and the run, which has stuck if it takes longer than `limit`."""
    chaos = Chaos(schedule, limit)
    try:
        check_promises(chaos.simulate(), schedule)
    except Exception as error:
        return error, chaos
    return None, chaos


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Run seeded fault schedules.")
    commands = parser.add_subparsers(dest="command", required=True)
    several = commands.add_parser("run", help="run seeds FIRST..LAST-1")
    several.add_argument("first", type=int)
    several.add_argument("last", type=int)
    for name in ("replay", "shrink"):
        one = commands.add_parser(name)
        one.add_argument("seed", type=int, nargs="?")
        one.add_argument("--file", type=Path, help="a schedule as JSON instead of a seed")
        one.add_argument("--log" if name == "replay" else "--out", type=Path, dest="out")
    real = commands.add_parser("real", help="run one seed on real processes (needs the fetched texts)")
    real.add_argument("seed", type=int)
    real.add_argument("--minutes", type=float, default=5.0, help="how long things go wrong (default: 5)")
    real.add_argument("--report", type=Path, help="write the report here, JSON")
    real.add_argument("--logs", type=Path, help="keep the processes' logs and all events in this folder")
    soaking = commands.add_parser("soak", help="churn on real processes, and whether memory and descriptors stay flat")
    soaking.add_argument("seed", type=int, nargs="?", default=1)
    soaking.add_argument("--minutes", type=float, default=30.0, help="how long things go wrong (default: 30)")
    soaking.add_argument(
        "--out", type=Path, default=Path("soak"), help="folder for samples, plot, logs (default: soak)"
    )
    soaking.add_argument("--warm-up", type=float, default=300.0, help="seconds of a process not judged (default: 300)")
    soaking.add_argument("--least", type=float, default=600.0, help="who lived for less is not judged (default: 600 s)")
    for command in [commands.choices[name] for name in ("run", "replay", "shrink")]:
        command.add_argument("--mutant", choices=sorted(EVERY_MUTANT), help="with this rule of the protocol broken")
        command.add_argument("--elastic", action="store_true", help="with losses of whole stages, moves and resumes")
    options = parser.parse_args()
    if options.command == "real":
        return run_real(options)
    if options.command == "soak":
        return run_soak(options)
    draw = draw_elastic if options.elastic else draw_schedule
    with EVERY_MUTANT[options.mutant].broken() if options.mutant else contextlib.nullcontext():
        if options.command == "run":
            return run_several(options.first, options.last, draw)
        if (options.seed is None) == (options.file is None):
            parser.error("give a seed or --file")
        text = options.file.read_text(encoding="utf-8") if options.file else ""
        schedule = Schedule.from_json(text) if text else draw(options.seed)
        return (replay if options.command == "replay" else shrunk)(schedule, options.out)


def run_several(first: int, last: int, draw: Callable[[int], Schedule] = draw_schedule) -> int:
    bad = 0
    longest = 0.0
    for seed in range(first, last):
        error, chaos = problem_of(draw(seed))
        longest = max(longest, chaos.finished_at)
        if error is not None:
            bad += 1
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
    print(f"{bad} of {last - first} schedules broke a promise; the longest took {longest:.1f} virtual seconds")
    return bool(bad)


def run_real(options: argparse.Namespace) -> int:
    from tests.chaos.real import RealChaos  # torch takes seconds to import

    chaos = RealChaos(options.seed, options.minutes * 60, tell=lambda line: print(line, flush=True), logs=options.logs)
    try:
        report = chaos.run()
        if options.report:
            text = json.dumps({**report, "chaos": chaos.done}, indent=2) + "\n"
            options.report.write_text(text, encoding="utf-8")
        chaos.check(report)
    except Exception as error:
        print(f"seed {options.seed} of {options.minutes} minutes; carried out:")
        for fault in chaos.done:
            print(f"  {json.dumps(fault)}")
        print(f"{type(error).__name__}: {error}")
        return 1
    counts = Counter(fault["kind"] for fault in chaos.done)
    print(f"every promise kept; carried out: {_listed(counts)}; the swarm itself: {_listed(chaos.happened)}")
    return 0


def run_soak(options: argparse.Namespace) -> int:
    if find_spec("matplotlib") is None:
        sys.exit("the plot needs matplotlib: pip install 'swarm-peer[bench]'")
    from tests.chaos.flatness import Bounds
    from tests.chaos.soak import soak

    bounds = Bounds(warm_up=options.warm_up, least=options.least)
    problems = soak(options.seed, options.minutes, options.out, bounds)
    print("\n".join(problems) or f"every promise kept, and nothing grows; samples and plot are in {options.out}")
    return bool(problems)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[kind]} x {kind}" for kind in sorted(counts))


def replay(schedule: Schedule, out: Path | None) -> int:
    error, chaos = problem_of(schedule)
    text = "\n".join(chaos.log) + "\n"
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")
    print(
        f"{type(error).__name__}: {error}"
        if error
        else f"every promise kept in {chaos.finished_at:.1f} virtual seconds"
    )
    return bool(error)


def shrunk(schedule: Schedule, out: Path | None) -> int:
    error, _ = problem_of(schedule)
    if error is None:
        print("the schedule breaks no promise")
        return 0
    smallest = shrink(schedule, lambda smaller: type(problem_of(smaller)[0]) is type(error))
    print(smallest.to_json())
    if out is not None:
        out.write_text(smallest.to_json() + "\n", encoding="utf-8")
    print(
        f"{type(error).__name__}: {len(smallest.faults)} of {len(schedule.faults)} faults are needed", file=sys.stderr
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
