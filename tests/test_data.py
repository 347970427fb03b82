"""Corpora and samples: which tokens (step, index) means, and what is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from swarm_peer.errors import DataError, WireError
from swarm_peer.swarm import tokenizer
from swarm_peer.swarm.data import (
    Corpus,
    CorpusSamples,
    TrainingOrder,
    file_digest,
    heldout_batches,
    tokens_from_bytes,
    tokens_to_bytes,
)
from swarm_peer.swarm.driving import Microbatch
from swarm_peer.swarm.manifest import DataSettings, Manifest, ModelSettings, Settings, TrainSettings, freeze
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.tokenizer import ByteTokenizer

LENGTH = 8
GOLDEN_STARTS = [24, 56, 72, 8, 16, 40, 48, 0, 80, 88, 64, 32, 32, 72, 48, 8]


def manifest(*, batch: int = 4, microbatch: int = 1, seed: int = 0, heldout_tokens: int = 32) -> Manifest:
    return freeze(
        settings=Settings(
            seed=seed,
            model=ModelSettings(name="tiny"),
            train=TrainSettings(batch=batch, microbatch=microbatch),
            data=DataSettings(sequence_length=LENGTH, heldout_tokens=heldout_tokens),
        ),
        shape=TINY,
        texts_sha256=("0" * 64,),
        heldout_sha256=("0" * 64,),
        organizer="0" * 64,
        nonce="0" * 32,
    )


def numbered(windows: int, extra: int = 1) -> Corpus:
    """Tokens 0, 1, 2, ...: a window's first token says where it starts."""
    return Corpus(np.arange(windows * LENGTH + extra, dtype=np.uint16))


def starts(order: TrainingOrder, run: Manifest, steps: int) -> list[int]:
    """Where the windows of the first steps start, in order of sample numbers."""
    return [
        int(row[0])
        for step in range(steps)
        for index in range(run.microbatches)
        for row in order.sample(step, index)[0]
    ]


def test_a_window_is_tokens_and_the_ones_after_them() -> None:
    tokens, labels = TrainingOrder(manifest(microbatch=3), numbered(20)).sample(0, 0)
    assert tokens.shape == labels.shape == (3, LENGTH)
    assert tokens.dtype == labels.dtype == np.int32
    assert (labels == tokens + 1).all()
    assert (tokens[:, 0] % LENGTH == 0).all()


@pytest.mark.parametrize("windows", [1, 2, 7, 20])
def test_each_pass_visits_every_window_once_in_an_order_of_its_own(windows: int) -> None:
    run = manifest(batch=windows)
    order = TrainingOrder(run, numbered(windows, extra=5))
    passes = [starts(TrainingOrder(run, numbered(windows)), run, 3)[n * windows : (n + 1) * windows] for n in range(3)]
    for visited in passes:
        assert sorted(visited) == [LENGTH * n for n in range(windows)]
    if windows > 6:
        assert passes[0] != passes[1] != passes[2]
        assert passes[0] != sorted(passes[0])
    assert starts(order, run, 3) == [start for visited in passes for start in visited]


def test_samples_do_not_depend_on_what_was_asked_before() -> None:
    run = manifest(batch=5, microbatch=2)
    asked = [(step, index) for step in range(9) for index in range(run.microbatches)]
    one, other = TrainingOrder(run, numbered(7)), TrainingOrder(run, numbered(7))
    forward = {key: one.sample(*key) for key in asked}
    for key in reversed(asked):
        for came, expected in zip(other.sample(*key), forward[key], strict=True):
            assert (came == expected).all()


@pytest.mark.parametrize(("batch", "microbatch", "sizes"), [(4, 1, [1] * 4), (5, 2, [2, 2, 1]), (3, 3, [3])])
def test_the_last_microbatch_may_be_smaller(batch: int, microbatch: int, sizes: list[int]) -> None:
    run = manifest(batch=batch, microbatch=microbatch)
    order = TrainingOrder(run, numbered(50))
    assert [len(order.sample(1, index)[0]) for index in range(run.microbatches)] == sizes
    with pytest.raises(DataError, match=f"microbatch {len(sizes)}"):
        order.sample(1, len(sizes))


def test_how_a_step_is_cut_does_not_change_its_samples() -> None:
    cuts = [manifest(batch=6, microbatch=size) for size in (1, 2, 4, 6)]
    assert len({tuple(starts(TrainingOrder(run, numbered(11)), run, 4)) for run in cuts}) == 1


def test_the_seed_decides_the_order() -> None:
    orders = {tuple(starts(TrainingOrder(run, numbered(30)), run, 5)) for run in map(_seeded, range(5))}
    assert len(orders) == 5


def _seeded(seed: int) -> Manifest:
    return manifest(seed=seed)


def test_the_order_of_a_seed_never_changes() -> None:
    """Other versions of this package, and other machines, must draw the same samples."""
    run = manifest(batch=16, seed=1)
    assert starts(TrainingOrder(run, numbered(12)), run, 1) == GOLDEN_STARTS


@pytest.mark.parametrize("tokens", [0, 1, LENGTH])
def test_a_short_text_is_refused_with_both_numbers(tokens: int) -> None:
    short = Corpus(np.zeros(tokens, np.uint16))
    with pytest.raises(DataError, match=rf"{tokens} tokens.* {LENGTH + 1}\b"):
        TrainingOrder(manifest(), short)
    with pytest.raises(DataError, match=rf"{tokens} tokens.* {4 * LENGTH + 1}\b"):
        heldout_batches(manifest(), short)


def test_one_window_is_enough() -> None:
    tokens, labels = TrainingOrder(manifest(), numbered(1)).sample(7, 3)
    assert (tokens[0, 0], labels[0, -1]) == (0, LENGTH)


@pytest.mark.parametrize(
    ("wanted", "microbatch", "sizes"),
    [(32, 1, [1, 1, 1, 1]), (39, 3, [3, 1]), (3, 2, [1]), (LENGTH, 4, [1]), (40, 5, [5])],
)
def test_held_out_windows_are_consecutive(wanted: int, microbatch: int, sizes: list[int]) -> None:
    batches = heldout_batches(manifest(microbatch=microbatch, batch=8, heldout_tokens=wanted), numbered(9))
    assert [len(tokens) for tokens, _ in batches] == sizes
    assert np.concatenate([tokens.ravel() for tokens, _ in batches]).tolist() == list(range(LENGTH * sum(sizes)))
    assert np.concatenate([labels.ravel() for _, labels in batches]).tolist() == list(range(1, LENGTH * sum(sizes) + 1))


def test_held_out_text_may_end_with_its_last_label() -> None:
    assert len(heldout_batches(manifest(), numbered(4))) == 4
    with pytest.raises(DataError, match=f"{4 * LENGTH + 1} are needed"):
        heldout_batches(manifest(), numbered(4, extra=0))


def test_corpus_samples_are_bytes_of_the_order() -> None:
    run = manifest(batch=5, microbatch=2)
    samples = CorpusSamples(run, numbered(9), numbered(4))
    for index, size in enumerate([2, 2, 1]):
        tokens, labels = TrainingOrder(run, numbered(9)).sample(3, index)
        expected = Microbatch(size, tokens_to_bytes(tokens), tokens_to_bytes(labels), size * LENGTH)
        assert samples.microbatch(3, index) == expected
        assert (tokens_from_bytes(expected.tokens, size, LENGTH, 256) == tokens).all()
    assert [batch.samples for batch in samples.heldout()] == [2, 2]
    assert sum(batch.label_tokens for batch in samples.heldout()) == 32
    with pytest.raises(DataError):
        CorpusSamples(run, numbered(9), numbered(3))
    with pytest.raises(DataError):
        CorpusSamples(run, numbered(0), numbered(4))


def test_a_corpus_is_its_texts_one_after_the_other(tmp_path: Path) -> None:
    paths = [tmp_path / "one.txt", tmp_path / "two.txt"]
    paths[0].write_bytes("Prêt,\n".encode())
    paths[1].write_bytes(b"Hal?")
    corpus = Corpus.from_texts(paths, ByteTokenizer())
    assert bytes(corpus.tokens.tolist()) == "Prêt,\nHal?".encode()
    assert len(corpus) == 11
    assert corpus.tokens.dtype == np.uint16


def test_pieces_of_a_long_text_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"line {n} — of a long text\n" for n in range(200)) + "é" * 150
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    whole = ByteTokenizer().encode(text)
    lengths: list[int] = []

    class Watched(ByteTokenizer):
        def encode(self, text: str) -> NDArray[np.int32]:
            lengths.append(len(text))
            return super().encode(text)

    monkeypatch.setattr(tokenizer, "CHUNK_CHARACTERS", 100)
    corpus = Corpus.from_texts([path, path], Watched())
    assert corpus.tokens.tolist() == whole.tolist() * 2
    assert max(lengths) <= 100
    assert len(Corpus.from_texts([], ByteTokenizer())) == 0


def test_the_narrowest_type_that_holds_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc", encoding="utf-8")

    class Wide(ByteTokenizer):
        vocab_size = (1 << 16) + 1

    class Fits(ByteTokenizer):
        vocab_size = 1 << 16

    assert Corpus.from_texts([path], Wide()).tokens.dtype == np.int32
    assert Corpus.from_texts([path], Fits()).tokens.dtype == np.uint16


def test_a_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\xfd")
    for path in (broken, tmp_path / "absent.txt"):
        with pytest.raises(DataError, match=path.name):
            Corpus.from_texts([path], ByteTokenizer())
    with pytest.raises(DataError, match=r"absent\.txt"):
        file_digest(tmp_path / "absent.txt")
    assert file_digest(broken) == hashlib.sha256(b"\xff\xfe\xfd").hexdigest()


def test_token_bytes_are_int32_little_endian() -> None:
    tokens = np.array([[1, 256], [65536, 7]], dtype=np.int32)
    assert tokens_to_bytes(tokens).hex() == "01000000000100000000010007000000"
    back = tokens_from_bytes(tokens_to_bytes(tokens), 2, 2, 65537)
    assert (back == tokens).all()
    assert back.flags.writeable
    assert tokens_from_bytes(b"", 0, 5, 3).shape == (0, 5)


@pytest.mark.parametrize("extra", [-1, 1, 4, -4])
def test_token_bytes_of_another_length_are_refused(extra: int) -> None:
    with pytest.raises(WireError, match=f"{24 + extra} bytes"):
        tokens_from_bytes(bytes(24 + extra), 2, 3, 10)


@pytest.mark.parametrize("token", [10, -1, -(2**31), 2**31 - 1])
def test_token_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    with pytest.raises(WireError, match="the vocabulary has 10"):
        tokens_from_bytes(np.array([3, token], dtype="<i4").tobytes(), 1, 2, 10)
