"""The stages that this machine computes: each is measured against the memory there is before anything of it is loaded,
read from wherever its weights lie, and kept on disk as it is held.

Graphs are kept where they fit and computed again where they do not, for all stages of a device alike. Memory that runs
out after all, as a stage is loaded, is as if it had not fitted. Devices share the machine's RAM and its link.

Errors: `FittingError` with the budget; those of the weights' source.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from ..errors import FittingError, ModelError, SwarmError
from ..swarm.advice import checked
from ..swarm.arithmetic import RealArithmetic
from ..swarm.backend import StageBackend
from ..swarm.budget import PROCESS_BYTES, Budget, budget
from ..swarm.directory import Directory
from ..swarm.exchange import Pool
from ..swarm.link import Measured, measure_link
from ..swarm.machine import AS_IT_IS, Device, Link, Machine, Overrides, overridden
from ..swarm.manifest import Manifest
from ..swarm.model.checkpoint import Checkpoint, Progress, Weight
from ..swarm.model.files import Files, FolderFiles
from ..swarm.model.held import HeldStore
from ..swarm.model.opening import open_checkpoint
from ..swarm.model.peer_files import PeerFiles
from ..swarm.model.weights import stage_base
from ..swarm.peer import Parts
from ..swarm.sources import cache_folder, model_source
from ..swarm.torch_backend import TorchBackend, is_out_of_memory
from ..swarm.work import pace
from .probe import link_of, measured_flops, standing

LINK_SECONDS = 30.0


@dataclass
class Hosting:
    """The stages of one process on its devices. `model`: where their weights are, None to ask the peers of the run;
    `said`: what its owner lends; `tell` takes lines for people, `progress` hears of weights that are read."""

    model: str | None
    said: Overrides = AS_IT_IS
    tell: Callable[[str], None] = field(default=lambda line: None)
    progress: Progress | None = None
    measures: bool = False
    """Whether it also tells how long a visit will take: that costs some seconds of computing."""

    _made: dict[str, dict[int, TorchBackend]] = field(default_factory=dict)
    """By device and stage."""

    _reach: Callable[[Manifest], Files] | None = None
    _sources: list[Files] = field(default_factory=list)
    _flops: dict[str, float] = field(default_factory=dict)
    _measured: Callable[[Manifest], Measured] | None = None

    def parts_on(self, device: str) -> Parts:
        """What a peer needs that computes on this device."""
        source = None if self.model is None else model_source(self.model)
        files = FolderFiles(source) if isinstance(source, Path) else None
        return Parts(backend=partial(self.backend, device=device), arithmetic=RealArithmetic, files=files)

    def meet(self, pool: Pool, directory: Directory) -> None:
        """How to reach the peers of the run. Called on the event loop that these live on."""
        loop = asyncio.get_running_loop()

        def measured(manifest: Manifest) -> Measured:
            waiting = asyncio.run_coroutine_threadsafe(measure_link(manifest, pool, directory), loop)
            return waiting.result(LINK_SECONDS)

        self._reach = lambda manifest: PeerFiles(manifest, pool, directory, loop)
        self._measured = measured

    @property
    def received(self) -> int:
        """Bytes of weights that came over the network from where the model is, not from peers."""
        return sum(files.received for files in self._sources)

    def backend(self, manifest: Manifest, stage: int, *, device: str) -> StageBackend:
        """One stage more. Raises `FittingError`, and what reading its weights raises."""
        found = self._check(manifest, stage, device)
        recompute = found.recompute

        def read() -> Iterator[tuple[str, Weight]]:
            checkpoint = self._open(manifest)
            if checkpoint is not None:
                self._sources.append(checkpoint.files)
            with checkpoint or nullcontext():
                yield from stage_base(manifest, stage, checkpoint, self.progress)

        try:
            held = HeldStore(cache_folder() / "stages").get_or_make(manifest, stage, torch.device(device), read)
            made = TorchBackend(manifest, stage, held, device, recompute=recompute, slots=found.slots)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise FittingError(f"memory ran out while stage {stage} was loaded on {device}") from error
        here = self._made.setdefault(device, {})
        for other in here.values():
            other.recompute = other.recompute or recompute
        here[stage] = made
        return made

    def release(self, stage: int) -> None:
        """A stage is not hosted any more: its memory is free for others."""
        for made in self._made.values():
            made.pop(stage, None)

    def _open(self, manifest: Manifest) -> Checkpoint | None:
        if manifest.weights is None:
            return None
        if self.model is not None:
            return open_checkpoint(self.model, manifest.weights.revision)
        if not manifest.weights.pieces or self._reach is None:
            raise ModelError(
                f"nobody can prove weights of {manifest.settings.model.name!r} from other peers: the organizer has not "
                "digested them. Name their source with --model"
            )
        return Checkpoint(self._reach(manifest))

    def _check(self, manifest: Manifest, stage: int, device: str) -> Budget:
        """Tells the budget of all stages of a device with this one. The first may have fewer slots than the run wants
        if there is no memory for more; a further one must have as many as those that are there."""
        # Only the device that was chosen stands here, so what was said of devices is done.
        machine = overridden(standing(device, cache_folder()), replace(self.said, device=None))
        machine = replace(machine, ram=max(0, machine.ram - self._taken_beside(manifest, device)))
        here = self._made.get(device, {})
        span = span_like([*here, stage], manifest.stages)
        fixed = [made.slots for made in here.values() if made.slots is not None]
        slots = range(min(fixed), min(fixed) + 1) if fixed else None
        found, lines = checked(manifest, span, machine, machine.devices[0], slots)
        for line in [*lines, *(self._expected(manifest, stage, machine, found) if self.measures else [])]:
            self.tell(line)
        return found

    def _taken_beside(self, manifest: Manifest, device: str) -> int:
        """Bytes of RAM that the stages on the other devices take, but for the process itself."""
        taken = 0
        for other, made in self._made.items():
            if other != device and made:
                backend = next(iter(made.values()))
                slots = backend.slots or manifest.settings.pipeline.slots
                span = span_like(list(made), manifest.stages)
                found = budget(manifest, span, slots=slots, recompute=backend.recompute)
                taken += found.ram(Device(other, None if other.startswith("cpu") else 0, 1.0)) - PROCESS_BYTES
        return taken

    def _expected(self, manifest: Manifest, stage: int, machine: Machine, found: Budget) -> list[str]:
        """How long a visit keeps this machine, by one real layer and the link that was told of. The link is that of all
        its devices together."""
        model, device = manifest.settings.model, machine.devices[0].name
        if device not in self._flops:
            self._flops[device] = measured_flops(manifest.shape, model.base, model.compute_dtype, device)
        flops = self._flops[device]
        link, told = self._link(manifest, machine.link)
        hosted = [stage, *(other for made in self._made.values() for other in made)]
        takes = pace(manifest, found.stages, flops, link, recompute=found.recompute)
        moves = pace(manifest, span_like(hosted, manifest.stages), flops, link, recompute=found.recompute)
        together = ", all devices together" if len(hosted) > len(found.stages) else ""
        return [
            f"a microbatch will take {takes.compute:.2g} s of computing at {flops / 1e9:.3g} GFLOP/s, "
            f"{moves.up:.2g} s up and {moves.down:.2g} s down{together} at "
            f"{link.up / 1e6:.4g}/{link.down / 1e6:.4g} Mbit/s ({told})",
        ]

    def _link(self, manifest: Manifest, known: Link) -> tuple[Link, str]:
        """The link to peers of the run, and how it is known."""
        if self.said.bandwidth:
            return known, "as you say"
        found = Measured()
        if self._measured is not None:
            with suppress(SwarmError, concurrent.futures.TimeoutError):
                found = self._measured(manifest)
        link = link_of(found.up, found.down, found.round_trips, known)
        if not found.down:
            return link, "assumed: tell yours with --bandwidth"
        told = f"measured with {len(found.down)} peers, {1000 * link.round_trip:.0f} ms there and back"
        return link, told if found.up else f"{told}; up assumed: tell yours with --bandwidth"


def span_like(stages: list[int], count: int) -> range:
    """The contiguous span of as many stages that is as large: inner stages are as good as equal, the ends are not."""
    lowest = 0 if 0 in stages else count - len(stages) if count - 1 in stages else min(stages)
    return range(lowest, lowest + len(stages))
