"""Text as tokens, tokens as samples: which sample a microbatch holds is a pure function of (seed, step, index).

The tokens of all texts stand one after the other in one array. A window is T+1 tokens that start at a multiple of T
(T = `data.sequence_length`): T inputs and the T that follow them. Each pass over the data visits every window once,
in an order keyed by the seed and the number of the pass, so that any process can say what (step, index) is without
having seen the steps before it.

Errors: `DataError` for a text that is missing or too short, `WireError` for token bytes that are not what is due.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, WireError
from .driving import Microbatch
from .manifest import Manifest
from .tokenizer import Tokenizer, pieces_of

TokenArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Token ids [n], in the narrowest type that holds the vocabulary."""

    tokens: NDArray[np.generic]

    @classmethod
    def from_texts(cls, paths: Sequence[Path], tokenizer: Tokenizer) -> "Corpus":
        """Reads and tokenizes UTF-8 texts, one after the other, piece by piece. Raises `DataError`."""
        kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
        ids = bytearray()  # grows in place: joining arrays at the end would hold the corpus twice
        for path in paths:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
            for piece in pieces_of(text):
                ids += tokenizer.encode(piece).astype(kind).tobytes()
        return cls(np.frombuffer(ids, kind))

    def __len__(self) -> int:
        return int(self.tokens.size)

    def window(self, start: int, length: int) -> NDArray[np.generic]:
        return self.tokens[start : start + length + 1]


def file_digest(path: Path) -> str:
    """sha256 of a file, hex. Raises `DataError`."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _windows(corpus: Corpus, length: int) -> int:
    return max(0, (len(corpus) - 1) // length)


class TrainingOrder:
    """The order of a corpus' windows under a manifest. Keeps the order of one pass at a time."""

    def __init__(self, manifest: Manifest, corpus: Corpus) -> None:
        self._settings = manifest.settings
        self._corpus = corpus
        self._length = manifest.settings.data.sequence_length
        self._count = _windows(corpus, self._length)
        if not self._count:
            raise DataError(
                f"the text has {len(corpus)} tokens; at sequence length {self._length} "
                f"it needs at least {self._length + 1}: give a longer text or a shorter sequence_length"
            )
        self._pass = -1
        self._order = np.zeros(0, np.int64)

    def sample(self, step: int, index: int) -> tuple[TokenArray, TokenArray]:
        """(tokens, labels), each int32 [samples, T], of a microbatch. The last of a step may hold fewer samples."""
        train = self._settings.train
        first = index * train.microbatch
        samples = min(train.microbatch, train.batch - first)
        if samples <= 0:
            raise DataError(f"microbatch {index} is beyond a batch of {train.batch} samples")
        numbers = range(step * train.batch + first, step * train.batch + first + samples)
        return _stack([self._corpus.window(self._start(number), self._length) for number in numbers])

    def _start(self, number: int) -> int:
        which, place = divmod(number, self._count)
        if which != self._pass:
            key = hashlib.sha256(f"{self._settings.seed}/order/{which}".encode()).digest()
            words = np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8")).random_raw(self._count)
            self._order, self._pass = np.argsort(words, kind="stable"), which
        return int(self._order[place]) * self._length


def heldout_batches(manifest: Manifest, corpus: Corpus) -> list[tuple[TokenArray, TokenArray]]:
    """The held-out microbatches: consecutive windows from the start of the text, `heldout_tokens` labels in all,
    rounded down to whole windows (at least one). Raises `DataError`."""
    settings = manifest.settings
    length = settings.data.sequence_length
    windows = max(1, settings.data.heldout_tokens // length)
    if windows > _windows(corpus, length):
        raise DataError(f"the held-out text has {len(corpus)} tokens; {windows * length + 1} are needed")
    rows = [corpus.window(number * length, length) for number in range(windows)]
    size = settings.train.microbatch
    return [_stack(rows[first : first + size]) for first in range(0, windows, size)]


def _stack(rows: Sequence[NDArray[np.generic]]) -> tuple[TokenArray, TokenArray]:
    block = np.stack(rows).astype(np.int32)
    return np.ascontiguousarray(block[:, :-1]), np.ascontiguousarray(block[:, 1:])


def tokens_to_bytes(tokens: TokenArray) -> bytes:
    """int32 little-endian, row after row."""
    return tokens.astype("<i4").tobytes()


def tokens_from_bytes(data: bytes, samples: int, length: int, vocab_size: int) -> TokenArray:
    """The array [samples, length] of such bytes. Raises `WireError` for a wrong length or an unknown id."""
    if len(data) != 4 * samples * length:
        raise WireError(f"{len(data)} bytes of token ids came; [{samples}, {length}] takes {4 * samples * length}")
    tokens = np.frombuffer(data, dtype="<i4").reshape(samples, length)
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise WireError(f"token ids from {tokens.min()} to {tokens.max()} came; the vocabulary has {vocab_size}")
    return tokens.astype(np.int32)


class CorpusSamples:
    """What a trainer feeds in (`driving.Samples`), from a corpus and a held-out one. Raises `DataError` when made."""

    def __init__(self, manifest: Manifest, corpus: Corpus, heldout: Corpus) -> None:
        self._order = TrainingOrder(manifest, corpus)
        self._heldout = [_microbatch(*batch) for batch in heldout_batches(manifest, heldout)]

    def microbatch(self, step: int, index: int) -> Microbatch:
        return _microbatch(*self._order.sample(step, index))

    def heldout(self) -> list[Microbatch]:
        return self._heldout


def _microbatch(tokens: TokenArray, labels: TokenArray) -> Microbatch:
    return Microbatch(len(tokens), tokens_to_bytes(tokens), tokens_to_bytes(labels), labels.size)
