"""From settings to a run: reads texts and model on the organizer's machine and freezes the manifest.

Errors: `ManifestError`, `DataError`, `ModelError`, each naming what to change.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, ManifestError
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


def _tokenizer(folder: Path | None) -> tuple[Tokenizer, str | None]:
    if folder is None:
        return ByteTokenizer(), None
    path = folder / "tokenizer.json"
    return FileTokenizer(path), file_digest(path)
