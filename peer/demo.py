"""`swarm-peer demo`: a whole swarm on this machine, each peer a process of its own, with kills.

Starts a coordinator and the peers (`local_swarm.py`), follows the coordinator's events, SIGKILLs peers as told, shows
progress and writes the report.
"""

import argparse
import json
import signal

from ..errors import StoppedError, StorageError, UnreachableError
from ..swarm.shared_folder import SharedFolder
from ..swarm.sources import model_source, text_path
from .kills import KillPlan, parse_kills
from .local_swarm import LocalSwarm, child_environment
from .progress import Progress, summary
from .settings import settings_of, toml_of
from .zygote import Zygote, is_possible

GIVE_UP_SECONDS = 60.0


def run_demo(options: argparse.Namespace) -> int:
    """Runs the demo; the exit code.

    Raises `UsageError`, `StoppedError` (after the report is written), `UnreachableError`.
    """
    settings = settings_of(options)
    kills = parse_kills(options.kill, settings, options.replicas)
    model_source(options.model)
    for name in (*settings.data.texts, *settings.data.heldout):
        text_path(name)
    if options.export:
        # Imported here: it takes torch with it, which the children need and this process does not.
        from ..swarm.model.folder import check_target

        check_target(options.export)
    folder = SharedFolder.temporary()
    swarm = LocalSwarm(options.model, folder)
    plan = KillPlan(kills, lambda peer: swarm.kill(swarm.child_of(peer)))
    stop = _Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    error, report, export_error = "", None, ""
    try:
        swarm.zygote = Zygote(child_environment(), folder.path / "zygote.log") if is_possible() else None
        flags = ["--export", str(options.export.absolute())] if options.export else []
        flags += ["--merge"] if options.merge else []
        flags += ["--http", options.http]
        swarm.start_coordinator(toml_of(options), "--give-up", str(GIVE_UP_SECONDS), *flags)
        with Progress(settings, options.replicas) as progress:
            for event in swarm.events(progress.tick):
                plan.see(event)
                progress.see(event)
                if event["event"] == "listening":
                    swarm.start_peers(options.stages * options.replicas, event["run_id"], event["addresses"])
                elif event["event"] == "ended":
                    error, report = event["error"], plan.complete(event["report"])
                elif event["event"] == "exported":
                    export_error = event["error"]
        if report is None:
            raise UnreachableError(f"the coordinator ended without a report:\n{swarm.last_words()}")
    finally:
        swarm.close()
        if swarm.zygote:
            swarm.zygote.close()
        folder.leave()
    if stop.came:
        raise KeyboardInterrupt
    if options.report:
        options.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    summary(report, settings)
    if error:
        raise StoppedError(error)
    if export_error:
        raise StorageError(f"nothing was exported: {export_error}")
    return 0


class _Stop:
    """Ends the demo at a signal, also if the interpreter was just where it can only print an exception and go on."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: object) -> None:
        self.came = True
        raise KeyboardInterrupt
