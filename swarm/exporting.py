"""`--export`: a run's result, taken from the replicas while they are all there, and written when the run is over.

And `export_from_run`, for a run that goes on. Errors: those of `collecting.py` and `export.py`.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import SwarmError
from .collecting import Collected, collect_as_trainer, collect_from_run
from .directory import Directory
from .exchange import Meter, Pool
from .export import export_adapter, export_model
from .manifest import Manifest
from .model.checkpoint import Checkpoint, Weight
from .model.folder import MergedType, check_target
from .model.opening import open_checkpoint, tokenizer_folder
from .model.weights import stage_base
from .trainer import Trainer
from .transport import Transport

TRIES, PAUSE_SECONDS = 5, 1.0
"""Of taking the last version, each while every stage has a replica that should be able to give it."""


@dataclass
class Export:
    """What is to be written: an adapter, or with `merge` the whole model in `dtype`."""

    folder: Path
    merge: bool = False
    dtype: MergedType = "bf16"
    collected: Collected | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why there is nothing to write, or it was not written: the run ends well all the same."""

    def check(self) -> None:
        """Raises `UsageError` if there is something in its place: better at the start of a run than at its end."""
        check_target(self.folder)

    async def keep(self, trainer: Trainer) -> None:
        """Takes the last version from the replicas of a run; if they are gone, when they or others who have it come."""
        manifest = trainer.manifest
        steps = manifest.settings.train.steps
        for _ in range(TRIES):
            await trainer.signal.wait_for(partial(trainer.roster.some_at, steps))
            try:
                self.collected = await collect_as_trainer(
                    manifest, trainer.roster, trainer.pool, steps, trainer.beginning.epoch
                )
                self.problem = ""
                break
            except SwarmError as error:
                self.problem = str(error)
                await asyncio.sleep(PAUSE_SECONDS)
        before, after = trainer.heldout["before"], trainer.heldout["after"]
        if before is not None and after is not None:
            self.notes["held-out loss"] = f"{before:.4f} -> {after:.4f} nats a token"

    def finish(self, manifest: Manifest) -> None:
        """Writes what `keep` has taken, or says in `problem` why not. Blocks."""
        try:
            if self.collected is not None:
                self.write(manifest)
        except SwarmError as error:
            self.problem = str(error)

    def write(self, manifest: Manifest) -> None:
        """Writes what was taken. Blocks."""
        assert self.collected is not None
        if not self.merge and manifest.settings.train.mode == "lora":
            export_adapter(self.folder, manifest, self.collected, self.notes)
            return
        checkpoint = open_checkpoint(
            manifest.settings.model.name, manifest.weights.revision if manifest.weights else ""
        )
        with checkpoint or nullcontext():
            base = _base(manifest, checkpoint) if manifest.settings.train.mode == "lora" else iter(())
            beside = None if checkpoint is None else tokenizer_folder(checkpoint.files)
            export_model(
                self.folder, manifest, self.collected, base, dtype=self.dtype, tokenizer=beside, notes=self.notes
            )


def _base(manifest: Manifest, checkpoint: Checkpoint | None) -> Iterator[tuple[str, Weight]]:
    """The tensors of all stages, each once: tied embeddings are the first stage's and the last one's."""
    given: set[str] = set()
    for stage in range(manifest.stages):
        for name, tensor in stage_base(manifest, stage, checkpoint):
            if name not in given:
                given.add(name)
                yield name, tensor


async def export_from_run(
    export: Export, manifest: Manifest, transport: Transport, directory: Directory, tell: Callable[[str], None]
) -> None:
    """Writes the newest version that every stage of a run has."""
    export.check()
    pool = Pool(transport, Meter(), silence=manifest.settings.pipeline.silence)
    try:
        export.collected = await collect_from_run(manifest, directory, pool)
    finally:
        pool.close()
    tell(f"got version {export.collected.version} of {manifest.settings.train.steps}")
    await asyncio.to_thread(export.write, manifest)
