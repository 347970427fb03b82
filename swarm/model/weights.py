"""The base weights of one stage: from a checkpoint (`checkpoint.py`), or the seeded random base of `tiny`.

Errors: `ModelError` with what came and what is wanted.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from ...errors import ModelError
from ..initial import base_tensor
from ..manifest import LlamaShape, Manifest
from .checkpoint import Checkpoint, Progress, Weight
from .names import stage_base_shapes, stage_pieces


def random_base(seed: int, shape: LlamaShape, wanted: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """The seeded random base: the wanted tensors (name -> shape) in fp32, a function of seed and name alone."""
    for name, size in wanted.items():
        yield name, base_tensor(seed, name, size, shape.initializer_range)


def stage_base(
    manifest: Manifest, stage: int, checkpoint: Checkpoint | None, progress: Progress | None = None
) -> Iterator[tuple[str, Weight]]:
    """The base tensors of one stage, one after the other: whoever quantizes them holds no more than one as it came.
    `checkpoint` is None for a run without one (random base).

    Raises `ModelError` if the checkpoint is not the run's: at once as far as its headers say, and for its values when
    a piece has been read, if the manifest has their digests.
    """
    if manifest.weights is None:
        if checkpoint is not None:
            raise ModelError(
                f"{checkpoint.files.where}: the run trains {manifest.settings.model.name!r}, which has no checkpoint: "
                f"pass --model {manifest.settings.model.name}"
            )
        return random_base(manifest.settings.seed, manifest.shape, stage_base_shapes(manifest, stage))
    if checkpoint is None:
        raise ModelError(
            f"stage {stage} needs the weights of {manifest.settings.model.name!r}, but no folder was given"
        )
    if checkpoint.shape != manifest.shape:
        where = checkpoint.files.name_of("config.json")
        raise ModelError(f"{where}: describes {checkpoint.shape!r}; the manifest wants {manifest.shape!r}")
    checkpoint.check(manifest.weights)
    return checkpoint.read(stage_pieces(manifest, stage), manifest.weights.pieces, progress)
