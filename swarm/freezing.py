"""From settings to a run: reads texts and model on the organizer's machine and freezes the manifest; and what a
coordinator that comes later needs beside a frozen one.

Errors: `ManifestError`, `DataError`, `ModelError`, each naming what to change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, ManifestError, ModelError
from .chat_template import ChatTemplate, load_chat_template
from .data import Corpus, CorpusSamples, TokenSource, file_digest
from .instructions import read_conversations
from .manifest import DataSettings, LlamaShape, Manifest, Settings, Weights, freeze
from .model.checkpoint import Checkpoint, Progress
from .model.config import TINY
from .model.files import Files
from .model.opening import TOKENIZER, open_checkpoint, open_files, tokenizer_folder
from .model.precision import resolve_compute_dtype
from .sizes import boundary_bytes
from .sources import text_path
from .tokenizer import ByteTokenizer, FileTokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frozen manifest and what its organizer holds beside it. `folder`: of a model that lies on this machine."""

    manifest: Manifest
    folder: Path | None
    corpus: TokenSource
    heldout: TokenSource

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
    folder = None if files is None else tokenizer_folder(files)
    tokenizer, tokenizer_digest = _tokenizer(folder)
    shape = TINY if checkpoint is None else checkpoint.shape
    if tokenizer.vocab_size > shape.vocab_size:
        raise ManifestError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {shape.vocab_size}")
    if settings.model.compute_dtype == "auto":
        model = settings.model.model_copy(update={"compute_dtype": resolve_compute_dtype()})
        settings = settings.model_copy(update={"model": model})
    if checkpoint is not None and checkpoint.is_nf4:
        settings = on_nf4(settings)
    _check_payload(settings, shape)
    chat = _chat(settings.data, folder)
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
        chat_sha256=None if chat is None else chat.digest,
        texts_sha256=tuple(file_digest(path) for path in texts),
        heldout_sha256=tuple(file_digest(path) for path in heldout),
        organizer=organizer,
        nonce=nonce,
    )
    return _prepared(manifest, files, texts, heldout, tokenizer, chat)


def on_nf4(settings: Settings) -> Settings:
    """For a checkpoint whose linear layers are in nf4. Raises `ManifestError` where that cannot be."""
    if settings.train.mode == "full":
        raise ManifestError(f"{settings.model.name} is in nf4: only adapters can be trained on it (train.mode = lora)")
    if settings.model.base not in ("auto", "nf4"):
        raise ManifestError(
            f"{settings.model.name} is in nf4: model.base is {settings.model.base!r}; wanted nf4 or auto"
        )
    return settings.model_copy(update={"model": settings.model.model_copy(update={"base": "nf4"})})


def _check_payload(settings: Settings, shape: LlamaShape) -> None:
    samples, length, codecs = settings.train.microbatch, settings.data.sequence_length, settings.codecs
    for codec in (codecs.activations, codecs.gradients, settings.model.compute_dtype):
        size, limit = boundary_bytes(shape, samples, length, codec, codecs.block), settings.limits.payload_bytes
        if size > limit and settings.model.stages > 1:
            raise ManifestError(
                f"a microbatch of {samples} x {length} tokens is {size:,} bytes between two stages, in {codec}; "
                f"limits.payload_bytes is {limit:,}: take a smaller train.microbatch, or raise the limit"
            )


def _prepared(
    manifest: Manifest,
    files: Files | None,
    texts: Sequence[Path],
    heldout: Sequence[Path],
    tokenizer: Tokenizer,
    chat: ChatTemplate | None,
) -> Prepared:
    def read(paths: Sequence[Path]) -> TokenSource:
        if chat is None:
            return Corpus.from_texts(paths, tokenizer)
        return read_conversations(paths, tokenizer, chat, manifest.settings.data.loss_on)

    local = Path(files.where) if files is not None and files.is_local else None
    return Prepared(manifest, local, read(texts), read(heldout))


def take_up(manifest: Manifest) -> Prepared:
    """What a coordinator holds beside a manifest that was frozen before, perhaps on another machine.

    Raises `DataError` or `ModelError` if a text or tokenizer here is not the one that the run is trained on.
    """
    settings = manifest.settings
    files = open_files(settings.model.name, manifest.weights.revision if manifest.weights else "")
    try:
        folder = None if files is None else tokenizer_folder(files)
    finally:
        if files is not None:
            files.close()
    tokenizer, tokenizer_digest = _tokenizer(folder)
    if tokenizer_digest != manifest.tokenizer_sha256:
        raise ModelError(
            f"the tokenizer of {settings.model.name!r} here has digest {tokenizer_digest}; "
            f"the run wants {manifest.tokenizer_sha256}: fetch the model that the run was started with"
        )
    chat = _chat(settings.data, folder)
    if chat is not None and chat.digest != manifest.chat_sha256:
        raise ModelError(
            f"chat template and special tokens of {settings.model.name!r} here have digest {chat.digest}; the run "
            f"wants {manifest.chat_sha256}: bring the model's folder that the run was started with"
        )
    texts = _same_texts(settings.data.texts, manifest.texts_sha256)
    heldout = _same_texts(settings.data.heldout, manifest.heldout_sha256)
    return _prepared(manifest, files, texts, heldout, tokenizer, chat)


def _chat(data: DataSettings, folder: Path | None) -> ChatTemplate | None:
    return load_chat_template(folder, data.chat_template) if data.format == "jsonl" else None


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
    path = folder / TOKENIZER
    return FileTokenizer(path), file_digest(path)
