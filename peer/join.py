"""`swarm-peer join`: one volunteer's peer, from finding the run to its end."""

import argparse
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from ..errors import UsageError
from ..swarm.arithmetic import RealArithmetic
from ..swarm.backend import StageBackend
from ..swarm.compute import ThreadDevice
from ..swarm.keys import Identity, state_folder
from ..swarm.local_runs import local_runs
from ..swarm.manifest import Manifest
from ..swarm.model.checkpoint import Progress
from ..swarm.model.opening import open_checkpoint
from ..swarm.model.weights import stage_base
from ..swarm.peer import Parts, Peer
from ..swarm.process import SharedFolder, network_node
from ..swarm.spill_file import DiskSpill
from ..swarm.torch_backend import TorchBackend
from .loading import Loading


def find_run(options: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, tuple[str, ...]]:
    """(run id, addresses): those given, else of a run of the model on this machine. Raises `UsageError`."""
    if options.initial_peers and options.run:
        return options.run, tuple(options.initial_peers)
    runs = [run for run in local_runs(options.model) if options.run in (None, run.run_id)]
    if options.initial_peers or not runs:
        raise UsageError(
            f"no run of {options.model!r} leads from this machine: pass --run and --initial-peers, "
            "which `swarm-coordinator start` prints as one command"
            if not options.initial_peers
            else "--initial-peers needs --run: `swarm-coordinator start` prints both as one command"
        )
    tell(f"found run {runs[0].run_id[:12]} of {runs[0].model} on this machine")
    return runs[0].run_id, runs[0].addresses


def torch_parts(model: str, device: str, progress: Progress | None = None) -> Parts:
    """The numbers of a run on this machine: torch, with the weights of `model`. `progress` hears what is read."""

    def backend(manifest: Manifest, stage: int) -> StageBackend:
        checkpoint = open_checkpoint(model, manifest.weights.revision if manifest.weights else "")
        with checkpoint or nullcontext():
            return TorchBackend(manifest, stage, stage_base(manifest, stage, checkpoint, progress), device)

    return Parts(backend=backend, arithmetic=RealArithmetic)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


async def join(options: argparse.Namespace, folder: SharedFolder, tell: Callable[[str], None]) -> str:
    """Serves a stage until the run ends; the trainer's last word. Raises what `Peer.run` does."""
    run_id, addresses = find_run(options, tell)
    torch.set_num_threads(options.threads or max(1, os.cpu_count() or 1))
    identity = Identity.load_or_create(options.identity or state_folder() / "peer.key")
    device = ThreadDevice()
    where = folder.path / identity.peer_id[-8:]
    spill = DiskSpill(options.spill or where)
    loading = Loading(tell)
    try:
        node = network_node(identity, where, options.listen, addresses, options.announce)
        async with node as (transport, directory):
            tell(f"peer {identity.peer_id} connected")
            parts = torch_parts(options.model, options.device or default_device(), loading)
            return await Peer(transport, directory, device, parts, spill, tell=tell).run(run_id, options.stage)
    finally:
        loading.cancel()
        device.close()
        spill.close()


def shared_folder(path: Path | None) -> SharedFolder:
    return SharedFolder(path) if path else SharedFolder.temporary()
