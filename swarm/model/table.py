"""Models by short name: where the Hub has them, and their exact shapes, so that a plan needs no network.

What a run trains is decided by the checkpoint's own config.json, never by this table. Left out, because their blocks
are not this package's: Llama 3.1 and 3.2 (scaled rotary positions), Mistral 7B v0.1 (a sliding window), Qwen 2 and 2.5
(biases on queries, keys and values), Qwen 3 (norms on queries and keys).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..manifest import LlamaShape
from .names import base_shapes


@dataclass(frozen=True, slots=True)
class KnownModel:
    """`repo`: id on the Hugging Face Hub; empty for what `swarm-peer fetch` brings, which is another checkpoint than
    the one there."""

    repo: str
    shape: LlamaShape


def _shape(
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    *,
    vocab: int = 32000,
    context: int,
    eps: float = 1e-5,
    theta: float = 10000.0,
    tied: bool = False,
    initializer_range: float = 0.02,
) -> LlamaShape:
    return LlamaShape(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        max_position_embeddings=context,
        rms_norm_eps=eps,
        rope_theta=theta,
        tie_word_embeddings=tied,
        initializer_range=initializer_range,
    )


def _smollm2(hidden: int, inner: int, layers: int, heads: int, key_value_heads: int, **others: float) -> LlamaShape:
    theta, spread = others.get("theta", 100000.0), others.get("initializer_range", 0.02)
    return _shape(
        hidden,
        inner,
        layers,
        heads,
        key_value_heads,
        vocab=49152,
        context=8192,
        theta=theta,
        tied=True,
        initializer_range=spread,
    )


MODELS: Mapping[str, KnownModel] = MappingProxyType(
    {
        "llama-7b": KnownModel("huggyllama/llama-7b", _shape(4096, 11008, 32, 32, 32, context=2048, eps=1e-6)),
        "llama-13b": KnownModel("huggyllama/llama-13b", _shape(5120, 13824, 40, 40, 40, context=2048, eps=1e-6)),
        "llama-30b": KnownModel("huggyllama/llama-30b", _shape(6656, 17920, 60, 52, 52, context=2048, eps=1e-6)),
        "llama-65b": KnownModel("huggyllama/llama-65b", _shape(8192, 22016, 80, 64, 64, context=2048)),
        "llama-2-7b": KnownModel("meta-llama/Llama-2-7b-hf", _shape(4096, 11008, 32, 32, 32, context=4096)),
        "llama-2-13b": KnownModel("meta-llama/Llama-2-13b-hf", _shape(5120, 13824, 40, 40, 40, context=4096)),
        "llama-2-70b": KnownModel("meta-llama/Llama-2-70b-hf", _shape(8192, 28672, 80, 64, 8, context=4096)),
        "llama-3-8b": KnownModel(
            "meta-llama/Meta-Llama-3-8B", _shape(4096, 14336, 32, 32, 8, vocab=128256, context=8192, theta=5e5)
        ),
        "llama-3-70b": KnownModel(
            "meta-llama/Meta-Llama-3-70B", _shape(8192, 28672, 80, 64, 8, vocab=128256, context=8192, theta=5e5)
        ),
        "mistral-7b": KnownModel(
            "mistralai/Mistral-7B-v0.3", _shape(4096, 14336, 32, 32, 8, vocab=32768, context=32768, theta=1e6)
        ),
        "tinyllama": KnownModel("TinyLlama/TinyLlama-1.1B-Chat-v1.0", _shape(2048, 5632, 22, 32, 4, context=2048)),
        "smollm2-135m": KnownModel("", _smollm2(576, 1536, 30, 9, 3, initializer_range=1 / 24)),
        "smollm2-360m": KnownModel("HuggingFaceTB/SmolLM2-360M", _smollm2(960, 2560, 32, 15, 5)),
        "smollm2-1.7b": KnownModel("HuggingFaceTB/SmolLM2-1.7B", _smollm2(2048, 8192, 24, 32, 32, theta=130000.0)),
    }
)
"""By alias."""


def parameters(shape: LlamaShape) -> int:
    """How many parameters a model of this shape has; a tied head counts once."""
    everything = base_shapes(shape, range(shape.num_hidden_layers), is_first=True, is_last=True)
    return sum(math.prod(size) for size in everything.values())
