"""From settings to a run: reads texts and model on the organizer's machine and freezes the manifest; and what a
coordinator that comes later needs beside a frozen one.

Errors: `ManifestError`, `DataError`, `ModelError`, each naming what to change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, ManifestError, ModelError
from .data import Corpus, CorpusSamples, file_digest
from .manifest import Manifest, Settings, Weights, freeze
from .model.checkpoint import Checkpoint, Progress
from .model.config import TINY
from .model.files import Files
from .model.opening import open_checkpoint, open_files, tokenizer_file
from .model.precision import resolve_compute_dtype
from .sources import text_path
from .tokenizer import ByteTokenizer, FileTokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frozen manifest and what its organizer holds beside it. `folder`: of a model that lies on this machine."""

    manifest: Manifest
    folder: Path | None
    corpus: Corpus
    heldout: Corpus

    def samples(self) -> CorpusSamples:
        return CorpusSamples(self.manifest, self.corpus, self.heldout)


def prepare(settings: Settings, *, organizer: str, nonce: str, progress: Progress | None = None) -> Prepared:
    """Resolves everything that a manifest fixes. `organizer`: public key, hex; `nonce`: 16 bytes, hex. `progress` hears
    how much of a local model is read.

    Raises what the module says, and for a remote model `UnreachableError` and `StorageError`.
    """
    checkpoint = open_checkpoint(settings.model.name)
    if checkpoint is None:
        return _freeze(settings, None, organizer, nonce, None)
    with checkpoint:
        return _freeze(settings, checkpoint, organizer, nonce, progress)


def _freeze(
    settings: Settings, checkpoint: Checkpoint | None, organizer: str, nonce: str, progress: Progress | None
) -> Prepared:
    files = None if checkpoint is None else checkpoint.files
    tokenizer, tokenizer_digest = _tokenizer(files)
    shape = TINY if checkpoint is None else checkpoint.shape
    if tokenizer.vocab_size > shape.vocab_size:
        raise ManifestError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {shape.vocab_size}")
    if settings.model.compute_dtype == "auto":
        model = settings.model.model_copy(update={"compute_dtype": resolve_compute_dtype()})
        settings = settings.model_copy(update={"model": model})
    texts = [text_path(name) for name in settings.data.texts]
    heldout = [text_path(name) for name in settings.data.heldout]
    shared = {file_digest(path) for path in texts} & {file_digest(path) for path in heldout}
    if shared:
        raise DataError("a held-out text is among the training texts; its loss would prove nothing")
    weights: Weights | None = None if checkpoint is None else checkpoint.weights(progress)
    manifest = freeze(
        settings=settings,
        shape=shape,
        weights=weights,
        tokenizer_sha256=tokenizer_digest,
        texts_sha256=tuple(file_digest(path) for path in texts),
        heldout_sha256=tuple(file_digest(path) for path in heldout),
        organizer=organizer,
        nonce=nonce,
    )
    return _prepared(manifest, files, texts, heldout, tokenizer)


def _prepared(
    manifest: Manifest, files: Files | None, texts: list[Path], heldout: list[Path], tokenizer: Tokenizer
) -> Prepared:
    folder = Path(files.where) if files is not None and files.is_local else None
    return Prepared(manifest, folder, Corpus.from_texts(texts, tokenizer), Corpus.from_texts(heldout, tokenizer))


def take_up(manifest: Manifest) -> Prepared:
    """What a coordinator holds beside a manifest that was frozen before, perhaps on another machine.

    Raises `DataError` or `ModelError` if a text or tokenizer here is not the one that the run is trained on.
    """
    settings = manifest.settings
    files = open_files(settings.model.name, manifest.weights.revision if manifest.weights else "")
    try:
        tokenizer, tokenizer_digest = _tokenizer(files)
    finally:
        if files is not None:
            files.close()
    if tokenizer_digest != manifest.tokenizer_sha256:
        raise ModelError(
            f"the tokenizer of {settings.model.name!r} here has digest {tokenizer_digest}; "
            f"the run wants {manifest.tokenizer_sha256}: fetch the model that the run was started with"
        )
    texts = _same_texts(settings.data.texts, manifest.texts_sha256)
    heldout = _same_texts(settings.data.heldout, manifest.heldout_sha256)
    return _prepared(manifest, files, texts, heldout, tokenizer)


def _same_texts(names: Sequence[str], digests: Sequence[str]) -> list[Path]:
    paths = [text_path(name) for name in names]
    for path, wanted in zip(paths, digests, strict=True):
        found = file_digest(path)
        if found != wanted:
            raise DataError(f"{path} has digest {found}; the run is trained on {wanted}: bring the same file here")
    return paths


def _tokenizer(files: Files | None) -> tuple[Tokenizer, str | None]:
    if files is None:
        return ByteTokenizer(), None
    path = tokenizer_file(files)
    return FileTokenizer(path), file_digest(path)
