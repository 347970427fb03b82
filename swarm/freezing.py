"""From settings to a run: reads texts and model on the organizer's machine and freezes the manifest; and what a
coordinator that comes later needs beside a frozen one.

Errors: `ManifestError`, `DataError`, `ModelError`, each naming what to change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, ManifestError, ModelError
from .data import Corpus, CorpusSamples, file_digest
from .manifest import LlamaShape, Manifest, Settings, freeze
from .model import config
from .model.precision import resolve_compute_dtype
from .model.weights import weights_digest
from .sources import model_path, text_path
from .tokenizer import ByteTokenizer, FileTokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frozen manifest and what its organizer holds beside it. `folder`: of the model, None for `tiny`."""

    manifest: Manifest
    folder: Path | None
    corpus: Corpus
    heldout: Corpus

    def samples(self) -> CorpusSamples:
        return CorpusSamples(self.manifest, self.corpus, self.heldout)


def prepare(settings: Settings, *, organizer: str, nonce: str) -> Prepared:
    """Resolves everything that a manifest fixes. `organizer`: public key, hex; `nonce`: 16 bytes, hex."""
    folder = model_path(settings.model.name)
    tokenizer, tokenizer_digest = _tokenizer(folder)
    shape: LlamaShape = config.TINY if folder is None else config.read_shape(folder)
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
    manifest = freeze(
        settings=settings,
        shape=shape,
        weights_sha256=None if folder is None else weights_digest(folder),
        tokenizer_sha256=tokenizer_digest,
        texts_sha256=tuple(file_digest(path) for path in texts),
        heldout_sha256=tuple(file_digest(path) for path in heldout),
        organizer=organizer,
        nonce=nonce,
    )
    return Prepared(manifest, folder, Corpus.from_texts(texts, tokenizer), Corpus.from_texts(heldout, tokenizer))


def take_up(manifest: Manifest) -> Prepared:
    """What a coordinator holds beside a manifest that was frozen before, perhaps on another machine.

    Raises `DataError` or `ModelError` if a text or tokenizer here is not the one that the run is trained on.
    """
    settings = manifest.settings
    folder = model_path(settings.model.name)
    tokenizer, tokenizer_digest = _tokenizer(folder)
    if tokenizer_digest != manifest.tokenizer_sha256:
        raise ModelError(
            f"the tokenizer of {settings.model.name!r} here has digest {tokenizer_digest}; "
            f"the run wants {manifest.tokenizer_sha256}: fetch the model that the run was started with"
        )
    texts = _same_texts(settings.data.texts, manifest.texts_sha256)
    heldout = _same_texts(settings.data.heldout, manifest.heldout_sha256)
    return Prepared(manifest, folder, Corpus.from_texts(texts, tokenizer), Corpus.from_texts(heldout, tokenizer))


def _same_texts(names: Sequence[str], digests: Sequence[str]) -> list[Path]:
    paths = [text_path(name) for name in names]
    for path, wanted in zip(paths, digests, strict=True):
        found = file_digest(path)
        if found != wanted:
            raise DataError(f"{path} has digest {found}; the run is trained on {wanted}: bring the same file here")
    return paths


def _tokenizer(folder: Path | None) -> tuple[Tokenizer, str | None]:
    if folder is None:
        return ByteTokenizer(), None
    path = folder / "tokenizer.json"
    return FileTokenizer(path), file_digest(path)
