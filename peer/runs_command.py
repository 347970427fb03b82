"""`swarm-peer runs`: what can be joined, on this machine and, given addresses or an invite, in the directory there.

Runs led on this machine are found by their files and asked at their API, without a node of the network. With addresses
a guest's node asks the directory's index and the trainers in it (`swarm/listing.py`).

Errors: `UnreachableError` if nobody answers at the addresses; those of `read_invite`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import SwarmError
from ..swarm.flags import EXIT_INTERRUPTED
from ..swarm.invites import Invite, read_invite
from ..swarm.listing import OfferedRun, join_command, listed
from ..swarm.local_runs import LocalRun, local_runs

ASK_SECONDS = 5.0
"""For what a coordinator on this machine says of its run."""

MAX_MODEL_SHOWN = 60


def run_runs(options: argparse.Namespace) -> int:
    """Lists them."""
    invite = read_invite(options.invite) if options.invite else None
    addresses = options.initial_peers or (invite.addresses if invite else ())
    found, left_out = runs_here(), 0
    if addresses:
        from ..swarm.guest import guest_node
        from ..swarm.keys import Identity
        from ..swarm.process import Interrupted, run_process

        async def ask() -> tuple[list[OfferedRun], int]:
            async with guest_node(Identity.generate(), addresses) as (transport, directory):
                return await listed(transport, directory, [invite.run_id] if invite else [])

        try:
            there, left_out = run_process(ask())
        except Interrupted:
            return EXIT_INTERRUPTED
        found = merged(found, there)
    if options.json:
        print(json.dumps({"runs": [run.to_json() for run in found], "left_out": left_out}))
    else:
        _show(found, left_out, bool(addresses))
    return 0


def merged(here: Sequence[OfferedRun], there: Sequence[OfferedRun]) -> list[OfferedRun]:
    """Each run once: of one in both the directory's word counts, if its trainer has answered."""
    by_id = {run.run_id: run for run in here}
    for run in there:
        known = by_id.get(run.run_id)
        if known is None:
            by_id[run.run_id] = run
        elif not run.problem:
            by_id[run.run_id] = replace(run, is_here=True, join=known.join)
    return list(by_id.values())


def runs_here() -> list[OfferedRun]:
    """The runs led on this machine, each once."""
    found: dict[str, OfferedRun] = {}
    for local in local_runs(""):
        run = _ask_here(local)
        known = found.get(local.run_id)
        if known is None or (known.problem and not run.problem):
            found[local.run_id] = run
    return list(found.values())


def _ask_here(local: LocalRun) -> OfferedRun:
    model = "" if Path(local.model).is_dir() else local.model
    command = f"swarm-peer join {local.invite}" if local.invite else join_command(local.run_id, model, local.addresses)
    run = OfferedRun(local.run_id, local.model, _organizer(local), join=command, is_here=True)
    if not local.api:
        return replace(run, problem="no more is known here: its coordinator has no API")
    # Imported here: gRPC takes a moment that an empty list need not cost.
    from ..protos import api_pb2 as pb
    from ..swarm.api.client import Client, channel_to

    certificate = Path(local.api_certificate) if local.api_certificate else None
    try:
        with channel_to(local.api, certificate) as channel:
            client = Client(pb.DESCRIPTOR.services_by_name["Coordinator"], channel)
            status = client.call("Status", pb.StatusRequest(), ASK_SECONDS)
    except SwarmError as error:
        return replace(run, problem=f"its coordinator does not answer: {error}")
    replicas = {stage.stage: stage.replicas for stage in status.stages}
    in_order = tuple(replicas[stage] for stage in sorted(replicas))
    return replace(run, replicas=in_order, step=int(status.step), steps=int(status.steps))


def _organizer(local: LocalRun) -> str:
    try:
        return Invite.parse(local.invite).organizer
    except SwarmError:
        return ""


def _show(found: Sequence[OfferedRun], left_out: int, asked: bool) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if not found:
        console.print("no run can be joined" + ("" if asked else " on this machine: name others with --initial-peers"))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("run", "model", "peers a stage", "step", "organizer", ""):
        table.add_column(name, header_style="dim", overflow="fold")
    for run in found:
        model = "".join(character for character in run.model if character.isprintable())[:MAX_MODEL_SHOWN]
        step = f"{'?' if run.step is None else run.step} of {run.steps}" if run.steps else ""
        peers = " ".join(str(count) for count in run.replicas)
        place = "on this machine" if run.is_here else ""
        table.add_row(*(Text(cell) for cell in (run.run_id[:12], model, peers, step, run.organizer[:16], place)))
    console.print(table)
    for run in found:
        if run.join:
            console.print(Text(f"\njoin {run.run_id[:12]} with:\n\n    {run.join}"), soft_wrap=True)
        if run.problem:
            problem = "".join(character for character in run.problem if character.isprintable())
            console.print(Text(f"\n{run.run_id[:12]}: {problem}", "yellow"), soft_wrap=True)
    if left_out:
        console.print(f"\n{left_out} more stand in the index")
