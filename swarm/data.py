"""Text as tokens, tokens as samples: which sample a microbatch holds is a pure function of (seed, step, index).

The tokens of all texts stand one after the other in one array. A window is T+1 tokens that start at a multiple of T
(T = `data.sequence_length`): T inputs and the T that follow them. Each pass over the data visits every window once,
in an order keyed by the seed and the number of the pass, so that any process can say what (step, index) is without
having seen the steps before it.

That is plain text, all of it learned; conversations, of which a part is, are `packing.py`'s. Labels that are not to be
learned are `IGNORED`, as in torch's cross entropy, and every count of label tokens leaves them out.

Errors: `DataError` for a text that is missing or too short, `WireError` for token bytes that are not what is due.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, WireError
from .driving import Microbatch
from .manifest import Manifest
from .tokenizer import Tokenizer, pieces_of

TokenArray = NDArray[np.int32]

IGNORED = -100
"""The label of a token that is not learned: what `torch.nn.functional.cross_entropy` ignores unless told otherwise."""

Row = tuple[NDArray[np.generic], NDArray[np.bool_] | None]
"""The token ids of one window [T + 1] and which of them are learned [T + 1]; None: all."""


class Windows(Protocol):
    """The windows of training, numbered from 0 without end."""

    def window(self, number: int) -> Row: ...


class TokenSource(Protocol):
    """What samples are cut from: `Corpus`, or `packing.Conversations`."""

    @property
    def text_bytes(self) -> int:
        """Of all the text, in UTF-8; 0 if that is not known."""
        ...

    def __len__(self) -> int:
        """Tokens in all."""
        ...

    def window(self, start: int, length: int) -> Row:
        """The length + 1 tokens from `start` on, as the files have them."""
        ...

    def order(self, seed: int, length: int, samples: int) -> Windows:
        """Training's windows, `samples` of them a step. Raises `DataError`."""
        ...


def id_type(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """The narrowest type that holds a vocabulary."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Token ids [n], in the narrowest type that holds the vocabulary, and how long the text is in UTF-8."""

    tokens: NDArray[np.generic]
    text_bytes: int = 0

    @classmethod
    def from_texts(cls, paths: Sequence[Path], tokenizer: Tokenizer) -> "Corpus":
        """Reads and tokenizes UTF-8 texts, one after the other, piece by piece. Raises `DataError`."""
        kind = id_type(tokenizer.vocab_size)
        ids = bytearray()  # grows in place: joining arrays at the end would hold the corpus twice
        text_bytes = 0
        for path in paths:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
            text_bytes += path.stat().st_size
            for piece in pieces_of(text):
                ids += tokenizer.encode(piece).astype(kind).tobytes()
        return cls(np.frombuffer(ids, kind), text_bytes)

    def __len__(self) -> int:
        return int(self.tokens.size)

    def window(self, start: int, length: int) -> Row:
        return self.tokens[start : start + length + 1], None

    def order(self, seed: int, length: int, samples: int) -> "ShuffledWindows":
        return ShuffledWindows(self, seed, length)


def file_digest(path: Path) -> str:
    """sha256 of a file, hex. Raises `DataError`."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _windows(source: TokenSource, length: int) -> int:
    return max(0, (len(source) - 1) // length)


def pass_order(seed: int, which: int, count: int) -> NDArray[np.int64]:
    """In which order a pass takes `count` things: a permutation, the same on every machine."""
    key = hashlib.sha256(f"{seed}/order/{which}".encode()).digest()
    words = np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8")).random_raw(count)
    return np.argsort(words, kind="stable")


class ShuffledWindows:
    """The windows of a text, each once a pass. Keeps the order of one pass at a time."""

    def __init__(self, corpus: Corpus, seed: int, length: int) -> None:
        self._corpus, self._seed, self._length = corpus, seed, length
        self._count = _windows(corpus, length)
        self._pass = -1
        self._order = np.zeros(0, np.int64)

    def window(self, number: int) -> Row:
        which, place = divmod(number, self._count)
        if which != self._pass:
            self._order, self._pass = pass_order(self._seed, which, self._count), which
        return self._corpus.window(int(self._order[place]) * self._length, self._length)


class TrainingOrder:
    """The samples of training under a manifest."""

    def __init__(self, manifest: Manifest, source: TokenSource) -> None:
        self._train = manifest.settings.train
        length = manifest.settings.data.sequence_length
        if not _windows(source, length):
            raise DataError(
                f"the text has {len(source)} tokens; at sequence length {length} "
                f"it needs at least {length + 1}: give a longer text or a shorter sequence_length"
            )
        self._windows = source.order(manifest.settings.seed, length, self._train.batch)

    def sample(self, step: int, index: int) -> tuple[TokenArray, TokenArray]:
        """(tokens, labels), each int32 [samples, T], of a microbatch. The last of a step may hold fewer samples."""
        train = self._train
        first = index * train.microbatch
        samples = min(train.microbatch, train.batch - first)
        if samples <= 0:
            raise DataError(f"microbatch {index} is beyond a batch of {train.batch} samples")
        numbers = range(step * train.batch + first, step * train.batch + first + samples)
        return _stack([self._windows.window(number) for number in numbers])


def heldout_batches(manifest: Manifest, source: TokenSource) -> list[tuple[TokenArray, TokenArray]]:
    """The held-out microbatches: consecutive windows from the start of the text, `heldout_tokens` labels in all,
    ignored ones included, rounded down to whole windows (at least one). Raises `DataError`."""
    settings = manifest.settings
    length = settings.data.sequence_length
    windows = max(1, settings.data.heldout_tokens // length)
    if windows > _windows(source, length):
        raise DataError(f"the held-out text has {len(source)} tokens; {windows * length + 1} are needed")
    rows = [source.window(number * length, length) for number in range(windows)]
    size = settings.train.microbatch
    batches = [_stack(rows[first : first + size]) for first in range(0, windows, size)]
    if not any(learned_labels(labels) for _, labels in batches):
        raise DataError(f"nothing is learned in the first {windows * length} held-out tokens: raise heldout_tokens")
    return batches


def _stack(rows: Sequence[Row]) -> tuple[TokenArray, TokenArray]:
    block = np.stack([ids for ids, _ in rows]).astype(np.int32)
    labels = block[:, 1:].copy()  # not a view: what is ignored is written into it
    for row, (_, learned) in zip(labels, rows, strict=True):
        if learned is not None:
            row[~learned[1:]] = IGNORED
    return np.ascontiguousarray(block[:, :-1]), labels


def learned_labels(labels: TokenArray) -> int:
    """How many labels count."""
    return int(np.count_nonzero(labels != IGNORED))


def tokens_to_bytes(tokens: TokenArray) -> bytes:
    """int32 little-endian, row after row."""
    return tokens.astype("<i4").tobytes()


def tokens_from_bytes(data: bytes, samples: int, length: int, vocab_size: int) -> TokenArray:
    """The array [samples, length] of such bytes. Raises `WireError` for a wrong length or an unknown id."""
    tokens = _from_bytes(data, samples, length)
    _check_ids(tokens, vocab_size)
    return tokens


def labels_from_bytes(data: bytes, samples: int, length: int, vocab_size: int) -> TokenArray:
    """As `tokens_from_bytes`, with labels that are `IGNORED` among them."""
    labels = _from_bytes(data, samples, length)
    _check_ids(labels[labels != IGNORED], vocab_size)
    return labels


def _from_bytes(data: bytes, samples: int, length: int) -> TokenArray:
    if len(data) != 4 * samples * length:
        raise WireError(f"{len(data)} bytes of token ids came; [{samples}, {length}] takes {4 * samples * length}")
    return np.frombuffer(data, dtype="<i4").reshape(samples, length).astype(np.int32)


def _check_ids(tokens: TokenArray, vocab_size: int) -> None:
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise WireError(f"token ids from {tokens.min()} to {tokens.max()} came; the vocabulary has {vocab_size}")


class CorpusSamples:
    """What a trainer feeds in (`driving.Samples`), from a corpus and a held-out one. Raises `DataError` when made."""

    def __init__(self, manifest: Manifest, corpus: TokenSource, heldout: TokenSource) -> None:
        self._order = TrainingOrder(manifest, corpus)
        batches = heldout_batches(manifest, heldout)
        self._heldout = [_microbatch(*batch) for batch in batches]
        # By the mean over the whole text: where tokens end within a character, a part of it has no length of its own.
        labels = sum(learned_labels(labels) for _, labels in batches)
        self._heldout_bytes = round(labels * heldout.text_bytes / len(heldout))

    def microbatch(self, step: int, index: int) -> Microbatch:
        return _microbatch(*self._order.sample(step, index))

    def heldout(self) -> list[Microbatch]:
        return self._heldout

    def heldout_bytes(self) -> int:
        return self._heldout_bytes


def _microbatch(tokens: TokenArray, labels: TokenArray) -> Microbatch:
    return Microbatch(len(tokens), tokens_to_bytes(tokens), tokens_to_bytes(labels), learned_labels(labels))
