"""`swarm-peer`: the volunteer's program. Its exit codes are those of `flags.py`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..swarm.flags import EXIT_INTERRUPTED, Program
from ..swarm.local_runs import check_meeting
from ..swarm.logs import add_log_level, heed_logs, level_of
from ..swarm.sources import TINY
from .control_commands import COMMANDS as CONTROL_COMMANDS
from .control_commands import add_parsers as add_control_parsers
from .control_commands import run_command as run_control
from .lending import add_lending_flags, add_owner_flags
from .settings import MODEL_HELP, add_run_flags


def main(arguments: Sequence[str] | None = None) -> int:
    asking = dict.fromkeys(CONTROL_COMMANDS, run_control)
    commands = {**asking, "demo": _demo, "join": _join, "runs": _runs, "reference": _reference, "fetch": _fetch}
    return _program().run({**commands, "probe": _probe}, arguments)


def _program() -> Program:
    commands = Program("swarm-peer", "Train one language model with many volunteers.")

    demo = commands.add_parser("demo", help="a whole swarm of processes on this machine")
    add_run_flags(demo)
    demo.add_argument("--kill", action="append", metavar="STAGE@STEP", help="SIGKILL a peer there (repeatable)")
    demo.add_argument("--report", type=Path, help="write the report here, JSON")
    demo.add_argument("--export", type=Path, metavar="DIR", help="write what was trained here: a PEFT adapter")
    demo.add_argument(
        "--http",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="the dashboard (default: a free port here; off: none)",
    )
    demo.add_argument("--merge", action="store_true", help="with --export: the whole model with the adapters in it")

    join = commands.add_parser("join", help="host a stage of a run until Ctrl-C")
    join.add_argument("invite", nargs="?", metavar="INVITE", help="an invite: its text, or a file or URL that holds it")
    join.add_argument("--model", help=f"where the weights are: {MODEL_HELP}; without it peers of the run give them")
    join.add_argument("--run", help="run id")
    join.add_argument("--initial-peers", nargs="+", metavar="MULTIADDR", help="addresses of peers of the run")
    join.add_argument("--stage", type=int, help="the first stage to host (default: where peers are fewest)")
    join.add_argument("--listen", nargs="+", default=["/ip4/0.0.0.0/tcp/0"], metavar="MULTIADDR")
    join.add_argument(
        "--announce",
        nargs="+",
        default=[],
        metavar="MULTIADDR",
        help="addresses to tell others, such as a forwarded port's (default: those listened on)",
    )
    join.add_argument("--name", default="", help="what the dashboard calls this peer (default: the end of its id)")
    join.add_argument("--identity", type=Path, help="key file (default: made on first use)")
    add_lending_flags(join)
    add_owner_flags(join)
    join.add_argument("--json", action="store_true", help="tell everything as JSON, one event a line")
    add_log_level(join)
    join.add_argument("--spill", type=Path, help="folder for what does not fit into memory (default: a temporary one)")
    join.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    join.add_argument("--watch-parent", action="store_true", help=argparse.SUPPRESS)
    # For benchmarks: a visit keeps the device for so many seconds, forward and backward.
    join.add_argument("--simulated-device", nargs=2, type=float, help=argparse.SUPPRESS)

    reference = commands.add_parser("reference", help="the same training in one process, to compare with")
    add_run_flags(reference)
    reference.add_argument("--manifest", type=Path, help="settings, TOML, in place of the flags")
    reference.add_argument("--kill", action="append", help="ignored: nobody to kill")
    reference.add_argument("--report", type=Path, help="write the report here, JSON")

    runs = commands.add_parser("runs", help="what can be joined: on this machine, and where addresses lead")
    runs.add_argument("invite", nargs="?", metavar="INVITE", help="look where this invite leads")
    runs.add_argument("--initial-peers", nargs="+", metavar="MULTIADDR", help="addresses of peers of any run there")
    runs.add_argument("--json", action="store_true", help="as JSON")

    probe = commands.add_parser("probe", help="what this machine offers, and what it could host")
    probe.add_argument("--model", default=TINY, help="a fetched name, a folder, or tiny (default)")
    probe.add_argument("--base", default="nf4", choices=("fp32", "bf16", "int8", "nf4"), help="of the frozen base")
    probe.add_argument("--length", type=int, default=0, help="tokens of a microbatch (default: 2048 or what fits)")
    probe.add_argument("--json", action="store_true", help="print what was found as JSON")
    add_lending_flags(probe)
    add_control_parsers(commands)

    fetch = commands.add_parser("fetch", help="fetch models and texts into the cache")
    fetch.add_argument("names", nargs="+")
    return commands


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo

    return run_demo(options)


def _join(options: argparse.Namespace) -> int:
    check_meeting(options.invite, options.run, options.initial_peers)
    # Imported here: torch and hivemind take seconds, and a wrong command line should not.
    from ..swarm.process import Interrupted, run_process
    from .control import Control
    from .join import join, say, shared_folder
    from .reporting import report_of

    folder = shared_folder(options.folder)
    control = Control()
    report = report_of(as_json=options.json, level=level_of(options.log_level))

    def asked() -> bool:
        """The first Ctrl-C has it leave politely, the second goes at once."""
        if not control.leave("its owner ends it"):
            return False
        if control.peers:
            say(report, control, "leaving: what is open is finished first (Ctrl-C again goes at once)")
        return True

    heed_logs(options.log_level, report.say)
    try:
        with report:
            work = join(options, folder, report, control)
            report.end(run_process(work, watch_parent=options.watch_parent, asked=asked))
    except Interrupted:
        return EXIT_INTERRUPTED
    finally:
        folder.leave()
    return 0


def _reference(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ..swarm.freezing import prepare
    from ..swarm.manifest import load_settings
    from .reference import Step, run_reference
    from .settings import settings_of

    settings = load_settings(options.manifest) if options.manifest else settings_of(options)
    prepared = prepare(settings, organizer="0" * 64, nonce="0" * 32)
    console = Console()

    def show(step: Step) -> None:
        console.print(f"step {step['step']}: loss {step['loss']:.4f}, gradient norm {step['grad_norm']:.4f}")

    report = run_reference(prepared.manifest, prepared.corpus, prepared.heldout, prepared.folder, progress=show)
    before, after = report["heldout"]["before"], report["heldout"]["after"]
    console.print(f"held-out loss {before:.4f} -> {after:.4f}")
    if options.report:
        options.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _runs(options: argparse.Namespace) -> int:
    check_meeting(options.invite, None, options.initial_peers)
    from .runs_command import run_runs

    return run_runs(options)


def _probe(options: argparse.Namespace) -> int:
    from .probe_command import run_probe

    return run_probe(options)


def _fetch(options: argparse.Namespace) -> int:
    from .fetch import main as fetch

    return fetch(options.names)


if __name__ == "__main__":
    sys.exit(main())
