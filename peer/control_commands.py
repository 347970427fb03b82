"""`swarm-peer status`, `leave`, `limit` and `logs`: asks a peer that runs on this machine.

Errors: `UsageError` if none runs here, or several and none was named; those of the API's client.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..swarm.api.screen import count
from ..swarm.keys import state_folder
from ..swarm.local_runs import is_alive
from ..swarm.milestones import in_words as counted_in_words

COMMANDS = ("status", "leave", "limit", "logs")
LIMITS = ("slots", "threads")


def add_parsers(commands: Any) -> None:
    """The commands' flags."""
    status = commands.add_parser("status", help="what a peer on this machine does now")
    status.add_argument("--json", action="store_true", help="as JSON")
    leave = commands.add_parser("leave", help="have it leave its run: what it has begun is finished first")
    leave.add_argument("--now", action="store_true", help="at once; others do its work again")
    leave.add_argument("--why", default="", help="told to the organizer and on the dashboard")
    limit = commands.add_parser("limit", help="change what it lends, while it runs")
    limit.add_argument("--slots", type=int, metavar="N", help="visits that may be open at once, in each stage")
    limit.add_argument("--threads", type=int, metavar="N", help="compute threads")
    logs = commands.add_parser("logs", help="what it has said")
    logs.add_argument("-n", "--lines", type=int, default=20, help="how many lines (default: 20)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    for parser in (status, leave, limit, logs):
        parser.add_argument("--pid", type=int, help="its process, where several run here")


def run_command(options: argparse.Namespace) -> int:
    """Does what the command line says."""
    # Imported here: gRPC takes a moment that the other commands need not spend.
    from google.protobuf.json_format import MessageToDict

    from ..protos import api_pb2 as pb
    from ..swarm.api.client import Client, channel_to

    with channel_to(f"unix:{_socket(options.pid)}") as channel:
        client = Client(pb.DESCRIPTOR.services_by_name["Peer"], channel)
        if options.command == "logs":
            request = pb.LogsRequest(lines=max(0, options.lines), follow=options.follow)
            for line in client.stream("Logs", request):
                print(line.text, flush=True)
            return 0
        if options.command == "leave":
            status = client.call("Leave", pb.LeaveRequest(why=options.why, now=options.now))
        elif options.command == "limit":
            given = {name: value for name in LIMITS if (value := getattr(options, name)) is not None}
            if not given or min(given.values()) < 1:
                raise UsageError(f"limit takes {' and '.join(f'--{name}' for name in LIMITS)}, numbers above 0")
            status = client.call("Limit", pb.LimitRequest(**given))
        else:
            status = client.call("Status", pb.StatusRequest())
    if options.command == "status" and options.json:
        print(json.dumps(MessageToDict(status, preserving_proto_field_name=True), indent=2))
    else:
        print(in_words(status))
    return 0


def in_words(status: Any) -> str:
    """A `PeerStatus` in a few lines for people."""
    if not status.peer:
        state = f"{status.state} {status.waits}" if status.waits else str(status.state)
        return f"{state}: {status.leaving}" if status.leaving else state
    refused = ", ".join(f"{times} {reason.lower()}" for reason, times in sorted(status.refused.items())) or "none"
    leaving = f" ({status.leaving})" if status.leaving else ""
    waits = f", waits {status.waits}" if status.waits else ""
    way = counted_in_words(status.counted_after) if status.counted_after else ""
    return (
        f"{status.state}{leaving}: stage {status.stage} of {status.stages}, version {status.version}\n"
        f"{status.open} of {status.slots} visits open, {status.below} below{waits}; "
        f"up to {status.visits_per_second:.2f} visits/s on {count(status.threads, 'thread', 'threads')}\n"
        f"sent {status.sent / 1e6:.1f} MB, received {status.received / 1e6:.1f} MB; "
        f"busy {status.busy} times, refused: {refused}\n"
        f"peer {status.peer} in run {status.run[:12]}" + (f"\n{way}" if way else "")
    )


def sockets() -> Path:
    """The folder of the sockets of this user's peers."""
    return state_folder() / "control"


def _socket(pid: int | None) -> Path:
    """The socket that is meant; those of processes that are gone are removed."""
    found = []
    for path in sorted(sockets().glob("*.sock")) if sockets().is_dir() else ():
        if path.stem.isdecimal() and is_alive(int(path.stem)):
            found.append(path)
        else:
            path.unlink(missing_ok=True)
    wanted = [path for path in found if pid in (None, int(path.stem))]
    if not wanted:
        raise UsageError("no peer of yours runs on this machine" + (f" as process {pid}" if pid else ""))
    if len(wanted) > 1:
        raise UsageError(f"{len(wanted)} peers run here; name one with --pid: " + ", ".join(p.stem for p in wanted))
    return wanted[0]
