"""`swarm-peer join`: one volunteer's peer, from finding the run to its end."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ..swarm.arithmetic import RealArithmetic
from ..swarm.backend import StageBackend
from ..swarm.compute import ThreadDevice
from ..swarm.keys import Identity, state_folder
from ..swarm.local_runs import meet
from ..swarm.manifest import Manifest
from ..swarm.model.checkpoint import Progress
from ..swarm.model.held import HeldStore
from ..swarm.model.opening import open_checkpoint
from ..swarm.model.weights import stage_base
from ..swarm.peer import Parts, Peer
from ..swarm.process import SharedFolder, network_node
from ..swarm.sources import cache_folder
from ..swarm.spill_file import DiskSpill
from ..swarm.torch_backend import TorchBackend
from .loading import Loading
from .span import Place, host_stages, nth_address, nth_key


def torch_parts(model: str, device: str, progress: Progress | None = None) -> Parts:
    """The numbers of a run on this machine: torch, with the weights of `model`. `progress` hears what is read."""

    store = HeldStore(cache_folder() / "stages")

    def backend(manifest: Manifest, stage: int) -> StageBackend:
        def read() -> Iterator[tuple[str, Tensor]]:
            checkpoint = open_checkpoint(model, manifest.weights.revision if manifest.weights else "")
            with checkpoint or nullcontext():
                yield from stage_base(manifest, stage, checkpoint, progress)

        held = store.get_or_make(manifest, stage, torch.device(device), read)
        return TorchBackend(manifest, stage, held, device)

    return Parts(backend=backend, arithmetic=RealArithmetic)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


async def join(options: argparse.Namespace, folder: SharedFolder, tell: Callable[[str], None]) -> str:
    """Serves stages until the run ends; the trainer's last word. Raises what `Peer.run` does."""
    run = meet(options.run, options.initial_peers or (), options.model)
    if not options.initial_peers:
        tell(f"found run {run.run_id[:12]} of {run.model} on this machine")
    torch.set_num_threads(options.threads or max(1, os.cpu_count() or 1))
    key = options.identity or state_folder() / "peer.key"
    device = ThreadDevice()
    loading = Loading(tell)
    parts = torch_parts(options.model, options.device or default_device(), loading)

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
                peer.besides, peer.placed = place.besides, place.placed
                return await peer.run(run.run_id, stage)
        finally:
            spill.close()

    try:
        return await host_stages(options.stages, host, tell)
    finally:
        loading.cancel()
        device.close()


def shared_folder(path: Path | None) -> SharedFolder:
    return SharedFolder(path) if path else SharedFolder.temporary()
