"""`swarm-coordinator`: lead a run. Exit codes: 0 finished, 1 an error that the message names, 2 a wrong command line,
3 the run stopped and cannot go on, 130 interrupted."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import StoppedError, SwarmError
from .events import Event
from .keys import Identity, state_folder
from .manifest import load_settings

EXIT_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 3, 130
DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/0"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _start(options)
    except StoppedError as error:
        print(f"swarm-coordinator: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except SwarmError as error:
        print(f"swarm-coordinator: {error}", file=sys.stderr)
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swarm-coordinator", description="Lead a training run of volunteers.")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start a run from a manifest and lead it to its last step")
    start.add_argument("manifest", type=Path, help="settings of the run, TOML")
    start.add_argument("--listen", nargs="+", default=[DEFAULT_LISTEN], metavar="MULTIADDR", help="where to listen")
    start.add_argument(
        "--announce",
        nargs="+",
        default=[],
        metavar="MULTIADDR",
        help="addresses to tell others, such as a forwarded port's (default: those listened on)",
    )
    start.add_argument("--report", type=Path, help="write the report here, JSON")
    start.add_argument("--organizer-key", type=Path, help="the key that signs the run (default: made on first use)")
    start.add_argument("--json", action="store_true", help="print events as JSON, one a line")
    start.add_argument("--give-up", type=float, metavar="SECONDS", help="end if a stage has no peer for this long")
    start.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    start.add_argument("--watch-parent", action="store_true", help=argparse.SUPPRESS)
    return parser


def _start(options: argparse.Namespace) -> int:
    settings = load_settings(options.manifest)
    # Imported here: torch and hivemind take seconds, and a wrong command line or manifest should not.
    from .coordinator import coordinate
    from .process import Interrupted, SharedFolder, run_process
    from .show import line_of

    def emit(event: Event) -> None:
        text = json.dumps(event.to_json()) if options.json else line_of(event)
        if text is not None:
            print(text, flush=True)

    organizer = Identity.load_or_create(options.organizer_key or state_folder() / "organizer.key")
    folder = SharedFolder(options.folder) if options.folder else SharedFolder.temporary()
    work = coordinate(
        settings,
        organizer=organizer,
        folder=folder,
        listen=options.listen,
        announce=options.announce,
        emit=emit,
        give_up=options.give_up,
    )
    try:
        report = run_process(work, watch_parent=options.watch_parent)
    except Interrupted:
        return EXIT_INTERRUPTED
    finally:
        folder.leave()
    if options.report:
        options.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
