"""`swarm-coordinator`: lead a run, stand by in one, or plan one. Exit codes: 0 finished, 1 an error that the message
names, 2 a wrong command line, 3 the run stopped and cannot go on, 130 interrupted."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import StoppedError, SwarmError, UsageError
from .events import Event
from .keys import Identity, state_folder
from .manifest import load_settings
from .plan_command import add_plan_parser, run_plan

EXIT_ERROR, EXIT_USAGE, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 3, 130
DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/0"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "plan":
        return _guarded(run_plan, options)
    if options.standby and (options.manifest or not options.run or not options.initial_peers):
        parser.error("--standby takes --run and --initial-peers, as the trainer prints them, and no manifest")
    if not options.standby and (not options.manifest or options.run or options.initial_peers):
        parser.error("start takes a manifest, or --standby with --run and --initial-peers")
    return _guarded(_start, options)


def _guarded(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    try:
        return command(options)
    except UsageError as error:
        print(f"swarm-coordinator: {error}", file=sys.stderr)
        return EXIT_USAGE
    except StoppedError as error:
        print(f"swarm-coordinator: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except SwarmError as error:
        print(f"swarm-coordinator: {error}", file=sys.stderr)
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swarm-coordinator", description="Lead a training run of volunteers.")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start a run from a manifest, or stand by in one that has begun")
    start.add_argument("manifest", type=Path, nargs="?", help="settings of the run, TOML")
    start.add_argument("--standby", action="store_true", help="follow a run's trainer; lead when nobody does")
    start.add_argument("--run", help="with --standby: run id")
    start.add_argument("--initial-peers", nargs="+", metavar="MULTIADDR", help="with --standby: addresses in the run")
    start.add_argument("--listen", nargs="+", default=[DEFAULT_LISTEN], metavar="MULTIADDR", help="where to listen")
    start.add_argument(
        "--announce",
        nargs="+",
        default=[],
        metavar="MULTIADDR",
        help="addresses to tell others, such as a forwarded port's (default: those listened on)",
    )
    start.add_argument("--report", type=Path, help="write the report here, JSON, if this coordinator leads at the end")
    start.add_argument("--organizer-key", type=Path, help="the key that signs the run (default: made on first use)")
    start.add_argument("--json", action="store_true", help="print events as JSON, one a line")
    start.add_argument("--give-up", type=float, metavar="SECONDS", help="end if a stage has no peer for this long")
    start.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    start.add_argument("--watch-parent", action="store_true", help=argparse.SUPPRESS)
    add_plan_parser(commands)
    return parser


def _start(options: argparse.Namespace) -> int:
    key = options.organizer_key or state_folder() / "organizer.key"
    settings = None if options.standby else load_settings(options.manifest)
    # Imported here: torch and hivemind take seconds, and a wrong command line or manifest should not.
    from .coordinator import Node, coordinate, stand_by
    from .process import Interrupted, SharedFolder, run_process
    from .show import line_of

    def emit(event: Event) -> None:
        text = json.dumps(event.to_json()) if options.json else line_of(event)
        if text is not None:
            print(text, flush=True)

    folder = SharedFolder(options.folder) if options.folder else SharedFolder.temporary()
    try:
        node = Node(folder, options.listen, emit, options.announce, options.give_up)
        if settings is not None:
            work = coordinate(settings, organizer=Identity.load_or_create(key), node=node)
        else:
            # A key made now would be nobody's: a standby brings the organizer's, or none and has been here before.
            organizer = Identity.load_or_create(key) if key.exists() else None
            work = stand_by(options.run, organizer=organizer, initial_peers=options.initial_peers, node=node)
        report = run_process(work, watch_parent=options.watch_parent)
    except Interrupted:
        return EXIT_INTERRUPTED
    finally:
        folder.leave()
    if options.report and report is not None:
        options.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
