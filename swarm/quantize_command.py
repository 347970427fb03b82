"""`swarm-coordinator quantize`: makes of a model one in nf4, fitted to a text.

Errors: `UsageError`, `DataError` for texts that are too short, and those of `calibrating.py` and of the model's source.
"""

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UsageError
from .calibrating import Fitted, write_calibrated
from .data import Corpus
from .model.folder import check_target
from .model.opening import TOKENIZER, open_checkpoint, tokenizer_folder
from .sources import text_path
from .tokenizer import FileTokenizer


def run_quantize(options: argparse.Namespace) -> int:
    check_target(options.folder)
    _check_device(options.device)
    texts = [text_path(name) for name in options.texts]
    checkpoint = open_checkpoint(options.model)
    if checkpoint is None:
        raise UsageError(f"{options.model} has no checkpoint: its base is made of a seed, and quantized by each peer")
    if options.threads:
        torch.set_num_threads(options.threads)
    with checkpoint, _orderly_end():
        folder, longest = tokenizer_folder(checkpoint.files), checkpoint.shape.max_position_embeddings
        if options.tokens > longest:
            raise UsageError(f"--tokens {options.tokens}: the model reads {longest} at the most")
        samples = windows(texts, folder, options.samples, options.tokens, checkpoint.shape.vocab_size)
        said = _Said(checkpoint.shape.num_hidden_layers)
        write_calibrated(options.folder, checkpoint, samples, device=options.device, tell=said.hear)
    print(f"written: {options.folder}; peers and manifests take it as their model", flush=True)
    return 0


@contextmanager
def _orderly_end() -> Iterator[None]:
    """SIGTERM leaves no half-written folder either."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_device(device: str) -> None:
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("another kind of device")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: {str(error).partition(chr(10))[0]}; wanted cpu, cuda:0") from error


def windows(texts: Sequence[Path], folder: Path, samples: int, tokens: int, vocabulary: int) -> Tensor:
    """Token ids [samples, tokens], from places of the texts that are drawn, always the same ones. `folder`: of the
    tokenizer; `vocabulary`: tokens that the model knows. Raises `DataError`, `ModelError`."""
    corpus = Corpus.from_texts(texts, FileTokenizer(folder / TOKENIZER))
    if len(corpus) < tokens:
        raise DataError(f"the texts have {len(corpus)} tokens; a sample has {tokens}: take more, or --tokens")
    ids = torch.from_numpy(corpus.tokens.astype(np.int64))
    if int(ids.max()) >= vocabulary:
        raise DataError(f"the tokenizer gives token {int(ids.max())}; the model has {vocabulary}")
    starts = torch.randint(len(ids) - tokens + 1, (samples,), generator=torch.Generator().manual_seed(0))
    return torch.stack([ids[start : start + tokens] for start in starts.tolist()])


class _Said:
    """Tells of each layer when it is done."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._began = time.monotonic()
        self._fitted: list[Fitted] = []

    def hear(self, fitted: Fitted) -> None:
        self._fitted.append(fitted)
        if not fitted.name.endswith("down_proj"):
            return
        number = int(fitted.name.split(".")[2])
        now, before = (
            statistics.mean(part) for part in zip(*((one.error, one.rounded) for one in self._fitted), strict=True)
        )
        self._fitted.clear()
        took = time.monotonic() - self._began
        print(
            f"layer {number + 1} of {self._layers}: its outputs are off by {100 * now:.1f} %, and would be by "
            f"{100 * before:.1f} % were its weights rounded each for itself ({took:.0f} s)",
            flush=True,
        )
