"""Synthetic checkpoints in Hugging Face's layout, small enough to serve in a test."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from swarm_peer.swarm.manifest import DataSettings, LlamaShape, Manifest, ModelSettings, Settings, Weights, freeze
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.model.names import base_shapes
from swarm_peer.swarm.model.weights import random_base

SHAPE = TINY.model_copy(update={"tie_word_embeddings": False})
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_checkpoint(folder: Path, seed: int = 0, shape: LlamaShape = SHAPE) -> None:
    """config.json, index and two shards, bf16; the second shard also has a tensor that no Llama needs."""
    folder.mkdir(parents=True, exist_ok=True)
    config = shape.model_dump() | {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    everything = base_shapes(shape, range(shape.num_hidden_layers), is_first=True, is_last=True)
    tensors = {name: tensor.bfloat16() for name, tensor in random_base(seed, shape, everything)}
    half = f"model.layers.{shape.num_hidden_layers // 2}."
    first = {name: tensor for name, tensor in tensors.items() if name < half}
    second = {name: tensor for name, tensor in tensors.items() if name not in first}
    second["model.rotary.inv_freq"] = torch.zeros(8)
    files = {}
    for file, part in zip(SHARDS, (first, second), strict=True):
        save_file(part, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def run_of(weights: Weights | None, stages: int = 3, shape: LlamaShape = SHAPE) -> Manifest:
    return freeze(
        settings=Settings(model=ModelSettings(name="x", stages=stages), data=DataSettings(sequence_length=32)),
        shape=shape,
        weights=weights,
        texts_sha256=("0" * 64,),
        heldout_sha256=("0" * 64,),
        organizer="0" * 64,
        nonce="0" * 32,
    )
