"""`swarm-peer join`: one volunteer's peer, from finding the run to its end."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import ModelError, UsageError
from ..swarm.advice import checked
from ..swarm.arithmetic import RealArithmetic
from ..swarm.backend import StageBackend
from ..swarm.compute import ThreadDevice
from ..swarm.keys import Identity, state_folder
from ..swarm.local_runs import local_runs
from ..swarm.machine import AS_IT_IS, Overrides, overridden
from ..swarm.manifest import Manifest
from ..swarm.model.weights import stage_base, weights_digest
from ..swarm.peer import Parts, Peer
from ..swarm.process import SharedFolder, network_node
from ..swarm.sources import cache_folder, model_path
from ..swarm.spill_file import DiskSpill
from ..swarm.torch_backend import TorchBackend
from .lending import said_by
from .probe import standing, usable_cores


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


def torch_parts(
    model: str, device: str, said: Overrides = AS_IT_IS, tell: Callable[[str], None] = lambda line: None
) -> Parts:
    """The numbers of a run on this machine: torch, with the weights of `model`. Before anything of a stage is loaded,
    what it will take is told; `FittingError` if that is more than there is, or than its owner has `said`."""

    def backend(manifest: Manifest, stage: int) -> StageBackend:
        # Only the device that was chosen stands here, so what was said of devices is done.
        machine = overridden(standing(device, cache_folder()), replace(said, device=None))
        for line in checked(manifest, stage, machine, machine.devices[0], may_recompute=False):
            tell(line)
        folder = model_path(model)
        found = None if folder is None else weights_digest(folder)
        if found != manifest.weights_sha256:
            raise ModelError(
                f"the weights of {model!r} here have digest {found}; the run wants {manifest.weights_sha256} "
                f"({manifest.settings.model.name}): fetch that model, or pass its folder as --model"
            )
        return TorchBackend(manifest, stage, stage_base(manifest, stage, folder), device)

    return Parts(backend=backend, arithmetic=RealArithmetic)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


async def join(options: argparse.Namespace, folder: SharedFolder, tell: Callable[[str], None]) -> str:
    """Serves a stage until the run ends; the trainer's last word. Raises what `Peer.run` does."""
    run_id, addresses = find_run(options, tell)
    said = said_by(options)
    if said.stages not in (None, 1):
        raise UsageError(f"--stages is {said.stages}; a process hosts one stage: start as many processes")
    torch.set_num_threads(options.threads or usable_cores())
    identity = Identity.load_or_create(options.identity or state_folder() / "peer.key")
    device = ThreadDevice()
    where = folder.path / identity.peer_id[-8:]
    spill = DiskSpill(options.spill or where)
    try:
        node = network_node(identity, where, options.listen, addresses, options.announce)
        async with node as (transport, directory):
            tell(f"peer {identity.peer_id} connected")
            parts = torch_parts(options.model, options.device or default_device(), said, tell)
            return await Peer(transport, directory, device, parts, spill, tell=tell).run(run_id, options.stage)
    finally:
        device.close()
        spill.close()


def shared_folder(path: Path | None) -> SharedFolder:
    return SharedFolder(path) if path else SharedFolder.temporary()
