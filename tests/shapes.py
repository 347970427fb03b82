"""Manifests to reckon with: a mid-sized shape that is really built, and the 65B shape, which never is."""

from typing import Any

from swarm_peer.swarm.manifest import (
    CodecSettings,
    DataSettings,
    LlamaShape,
    Manifest,
    ModelSettings,
    OptimizerSettings,
    PipelineSettings,
    Settings,
    TrainSettings,
    freeze,
)

MID = LlamaShape(
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=1000,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    tie_word_embeddings=False,
)

LLAMA_65B = LlamaShape(
    hidden_size=8192,
    intermediate_size=22016,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=64,
    head_dim=128,
    vocab_size=32000,
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    tie_word_embeddings=False,
)


def shaped_manifest(
    shape: LlamaShape,
    *,
    stages: int = 3,
    base: Any = "auto",
    dtype: Any = "fp32",
    mode: Any = "lora",
    batch: int = 2,
    microbatch: int = 2,
    length: int = 64,
    slots: int = 8,
    staleness: Any = 1,
    state: Any = "fp32",
) -> Manifest:
    return freeze(
        settings=Settings(
            model=ModelSettings(name="tiny", stages=stages, base=base, compute_dtype=dtype),
            train=TrainSettings(mode=mode, batch=batch, microbatch=microbatch),
            data=DataSettings(sequence_length=length),
            optimizer=OptimizerSettings(state=state),
            pipeline=PipelineSettings(slots=slots, staleness=staleness),
            codecs=CodecSettings(),
        ),
        shape=shape,
        texts_sha256=("0" * 64,),
        heldout_sha256=("0" * 64,),
        organizer="0" * 64,
        nonce="0" * 32,
    )


def of_65b(stages: int = 20, **changes: Any) -> Manifest:
    """65B, nf4, bf16, a microbatch of 2,048 tokens."""
    told: dict[str, Any] = {"base": "nf4", "dtype": "bf16", "batch": 64, "microbatch": 1, "length": 2048}
    return shaped_manifest(LLAMA_65B, stages=stages, **{**told, **changes})
