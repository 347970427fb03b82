"""Text to token ids. Errors: `DataError` for a tokenizer file that cannot be read, or cannot take a text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as HuggingFaceTokenizer

from ..errors import DataError

CHUNK_CHARACTERS = 1 << 18
"""A long text is tokenized in pieces of about this size, cut at line ends, so that memory stays bounded."""


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> NDArray[np.int32]:
        """Token ids [n], without special tokens."""
        ...

    def encode_with_starts(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The same ids, and the place of the character in `text` at which each begins [n]."""
        ...


class ByteTokenizer:
    """One token a UTF-8 byte; the tokenizer of `tiny`."""

    vocab_size = 256

    def encode(self, text: str) -> NDArray[np.int32]:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32)

    def encode_with_starts(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        ids = self.encode(text)
        return ids, np.cumsum((ids & 0xC0) != 0x80, dtype=np.int64) - 1  # a byte 10xxxxxx goes on with a character


class FileTokenizer:
    """A Hugging Face `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tokenizer = HuggingFaceTokenizer.from_file(str(path))
        # The library raises bare Exception for whatever is wrong with the file.
        except Exception as error:
            raise DataError(f"{path}: cannot be read as a tokenizer.json: {error}") from error

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> NDArray[np.int32]:
        ids = [np.asarray(self._encode(chunk).ids, dtype=np.int32) for chunk in pieces_of(text)]
        return np.concatenate(ids) if ids else np.zeros(0, np.int32)

    def encode_with_starts(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        ids: list[int] = []
        starts: list[int] = []
        before = 0
        for chunk in pieces_of(text):
            encoding = self._encode(chunk)
            ids += encoding.ids
            starts += [before + first for first, _ in encoding.offsets]
            before += len(chunk)
        return np.array(ids, dtype=np.int32), np.array(starts, dtype=np.int64)

    def _encode(self, text: str) -> Encoding:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # bare, as above
            raise DataError(f"{self._path}: cannot tokenize {text[:40]!r}...: {error}") from error


def pieces_of(text: str) -> Iterator[str]:
    """The text in pieces of at most `CHUNK_CHARACTERS`, each but the last cut after a line end where it has one."""
    start = 0
    while start < len(text):
        end = min(len(text), start + CHUNK_CHARACTERS)
        if end < len(text):
            end = max(text.rfind("\n", start, end) + 1, start + 1) if "\n" in text[start:end] else end
        yield text[start:end]
        start = end
