"""`swarm-peer join`: one volunteer's peer, from finding the run to its end, pauses between included."""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from .. import __version__
from ..errors import DeviceError, ModelError, UsageError
from ..protos import swarm_pb2 as pb
from ..swarm.compute import ThreadDevice
from ..swarm.invites import Invite, read_invite
from ..swarm.keys import Identity, state_folder
from ..swarm.local_runs import LocalRun, meet
from ..swarm.machine import Overrides
from ..swarm.peer import Peer
from ..swarm.process import network_node, process_age
from ..swarm.shared_folder import SharedFolder
from ..swarm.sources import cache_folder, model_source
from ..swarm.spill_file import DiskSpill
from .control import Control, serve_control
from .hosting import Hosting
from .lending import said_by, wishes_of
from .loading import Loading
from .owner import rules_of
from .pausing import Lender, Looking
from .probe import all_memory, devices_of, usable_cores
from .reporting import Report, keep_showing
from .span import AS_MANY_AS_FIT, Place, host_stages, nth_address, nth_key
from .traffic import Traffic

BEHIND = (
    "nobody reaches this machine from outside: it is reached through the peers it knows, more slowly where routers do "
    "not let two such connect. A port forwarded to it is better: --listen /ip4/0.0.0.0/tcp/PORT"
)


async def join(options: argparse.Namespace, folder: SharedFolder, report: Report, control: Control) -> str:
    """Serves stages until the run ends; the trainer's last word. Raises what `Peer.run` does."""
    age = process_age()
    control.began = None if age is None else asyncio.get_running_loop().time() - age
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
    met = await _meet(options, tell)
    control.threads = options.threads or usable_cores()
    torch.set_num_threads(control.threads)
    take_part = partial(_take_part, options, said, met, folder, tell, report, control)
    traffic = None if wishes.cap is None else Traffic(state_folder(), met.run.run_id, tell=tell)
    folders = [cache_folder(), options.spill or folder.path]
    looking = Looking(control.moved, folders, time.time, wishes.cap, traffic, tell)
    lender = Lender(rules_of(wishes, all_memory()), looking, control, tell, lambda: report.show(control.status()))
    try:
        async with serve_control(control):
            return await lender.lend(take_part)
    finally:
        looking.close()


@dataclass(frozen=True, slots=True)
class Met:
    """A run, and what an invite said of it: the organizer's public key, and where the model is."""

    run: LocalRun
    organizer: str | None = None
    model: str | None = None


async def _meet(options: argparse.Namespace, tell: Callable[[str], None]) -> Met:
    """The run that the command line means. Raises `UsageError`, `TrustError`, `UnreachableError`."""
    if options.invite:
        invite = await asyncio.to_thread(read_invite, options.invite)
        tell(f"invited to run {invite.run_id[:12]} by {invite.organizer[:16]}")
        run = LocalRun(invite.run_id, invite.model, invite.addresses, 0)
        return Met(run, invite.organizer, await asyncio.to_thread(_model_of, invite))
    run = meet(options.run, options.initial_peers or (), options.model or "")
    if not options.initial_peers:
        tell(f"found run {run.run_id[:12]} of {run.model} on this machine")
    return Met(run)


def _meet_again(options: argparse.Namespace, met: Met) -> LocalRun:
    """The run, where it is now: one of this machine may have moved."""
    if options.invite:
        return met.run
    try:
        return meet(met.run.run_id, options.initial_peers or (), options.model or "")
    except UsageError:
        return met.run


async def _take_part(
    options: argparse.Namespace,
    said: Overrides,
    met: Met,
    folder: SharedFolder,
    tell: Callable[[str], None],
    report: Report,
    control: Control,
) -> str:
    """Serves stages until the run ends or this machine leaves it: the trainer's last word."""
    run = _meet_again(options, met)
    key = options.identity or state_folder() / "peer.key"
    devices = {name: _device(options) for name in devices_of(options.device)}

    def set_threads(count: int) -> None:
        for device in devices.values():
            device.on_both(partial(torch.set_num_threads, count))

    control.set_threads = set_threads
    set_threads(control.threads)
    loading = Loading(report.loading)
    model = options.model or met.model
    hosting = Hosting(model, said, tell, loading, sys.stdout.isatty())
    control.fetched = lambda: hosting.received
    up, down = said.bandwidth or (0.0, 0.0)

    async def host(place: Place) -> str:
        """One member: a node of its own, and one stage."""
        milestones = control.set_out(asyncio.get_running_loop().time())
        identity = Identity.load_or_create(nth_key(key, place.number))
        where = folder.path / identity.peer_id[-8:]
        spill = DiskSpill((options.spill or where) / f"{place.number}")
        listen, announce = (
            [nth_address(address, place.number) for address in given] for given in (options.listen, options.announce)
        )
        stage = None if options.stage is None else options.stage + place.number
        stage = place.stage if place.stage is not None else stage
        try:
            async with network_node(identity, where, listen, run.addresses, announce) as (transport, directory):
                place.tell(f"peer {identity.peer_id} connected")
                if transport.relayed:
                    place.tell(BEHIND)
                parts = hosting.parts_on(place.device)
                peer = Peer(transport, directory, devices[place.device], parts, spill, tell=place.tell)
                hosting.meet(peer.pool, directory)
                peer.besides, peer.placed = place.besides, place.placed
                peer.about = pb.About(
                    name=options.name, version=__version__, device=place.device, up=int(up), down=int(down)
                )
                peer.surveys, peer.organizer, peer.milestones = True, met.organizer, milestones
                peer.fixed, peer.replaces, peer.serves = options.stage is not None, place.replaces, place.serves.set
                peer.moves = partial(_move, place, peer)
                control.add(peer)
                return await peer.run(run.run_id, stage)
        finally:
            spill.close()
            if place.hosts is not None:
                hosting.release(place.hosts)

    return await _hosted(said, host, tell, loading, devices)


def _device(options: argparse.Namespace) -> ThreadDevice:
    if options.simulated_device is None:
        return ThreadDevice()
    from ..simulations.devices import TimedDevice

    return TimedDevice(*options.simulated_device)


def _move(place: Place, peer: Peer, stage: int) -> bool:
    """Has another member of this machine host a stage in place of this one, unless its owner wants this one here."""
    if peer.fixed or peer.leaving or peer.host is None or stage in place.besides():
        return False
    place.span.move(place, peer.host.member, stage, peer.leave, peer.stay)
    return True


async def _hosted(
    said: Overrides,
    host: Callable[[Place], Awaitable[str]],
    tell: Callable[[str], None],
    loading: Loading,
    devices: Mapping[str, ThreadDevice],
) -> str:
    hangs = False
    try:
        return await host_stages(said.stages or AS_MANY_AS_FIT, host, tell, list(devices))
    except DeviceError:
        hangs = True
        raise
    finally:
        loading.cancel()
        for device in devices.values():
            device.close(wait=not hangs)


def _model_of(invite: Invite) -> str | None:
    """Where an invite says that the weights are; None to ask the peers, also for a name that means nothing here."""
    try:
        model_source(invite.model)
    except ModelError:
        return None
    return invite.model


def shared_folder(path: Path | None) -> SharedFolder:
    return SharedFolder(path) if path else SharedFolder.temporary()
