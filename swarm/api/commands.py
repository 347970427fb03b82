"""`swarm-coordinator status`, `top`, `watch`, `pause`, `resume`, `drain`, `ban`: a run that goes on, from a terminal.

All through the API of its coordinator, on this machine unless `--api` names another. Errors: those of `client.py`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...protos import api_pb2 as pb
from .client import Client, channel_to, find_coordinator, token_of

SERVICE = pb.DESCRIPTOR.services_by_name["Coordinator"]
TONES = {"ready": "green", "loading": "yellow", "draining": "yellow", "training": "green", "finished": "green"}


def add_parsers(commands: Any) -> None:
    """The commands' flags."""
    for name, what in (
        ("status", "how a run is doing"),
        ("top", "the same, live, until Ctrl-C"),
        ("watch", "what happens, as JSON, one change a line"),
    ):
        parser = commands.add_parser(name, help=what)
        _add_place(parser)
        if name == "status":
            parser.add_argument("--json", action="store_true", help="everything, as JSON")
    for name, what in (("pause", "begin no further step"), ("resume", "go on")):
        parser = commands.add_parser(name, help=f"have a run {what}")
        _add_place(parser)
        _add_token(parser)
    for name, what in (
        ("drain", "have a peer leave as soon as nothing depends on it"),
        ("ban", "send a peer away at once, for good"),
    ):
        parser = commands.add_parser(name, help=what)
        parser.add_argument("peer", metavar="PEER", help="its id, the end of it, or its name")
        parser.add_argument("--why", default="", help="told to the peer and on the dashboard")
        _add_place(parser)
        _add_token(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--api", metavar="HOST:PORT", help="of the coordinator (default: a run on this machine)")
    parser.add_argument("--run", help="run id, where several are on this machine")
    parser.add_argument("--api-cert", type=Path, metavar="FILE", help="its certificate, if it uses TLS")


def _add_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--token", type=Path, metavar="FILE", help="the organizer's token (default: of a run here)")


def run_command(options: argparse.Namespace) -> int:
    """Does what the command line says."""
    place, run_id = find_coordinator(options.api, options.run)
    token = token_of(options.token, run_id) if hasattr(options, "token") else ""
    with channel_to(place, options.api_cert) as channel:
        client = Client(SERVICE, channel, token)
        name = options.command
        if name == "status":
            _show_status(client.call("Status", pb.StatusRequest()), options.json)
        elif name == "watch":
            for change in client.stream("Watch", pb.WatchRequest()):
                print(change.document, flush=True)
        elif name == "top":
            _top(change.status for change in client.stream("Watch", pb.WatchRequest()))
        else:
            request = {
                "pause": pb.PauseRequest,
                "resume": pb.ResumeRequest,
                "drain": pb.DrainRequest,
                "ban": pb.BanRequest,
            }[name]
            said = {"peer": options.peer, "why": options.why} if name in ("drain", "ban") else {}
            print(client.call(name.capitalize(), request(**said)).sentence)
    return 0


def _show_status(status: pb.RunStatus, as_json: bool) -> None:
    if as_json:
        print(json.dumps(json.loads(status.document), indent=2))
    else:
        Console().print(screen(status))


def _top(statuses: Iterator[pb.RunStatus]) -> None:
    console = Console()
    if not console.is_terminal:
        for status in statuses:
            print(f"{status.phase}: {status.sentence}", flush=True)
        return
    with Live(Text("connecting"), console=console, screen=True, auto_refresh=False) as live:
        try:
            for status in statuses:
                live.update(screen(status), refresh=True)
        except KeyboardInterrupt:
            sys.exit(130)


def screen(status: pb.RunStatus) -> Group:
    """A run as a terminal shows it."""
    head = Text.assemble((f" {status.phase} ", f"reverse {TONES.get(status.phase, 'yellow')}"), f" {status.sentence}")
    share = ""
    if status.ideal_tokens_per_second and status.tokens_per_second <= status.ideal_tokens_per_second:
        share = f" ({100 * status.tokens_per_second / status.ideal_tokens_per_second:.0f} % of ideal links)"
    loss = f"{status.loss:.4f}" if status.HasField("loss") else "none yet"
    held = f", held out {status.heldout:.4f}" if status.HasField("heldout") else ""
    left = f", {status.seconds_left / 60:.0f} min left" if status.HasField("seconds_left") else ""
    facts = Text(
        f"step {status.step} of {status.steps}{left}\nloss {loss}{held}\n"
        f"{status.tokens_per_second:.0f} tokens/s{share}\n"
        f"{status.microbatches} microbatches: lost {status.lost}, duplicated {status.duplicated}; "
        f"{status.faults} peers lost"
    )
    stages = _table("stage", "replicas", "visits/s", "queue", "")
    for stage in status.stages:
        rate = f"{stage.rate:.2f}" if stage.rate else "?"
        mark = (
            Text("bottleneck", "yellow") if stage.slowest else Text("no replica", "red") if not stage.replicas else ""
        )
        stages.add_row(str(stage.stage), str(stage.replicas), rate, str(stage.queue), mark)
    members = _table("peer", "stage", "state", "counted", "credit", "")
    for member in sorted(status.members, key=lambda member: (member.stage, -member.credit)):
        state = Text(member.state, TONES.get(member.state, "red"))
        waits = Text(member.waits, overflow="ellipsis", no_wrap=True)
        members.add_row(Text(member.name), str(member.stage), state, str(member.counted), f"{member.credit:.1f}", waits)
    return Group(head, facts, stages, members)


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    for name in names[:-1]:
        table.add_column(name, header_style="dim", no_wrap=True)
    table.add_column(names[-1], ratio=1, no_wrap=True, overflow="ellipsis")
    return table
