"""`swarm-coordinator`: lead a run, stand by in one, plan one or make a model ready; take what one has trained, or
measure it.

Its exit codes are those of `flags.py`.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StorageError, UsageError
from .events import Event
from .flags import EXIT_INTERRUPTED, Program
from .keys import Identity, state_folder
from .logs import add_log_level, heed_logs, level_of
from .manifest import load_settings

if TYPE_CHECKING:
    from .exporting import Export

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/0"
DEFAULT_HTTP = "127.0.0.1:0"
COMMANDS = ("status", "top", "watch", "pause", "resume", "drain", "ban")


def main(arguments: Sequence[str] | None = None) -> int:
    commands = dict.fromkeys(COMMANDS, _command)
    commands |= {"start": _start, "export": _export, "evaluate": _evaluate, "invite": _invite, "plan": _plan}
    commands |= {"quantize": _quantize, "replay": _replay}
    return _program().run(commands, arguments)


def _program() -> Program:
    commands = Program("swarm-coordinator", "Lead a training run of volunteers.")
    start = commands.add_parser("start", help="start a run from a manifest, or stand by in one that has begun")
    start.add_argument("manifest", type=Path, nargs="?", help="settings of the run, TOML")
    start.add_argument("--standby", action="store_true", help="follow a run's trainer; lead when nobody does")
    start.add_argument("--run", help="with --standby: run id")
    start.add_argument(
        "--initial-peers",
        nargs="+",
        metavar="MULTIADDR",
        help="with --standby or --resume: addresses in the run; else nodes of a directory to share (default: its own)",
    )
    start.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on with a run from its checkpoint, or the newest in a folder"
    )
    start.add_argument(
        "--checkpoint-every",
        type=_steps,
        default=20,
        metavar="N",
        help="steps between checkpoints (default: 20; 0: none)",
    )
    start.add_argument(
        "--checkpoints", type=Path, metavar="DIR", help="where this run's checkpoints are kept (default: state folder)"
    )
    start.add_argument(
        "--keep-checkpoints", type=_some, default=2, metavar="N", help="how many checkpoints stay (default: 2)"
    )
    start.add_argument("--listen", nargs="+", default=[DEFAULT_LISTEN], metavar="MULTIADDR", help="where to listen")
    start.add_argument(
        "--announce",
        nargs="+",
        default=[],
        metavar="MULTIADDR",
        help="addresses to tell others, such as a forwarded port's (default: those listened on)",
    )
    start.add_argument("--report", type=Path, help="write the report here, JSON, if this coordinator leads at the end")
    start.add_argument("--export", type=Path, metavar="DIR", help="write what was trained here when the run is over")
    _add_merge(start)
    start.add_argument(
        "--http",
        default=DEFAULT_HTTP,
        metavar="HOST:PORT",
        help=f"where to show the dashboard (default: {DEFAULT_HTTP}, a free port; off: nowhere)",
    )
    start.add_argument(
        "--api",
        default=DEFAULT_HTTP,
        metavar="HOST:PORT",
        help=f"where to answer programs, by gRPC (default: {DEFAULT_HTTP}, a free port; off: nowhere)",
    )
    start.add_argument("--api-cert", type=Path, metavar="FILE", help="with --api-key: have the API use TLS, PEM")
    start.add_argument("--api-key", type=Path, metavar="FILE", help="with --api-cert: its private key, PEM")
    start.add_argument(
        "--exports", type=Path, metavar="DIR", help="where the API exports to, a folder each (default: state folder)"
    )
    start.add_argument("--invite", type=Path, metavar="FILE", help="write the invite to the run here as well")
    start.add_argument("--unlisted", action="store_true", help="leave the run out of the directory's index of runs")
    start.add_argument("--organizer-key", type=Path, help="the key that signs the run (default: made on first use)")
    start.add_argument("--json", action="store_true", help="print events as JSON, one a line")
    add_log_level(start)
    start.add_argument("--give-up", type=float, metavar="SECONDS", help="end if a stage has no peer for this long")
    start.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    start.add_argument("--watch-parent", action="store_true", help=argparse.SUPPRESS)

    export = commands.add_parser("export", help="write what a run that goes on has trained so far")
    export.add_argument(
        "export", type=Path, metavar="DIR", help="a new folder: a PEFT adapter, or with --merge a model"
    )
    _add_merge(export)
    _add_meeting(export)

    replay = commands.add_parser("replay", help="show a past run on the dashboard, at any moment of it")
    replay.add_argument("log", type=Path, metavar="FILE", help="a run's events: a folder, or a file of it")
    replay.add_argument("--http", default=DEFAULT_HTTP, metavar="HOST:PORT", help="where (default: a free port here)")

    evaluate = commands.add_parser("evaluate", help="measure the held-out loss of a run that goes on, in the swarm")
    _add_meeting(evaluate)
    evaluate.add_argument("--organizer-key", type=Path, help="the key that signed the run (default: the one made here)")
    evaluate.add_argument("--json", action="store_true", help="print the numbers as JSON")

    invite = commands.add_parser("invite", help="print an invite to a run that goes on, for `swarm-peer join`")
    _add_meeting(invite)
    invite.add_argument("--organizer-key", type=Path, help="the key that signed the run (default: the one made here)")

    plan = commands.add_parser("plan", help="who would host what, and how fast it would be")
    plan.add_argument("manifest", type=Path, help="settings of the run, TOML")
    plan.add_argument(
        "--peers",
        nargs="+",
        required=True,
        metavar="SPEC",
        help="such as 8x:memory=24GB,gflops=20000,up=100,down=500,rtt=60ms: eight peers, Mbit/s and round trip",
    )
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")

    quantize = commands.add_parser("quantize", help="make of a model one in nf4, fitted to a text")
    quantize.add_argument("model", help="a name of the model table, a folder, a URL or a Hub id")
    quantize.add_argument("folder", type=Path, metavar="DIR", help="a new folder: what `model.name` can name then")
    quantize.add_argument(
        "--texts",
        nargs="+",
        required=True,
        metavar="TEXT",
        help="like what it is to be trained on, and not held out",
    )
    quantize.add_argument("--samples", type=_some, default=256, metavar="N", help="of the texts (default: 256)")
    quantize.add_argument("--tokens", type=_some, default=128, metavar="N", help="of a sample (default: 128)")
    quantize.add_argument("--device", default="cpu", help="what computes: cpu (default), cuda:0")
    quantize.add_argument("--threads", type=_some, metavar="N", help="of the CPU (default: torch's)")
    from .api.commands import add_parsers

    add_parsers(commands)
    return commands


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--merge", action="store_true", help="the whole model with the adapters in it")
    parser.add_argument("--merge-dtype", choices=("bf16", "fp32"), default="bf16", help="its numbers (default: bf16)")


def _add_meeting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help="run id (default: a run on this machine)")
    parser.add_argument("--initial-peers", nargs="+", default=[], metavar="MULTIADDR", help="addresses in the run")


def _check(options: argparse.Namespace) -> None:
    """Whether the flags of `start` belong together. Raises `UsageError`."""
    if bool(options.api_cert) != bool(options.api_key):
        raise UsageError("--api-cert and --api-key belong together")
    if options.resume and (options.manifest or options.standby or options.run):
        raise UsageError("--resume takes the run from the checkpoint: no manifest, --standby or --run beside it")
    if options.standby and (options.manifest or not options.run or not options.initial_peers):
        raise UsageError("--standby takes --run and --initial-peers, as the trainer prints them, and no manifest")
    if not options.resume and not options.standby and (not options.manifest or options.run):
        raise UsageError("start takes a manifest, or --resume DIR, or --standby with --run and --initial-peers")


def _steps(text: str) -> int:
    return _at_least(text, 0)


def _some(text: str) -> int:
    return _at_least(text, 1)


def _at_least(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a whole number, {least} or more")
    return number


def _start(options: argparse.Namespace) -> int:
    _check(options)
    key = options.organizer_key or state_folder() / "organizer.key"
    settings = load_settings(options.manifest) if options.manifest else None
    # Imported here: torch and hivemind take seconds, and a wrong command line or manifest should not.
    from .apart import Apart, standard_output
    from .coordinator import Keeping, Node, coordinate, resume, stand_by
    from .process import Interrupted, run_process
    from .shared_folder import SharedFolder
    from .show import line_of
    from .showing import Places

    def emit(event: Event) -> None:
        text = json.dumps(event.to_json()) if options.json else line_of(event)
        if text is not None and (options.json or level <= logging.INFO):
            apart.call(partial(print, text, file=output, flush=True))

    # Standard output is the events' alone.
    level, output, apart = level_of(options.log_level), standard_output(), Apart()
    heed_logs(options.log_level, lambda line, _: print(line, file=sys.stderr, flush=True))

    export = _export_of(options) if options.export else None
    folder = SharedFolder(options.folder) if options.folder else SharedFolder.temporary()
    try:
        places = Places(
            http=None if options.http == "off" else options.http,
            api=None if options.api == "off" else options.api,
            tls=(options.api_cert, options.api_key) if options.api_cert else None,
        )
        keeping = None
        if options.checkpoint_every:
            keeping = Keeping(options.checkpoint_every, options.keep_checkpoints, options.checkpoints)
        node = Node(
            folder,
            options.listen,
            emit,
            announce=options.announce,
            give_up=options.give_up,
            export=export,
            places=places,
            exports=options.exports,
            keeping=keeping,
            invite=options.invite,
            listed=not options.unlisted,
        )
        others = options.initial_peers or ()
        if options.resume:
            work = resume(options.resume, organizer=Identity.load_or_create(key), initial_peers=others, node=node)
        elif settings is not None:
            work = coordinate(settings, organizer=Identity.load_or_create(key), node=node, initial_peers=others)
        else:
            # A key made now would be nobody's: a standby brings the organizer's, or none and has been here before.
            known = Identity.load_or_create(key) if key.exists() else None
            if known is None and options.invite:
                raise UsageError(f"--invite needs the organizer's key, and {key} is not there (--organizer-key)")
            work = stand_by(options.run, organizer=known, initial_peers=others, node=node)
        with apart:
            report = run_process(work, watch_parent=options.watch_parent)
    except Interrupted:
        return EXIT_INTERRUPTED
    finally:
        folder.leave()
    if options.report and report is not None:
        options.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if export is not None and export.problem:
        raise StorageError(f"nothing was exported: {export.problem}")
    return 0


def _export_of(options: argparse.Namespace) -> "Export":
    from .exporting import Export

    export = Export(options.export, options.merge, options.merge_dtype)
    export.check()
    return export


def _export(options: argparse.Namespace) -> int:
    export = _export_of(options)
    from .exporting import export_from_run
    from .guest import Guest

    async def work(guest: Guest) -> None:
        await export_from_run(export, guest.manifest, guest.transport, guest.directory, _say)

    code = _as_guest(options, work)
    if code == 0:
        _say(f"written: {options.export}")
    return code


def _evaluate(options: argparse.Namespace) -> int:
    organizer = _organizer_of(options, "have it evaluated")
    from .errands import ask_for_evaluation
    from .guest import Guest
    from .measures import measures, measures_line

    async def work(guest: Guest) -> None:
        answer = await ask_for_evaluation(guest.manifest, organizer, guest.identity, guest.transport, guest.directory)
        found = measures(answer.version, answer.loss.real, answer.tokens, answer.bytes)
        _say(json.dumps(found) if options.json else measures_line(found))

    return _as_guest(options, work)


def _invite(options: argparse.Namespace) -> int:
    organizer = _organizer_of(options, "invite to it")
    from .guest import Guest
    from .inviting import invite_from_run

    async def work(guest: Guest) -> None:
        _say(await invite_from_run(guest.manifest, organizer, guest.directory))

    return _as_guest(options, work)


def _organizer_of(options: argparse.Namespace, what: str) -> Identity:
    """The key that signed the run. Raises `UsageError` if it is not here."""
    key = options.organizer_key or state_folder() / "organizer.key"
    if not key.exists():
        raise UsageError(f"{key} is not there: only the organizer of a run may {what} (--organizer-key)")
    return Identity.load_or_create(key)


def _command(options: argparse.Namespace) -> int:
    from .api.commands import run_command

    return run_command(options)


def _plan(options: argparse.Namespace) -> int:
    from .plan_command import run_plan

    return run_plan(options)


def _quantize(options: argparse.Namespace) -> int:
    from .quantize_command import run_quantize

    return run_quantize(options)


def _replay(options: argparse.Namespace) -> int:
    import asyncio

    from .dashboard.replaying import Replaying
    from .dashboard.server import serve_replay
    from .process import Interrupted, run_process

    replaying = Replaying(options.log)

    async def work() -> None:
        async with serve_replay(replaying, options.http) as url:
            _say(f"events {replaying.first} to {replaying.last}; look at {url} (Ctrl-C ends)")
            await asyncio.Event().wait()

    with contextlib.suppress(Interrupted):
        run_process(work())
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _as_guest(options: argparse.Namespace, work: Callable[[Any], Awaitable[None]]) -> int:
    """Does something in a run without being a member of it."""
    from .guest import meet_as_guest
    from .local_runs import meet
    from .process import Interrupted, run_process

    run = meet(options.run, options.initial_peers)
    try:
        run_process(meet_as_guest(run, work))
    except Interrupted:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
