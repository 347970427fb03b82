"""`swarm-coordinator status`, `top`, `watch`, `pause`, `resume`, `drain`, `ban`: a run that goes on, from a terminal.

All through the API of its coordinator, on this machine unless `--api` names another. Errors: those of `client.py`.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ...errors import ProtocolError, UnreachableError
from ...protos import api_pb2 as pb
from ..merge_patch import apply
from .client import Client, channel_to, find_coordinator, token_of
from .screen import screen

SERVICE = pb.DESCRIPTOR.services_by_name["Coordinator"]
REQUESTS: dict[str, Any] = {
    "pause": pb.PauseRequest,
    "resume": pb.ResumeRequest,
    "drain": pb.DrainRequest,
    "ban": pb.BanRequest,
}
LEAVE = Text("q leaves", "dim")


def add_parsers(commands: Any) -> None:
    """The commands' flags."""
    for name, what in (
        ("status", "how a run is doing"),
        ("top", "the same, live, until q or Ctrl-C"),
        ("watch", "what happens, as JSON lines: the whole document, then a merge patch (RFC 7396) each"),
    ):
        parser = commands.add_parser(name, help=what)
        _add_place(parser)
        if name == "status":
            parser.add_argument("--json", action="store_true", help="everything, as JSON")
        elif name == "watch":
            parser.add_argument("--json", action="store_true", help="as JSON: it is always")
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
    changes = hasattr(options, "token")
    place = find_coordinator(options.api, options.run, changes=changes)
    token = token_of(options.token, place.run_id) if changes else ""
    with channel_to(place.address, options.api_cert or place.certificate) as channel:
        client = Client(SERVICE, channel, token)
        name = options.command
        if name == "status":
            _show_status(client.call("Status", pb.StatusRequest()), options.json)
        elif name == "watch":
            for change in client.stream("Watch", pb.WatchRequest()):
                print(change.document, flush=True)
        elif name == "top":
            _top(client)
        else:
            said = {"peer": options.peer, "why": options.why} if name in ("drain", "ban") else {}
            print(client.call(name.capitalize(), REQUESTS[name](**said)).sentence)
    return 0


def _show_status(status: pb.RunStatus, as_json: bool) -> None:
    document = _patched({}, status.document)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        Console(soft_wrap=not sys.stdout.isatty()).print(screen(document))


def _top(client: Client) -> None:
    console = Console()
    document: dict[str, Any] = {}
    try:
        with client.open("Watch", pb.WatchRequest()) as call:
            if not console.is_terminal:
                for change in call:
                    document = _patched(document, change.document)
                    print(f"{document['phase']}: {document['sentence']}", flush=True)
                return
            with keys(call.cancel), Live(Text("connecting"), console=console, screen=True, auto_refresh=False) as live:
                for change in call:
                    document = _patched(document, change.document)
                    live.update(Group(screen(document, console.height - 1), LEAVE), refresh=True)
    except UnreachableError:
        # A coordinator goes when its run is over.
        if document.get("phase") not in ("finished", "stopped"):
            raise
    if document and console.is_terminal:
        print(f"{document['phase']}: {document['sentence']}")


def _patched(document: Mapping[str, Any], patch: str) -> dict[str, Any]:
    """The document after a patch. Raises `ProtocolError` if it has not what is shown here."""
    try:
        found = apply(document, json.loads(patch))
        screen(found)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ProtocolError(f"the coordinator's document is not this version's: {error!r}") from error
    return found


@contextlib.contextmanager
def keys(leave: Callable[[], object]) -> Iterator[None]:
    """Calls `leave` when q is typed or at Ctrl-C, in a thread of its own, while the block lasts; the terminal is then
    as it was. After Ctrl-C it raises KeyboardInterrupt at the end: where the signal comes, in the midst of what gRPC
    does, it could be lost."""
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    told, tell = os.pipe()
    interrupted = threading.Event()

    def listen() -> None:
        while True:
            ready, _, _ = select.select([terminal, told], [], [])
            typed = os.read(ready[0], 64)
            if told in ready or not typed or b"q" in typed.lower():
                leave()
                return

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        os.write(tell, b"x")

    thread = threading.Thread(target=listen, name="keys")
    handler = signal.signal(signal.SIGINT, interrupt)
    # What was typed while this program loaded counts.
    tty.setcbreak(terminal, termios.TCSADRAIN)
    thread.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        os.write(tell, b"x")
        thread.join()
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        os.close(told)
        os.close(tell)
        if interrupted.is_set():
            raise KeyboardInterrupt
