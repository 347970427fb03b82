"""From settings to a run: reads texts and model on the organizer's machine and freezes the manifest; and what a
coordinator that comes later needs beside a frozen one.

Errors: `ManifestError`, `DataError`, `ModelError`, each naming what to change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, ManifestError, ModelError
from .chat_template import ChatTemplate, load_chat_template
from .data import Corpus, CorpusSamples, TokenSource, file_digest
from .instructions import read_conversations
from .manifest import DataSettings, LlamaShape, Manifest, Settings, freeze
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
    corpus: TokenSource
    heldout: TokenSource

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
    chat = _chat(settings.data, folder)
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
        chat_sha256=None if chat is None else chat.digest,
        texts_sha256=tuple(file_digest(path) for path in texts),
        heldout_sha256=tuple(file_digest(path) for path in heldout),
        organizer=organizer,
        nonce=nonce,
    )
    read = _reader(settings.data, tokenizer, chat)
    return Prepared(manifest, folder, read(texts), read(heldout))


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
    chat = _chat(settings.data, folder)
    if chat is not None and chat.digest != manifest.chat_sha256:
        raise ModelError(
            f"chat template and special tokens of {settings.model.name!r} here have digest {chat.digest}; the run "
            f"wants {manifest.chat_sha256}: bring the model's folder that the run was started with"
        )
    texts = _same_texts(settings.data.texts, manifest.texts_sha256)
    heldout = _same_texts(settings.data.heldout, manifest.heldout_sha256)
    read = _reader(settings.data, tokenizer, chat)
    return Prepared(manifest, folder, read(texts), read(heldout))


def _chat(data: DataSettings, folder: Path | None) -> ChatTemplate | None:
    return load_chat_template(folder, data.chat_template) if data.format == "jsonl" else None


def _reader(
    data: DataSettings, tokenizer: Tokenizer, chat: ChatTemplate | None
) -> Callable[[Sequence[Path]], TokenSource]:
    def read(paths: Sequence[Path]) -> TokenSource:
        if chat is None:
            return Corpus.from_texts(paths, tokenizer)
        return read_conversations(paths, tokenizer, chat, data.loss_on)

    return read


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
