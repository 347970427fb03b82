"""Tokenizers: bytes, and a tokenizer.json made on the spot."""

from pathlib import Path

import numpy as np
import pytest
from swarm_peer.errors import DataError
from swarm_peer.swarm import tokenizer as module
from swarm_peer.swarm.tokenizer import ByteTokenizer, FileTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = "".join(f"Line {n}: to be, or not to be — that is question {n * 7 % 13}.\n" for n in range(300))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE that would put a token <s> in front if it were asked for special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def test_bytes_are_tokens() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("é\nz")
    assert (ids.tolist(), tokenizer.vocab_size) == ([0xC3, 0xA9, 10, 122], 256)
    assert ids.dtype == np.int32
    assert tokenizer.encode("").size == 0


def test_a_file_tokenizer_adds_no_special_tokens_and_loses_nothing(path: Path) -> None:
    tokenizer, library = FileTokenizer(path), Tokenizer.from_file(str(path))
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.min() > 0
    assert ids.max() < tokenizer.vocab_size == library.get_vocab_size()
    assert library.decode(ids.tolist()) == TEXT
    assert len(ids) < len(TEXT) / 2
    assert tokenizer.encode("").size == 0


def test_pieces_at_line_ends_give_the_tokens_of_the_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = FileTokenizer(path)
    whole = tokenizer.encode(TEXT)
    for size in (100, 1000):
        monkeypatch.setattr(module, "CHUNK_CHARACTERS", size)
        pieces = list(module.pieces_of(TEXT))
        assert "".join(pieces) == TEXT
        assert len(pieces) > len(TEXT) / size - 1
        assert all(len(piece) <= size and piece.endswith("\n") for piece in pieces)
        assert tokenizer.encode(TEXT).tolist() == whole.tolist()


@pytest.mark.parametrize("text", ["x" * 1000, "\n" * 1000, "a\n" + "b" * 500, ""])
def test_pieces_of_odd_texts_add_up(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 64)
    pieces = list(module.pieces_of(text))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 64 for piece in pieces)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b'{"version": "1.0", "model": 3}'])
def test_a_file_that_is_no_tokenizer_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        FileTokenizer(file)
