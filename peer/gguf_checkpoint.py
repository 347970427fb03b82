"""A Llama checkpoint in GGUF as a folder in Hugging Face's layout: config.json, model.safetensors, tokenizer.json.

The weights are dequantized and rounded to bf16; they are what the quantized file holds, not the published model's.
llama.cpp stores the rows of the query and key projections permuted for its rotary embedding; they are put back. Files
are written into a folder that the caller owns and moves to its place.

Errors: `ModelError` for a file that is not a Llama checkpoint with tied embeddings, or that lacks something.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file

from ..errors import ModelError

_GLOBAL_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def hugging_face_name(name: str) -> str:
    """A tensor's name in Hugging Face's Llama, from its name in GGUF. Raises `ModelError`."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        raise ModelError(f"GGUF tensor {name!r} has no place in a Llama model with tied embeddings")
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.weight"


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [heads * head_dim, hidden] from llama.cpp's order (pairs side by side) to Hugging Face's (halves)."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _config(reader: GGUFReader) -> dict[str, Any]:
    def value(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise ModelError(f"the GGUF file has no {key}")
        return field.contents()

    if value("general.architecture") != "llama":
        raise ModelError(f"the GGUF file holds a {value('general.architecture')!r} model; wanted 'llama'")
    embedding = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        raise ModelError("the GGUF file has no token_embd.weight")
    hidden, heads = value("llama.embedding_length"), value("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "vocab_size": int(embedding.shape[1]),
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": round(value("llama.attention.layer_norm_rms_epsilon"), 12),  # fp32 in the file: 9.9999997e-06
        "rope_theta": value("llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "dtype": "bfloat16",
    }


def convert_gguf(source: Path, folder: Path) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files into `folder`. Raises `ModelError`."""
    try:
        reader = GGUFReader(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: cannot be read as GGUF: {error}") from error
    config = _config(reader)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name)
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        for projection, count in heads.items():
            if f".{projection}." in name:
                weight = unpermute(weight, count)
        tensors[name] = weight.bfloat16().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_tokenizer(source, folder)


def _write_tokenizer(source: Path, folder: Path) -> None:
    # Here, not at the top: transformers costs seconds, and only this needs it.
    from transformers import AutoTokenizer

    load: Any = AutoTokenizer.from_pretrained
    load(str(source.parent), gguf_file=source.name, local_files_only=True).save_pretrained(str(folder))
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{source}: transformers wrote no tokenizer.json from it")
