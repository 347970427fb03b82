"""A small Llama that is grown here from nothing in full precision, for what a quantized base costs.

    python benchmarks/grown.py FOLDER [--steps 1500] [--threads 2]
    python benchmarks/bases.py --model FOLDER

The one real checkpoint that can be had from a package registry (SmolLM2-135M) has been through four bits before it
comes here; the weights of this one never have. 4.9 M parameters, a tokenizer of 1,024 pieces, trained whole by
`transformers` and `torch.optim.AdamW` on the texts `brown` and `milton` (`swarm-peer fetch brown milton`), of which
`bases.py` uses none. Printed: the loss of every hundred steps, and that of a part of `milton` that was held out.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
from swarm_peer.swarm.data import Corpus
from swarm_peer.swarm.sources import text_path
from swarm_peer.swarm.tokenizer import FileTokenizer
from transformers import LlamaConfig, LlamaForCausalLM

PIECES, LENGTH, BATCH = 1024, 128, 16
"""Of the vocabulary; tokens a sample, samples a step."""

HELDOUT_TOKENS = 8192
RATE, WARMUP = 2e-3, 50


def tokenizer_of(texts: list[Path], path: Path) -> FileTokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=PIECES, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train([str(text) for text in texts], trainer)
    made.save(str(path))
    return FileTokenizer(path)


def batch_of(tokens: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """[samples, LENGTH]"""
    return torch.stack([tokens[start : start + LENGTH] for start in starts.tolist()])


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids[:, :-1]).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.folder.mkdir(parents=True, exist_ok=True)
    texts = [text_path(name) for name in ("brown", "milton")]
    tokenizer = tokenizer_of(texts, options.folder / "tokenizer.json")
    tokens = torch.from_numpy(Corpus.from_texts(texts, tokenizer).tokens.astype(np.int64))
    tokens, heldout = tokens[:-HELDOUT_TOKENS], tokens[-HELDOUT_TOKENS:].view(-1, LENGTH)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=PIECES,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )
    print(f"{sum(value.numel() for value in model.parameters()) / 1e6:.1f} M parameters, {len(tokens):,} tokens")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    began, recent = time.perf_counter(), []
    for step in range(options.steps):
        rate = min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / options.steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate
        loss = loss_of(model, batch_of(tokens, torch.randint(len(tokens) - LENGTH, (BATCH,))))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 100 == 0:
            mean, seconds = sum(recent) / len(recent), time.perf_counter() - began
            print(f"step {step + 1}: loss {mean:.3f} ({seconds:.0f} s)", flush=True)
            recent = []
    with torch.no_grad():
        print(f"held out: {loss_of(model, heldout):.4f}")
    model.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
