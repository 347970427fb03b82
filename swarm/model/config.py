"""Reads Hugging Face's config.json of a Llama-family decoder into `LlamaShape`, and refuses everything else.

A key that would change what a block computes is either understood or refused: a model that is almost a Llama must not
be trained as one. Known families: Llama, and Mistral without an effective sliding window (the same block).

Errors: `ModelError`, naming the file, the key, what came and what is wanted.
"""

import json
from typing import Any

from pydantic import ValidationError

from ...errors import ModelError
from ..manifest import LlamaShape

TINY = LlamaShape(
    hidden_size=64,
    intermediate_size=172,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=256,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=True,
)
"""The built-in model `tiny`: bytes in, bytes out, 0.3 M parameters, seeded random base."""

CONFIG = "config.json"
CONFIG_BYTES = 1 << 20
"""A config.json is a few kilobytes."""

_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_ALMOST = {
    "Qwen2ForCausalLM": "biases on queries, keys and values",
    "Qwen3ForCausalLM": "norms on queries and keys",
}
_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
)


def _refuse(where: str, key: str, came: object, wanted: str) -> ModelError:
    return ModelError(f"{where}: {key} is {came!r}; wanted {wanted}")


def _rope_theta(config: dict[str, Any], where: str) -> float:
    """The base of the rotary frequencies: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    found = config.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        parameters = config.get(key)
        if parameters is None:
            continue
        if not isinstance(parameters, dict):
            raise _refuse(where, key, parameters, "null or a table")
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind != "default" or parameters.get("factor", 1.0) != 1.0:
            raise _refuse(where, key, parameters, "unscaled rotary positions (rope_type 'default')")
        if parameters.get("partial_rotary_factor", 1.0) != 1.0:
            raise _refuse(where, f"{key}.partial_rotary_factor", parameters["partial_rotary_factor"], "1.0 or nothing")
        found = parameters.get("rope_theta", found)
    if found is None:
        return 10000.0
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise _refuse(where, "rope_theta", found, "a number")
    return float(found)


def _check_family(config: dict[str, Any], where: str) -> None:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or architectures[0] not in _ARCHITECTURES:
        wanted = f"one of {', '.join(_ARCHITECTURES)}"
        came = architectures[0] if isinstance(architectures, list) and architectures else ""
        if isinstance(came, str) and came in _ALMOST:
            wanted += f" ({came} has {_ALMOST[came]}, which this block has not)"
        raise _refuse(where, "architectures", architectures, wanted)
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _refuse(where, "hidden_act", config["hidden_act"], "'silu'")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key, False) is not False:
            raise _refuse(where, key, config[key], "false: biases are not supported")
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise _refuse(where, "partial_rotary_factor", config["partial_rotary_factor"], "1.0 or nothing")
    quantization = config.get("quantization_config")
    if quantization is not None and not _is_nf4(quantization):
        wanted = "nothing (a 16- or 32-bit checkpoint), or nf4 by bitsandbytes"
        raise _refuse(where, "quantization_config", quantization, wanted)
    if architectures[0] == "MistralForCausalLM":
        # transformers' default is a window of 4096, so a missing key is a window too.
        window = config.get("sliding_window", 4096)
        reach = config.get("max_position_embeddings")
        if window is not None and not (isinstance(window, int) and isinstance(reach, int) and window >= reach):
            raise _refuse(where, "sliding_window", window, "null, or no less than max_position_embeddings")


def _is_nf4(quantization: Any) -> bool:
    return (
        isinstance(quantization, dict)
        and quantization.get("quant_method") == "bitsandbytes"
        and quantization.get("load_in_4bit") is True
        and quantization.get("bnb_4bit_quant_type") == "nf4"
        and quantization.get("bnb_4bit_quant_storage", "uint8") == "uint8"
    )


def parse_shape(config: dict[str, Any], where: str = "config.json") -> LlamaShape:
    """The shape that a decoded config.json describes; `where` names it in errors. Raises `ModelError`."""
    _check_family(config, where)
    if config.get("max_position_embeddings") is None and config.get("max_sequence_length") is not None:
        config = config | {"max_position_embeddings": config["max_sequence_length"]}  # the first Llama's conversions
    for key in _REQUIRED:
        if config.get(key) is None:
            raise ModelError(f"{where}: {key} is missing; a Llama-family config.json has it")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    key_value_heads, head_dim = config.get("num_key_value_heads"), config.get("head_dim")
    fields: dict[str, Any] = {key: config[key] for key in _REQUIRED}
    fields["num_key_value_heads"] = heads if key_value_heads is None else key_value_heads
    if head_dim is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        if hidden % heads:
            raise _refuse(where, "head_dim", None, f"a number, since {hidden} / {heads} is not whole")
        head_dim = hidden // heads
    fields["head_dim"] = head_dim
    fields["rope_theta"] = _rope_theta(config, where)
    fields["tie_word_embeddings"] = config.get("tie_word_embeddings", False)
    fields["initializer_range"] = config.get("initializer_range", 0.02)
    try:
        return LlamaShape.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "the shape"
        raise ModelError(f"{where}: {key} is {fields.get(key, fields)!r}: {problem['msg']}") from error


def parse_config(content: bytes, where: str) -> tuple[LlamaShape, bool]:
    """The shape that the bytes of a config.json describe, and whether it says that linear layers are in nf4. Raises
    `ModelError`."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{where}: holds a {type(config).__name__}; wanted a JSON object")
    return parse_shape(config, where), config.get("quantization_config") is not None
