"""`swarm-peer join`: one volunteer's peer, from finding the run to its end, pauses between included."""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import torch

from .. import __version__
from ..errors import UsageError
from ..protos import swarm_pb2 as pb
from ..swarm.compute import ThreadDevice
from ..swarm.keys import Identity, state_folder
from ..swarm.local_runs import LocalRun, meet
from ..swarm.machine import Overrides
from ..swarm.peer import Peer
from ..swarm.process import SharedFolder, network_node
from ..swarm.sources import cache_folder
from ..swarm.spill_file import DiskSpill
from .control import Control, serve_control
from .hosting import Hosting
from .lending import said_by, wishes_of
from .loading import Loading
from .owner import rules_of
from .pausing import Lender, Looking
from .probe import all_memory, usable_cores
from .reporting import Report, keep_showing
from .span import AS_MANY_AS_FIT, Place, host_stages, nth_address, nth_key
from .traffic import Traffic


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


async def join(options: argparse.Namespace, folder: SharedFolder, report: Report, control: Control) -> str:
    """Serves stages until the run ends; the trainer's last word. Raises what `Peer.run` does."""
    showing = asyncio.ensure_future(keep_showing(report, control.status))
    try:
        return await _join(options, folder, partial(say, report, control), report, control)
    finally:
        showing.cancel()
        await asyncio.wait((showing,))
        report.show(control.status())


def say(report: Report, control: Control, line: str) -> None:
    """A line to whoever watches now, and whoever asks for it later."""
    control.tell(line)
    report.say(line)


async def _join(
    options: argparse.Namespace, folder: SharedFolder, tell: Callable[[str], None], report: Report, control: Control
) -> str:
    said, wishes = said_by(options), wishes_of(options)
    run = _meet(options, None)
    if not options.initial_peers:
        tell(f"found run {run.run_id[:12]} of {run.model} on this machine")
    control.threads = options.threads or usable_cores()
    torch.set_num_threads(control.threads)
    take_part = partial(_take_part, options, said, run, folder, tell, report, control)
    traffic = None if wishes.cap is None else Traffic(state_folder(), run.run_id, tell=tell)
    folders = [cache_folder(), options.spill or folder.path]
    looking = Looking(control.moved, folders, time.time, wishes.cap, traffic, tell)
    lender = Lender(rules_of(wishes, all_memory()), looking, control, tell)
    try:
        async with serve_control(control):
            return await lender.lend(take_part)
    finally:
        looking.close()


def _meet(options: argparse.Namespace, before: LocalRun | None) -> LocalRun:
    """The run, where it is now; one of this machine that has been met `before` may have moved. Raises `UsageError`."""
    try:
        return meet(before.run_id if before else options.run, options.initial_peers or (), options.model or "")
    except UsageError:
        if before is None:
            raise
        return before


async def _take_part(
    options: argparse.Namespace,
    said: Overrides,
    run: LocalRun,
    folder: SharedFolder,
    tell: Callable[[str], None],
    report: Report,
    control: Control,
) -> str:
    """Serves stages until the run ends or this machine leaves it: the trainer's last word."""
    run = _meet(options, run)
    key = options.identity or state_folder() / "peer.key"
    device = ThreadDevice()
    control.set_threads = lambda count: device.on_both(partial(torch.set_num_threads, count))
    device.on_both(partial(torch.set_num_threads, control.threads))
    loading = Loading(report.loading)
    hosting = Hosting(options.model, options.device or default_device(), said, tell, loading, sys.stdout.isatty())
    control.fetched = lambda: hosting.received
    parts = hosting.parts()
    up, down = said.bandwidth or (0.0, 0.0)
    about = pb.About(name=options.name, version=__version__, device=hosting.device, up=int(up), down=int(down))

    async def host(place: Place) -> str:
        """One member: a node of its own, and one stage."""
        identity = Identity.load_or_create(nth_key(key, place.number))
        where = folder.path / identity.peer_id[-8:]
        spill = DiskSpill((options.spill or where) / f"{place.number}")
        listen, announce = (
            [nth_address(address, place.number) for address in given] for given in (options.listen, options.announce)
        )
        stage = None if options.stage is None else options.stage + place.number
        try:
            async with network_node(identity, where, listen, run.addresses, announce) as (transport, directory):
                place.tell(f"peer {identity.peer_id} connected")
                peer = Peer(transport, directory, device, parts, spill, tell=place.tell)
                hosting.meet(peer.pool, directory)
                peer.besides, peer.placed, peer.about = place.besides, place.placed, about
                peer.surveys = True
                control.add(peer)
                return await peer.run(run.run_id, stage)
        finally:
            spill.close()

    return await _hosted(said, host, tell, loading, device)


async def _hosted(
    said: Overrides,
    host: Callable[[Place], Awaitable[str]],
    tell: Callable[[str], None],
    loading: Loading,
    device: ThreadDevice,
) -> str:
    try:
        return await host_stages(said.stages or AS_MANY_AS_FIT, host, tell)
    finally:
        loading.cancel()
        device.close()


def shared_folder(path: Path | None) -> SharedFolder:
    return SharedFolder(path) if path else SharedFolder.temporary()
