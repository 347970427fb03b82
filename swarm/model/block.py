"""One Llama block as pure functions over a table of parameters; nothing is kept between calls.

Touvron et al., "LLaMA", 2023: RMSNorm, rotary positions, grouped-query causal attention, SwiGLU. Linear layers may
carry LoRA factors. The residual stream has the compute dtype; parameters of another dtype are cast where they are used,
so fp32 master values serve a bf16 computation and still receive fp32 gradients.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...compression.linear import QuantizedLinear
from ..manifest import LlamaShape
from .names import block_prefix

Parameters = Mapping[str, Any]
"""Tensors by name; the weight of a frozen linear layer may be a `compression.linear` layer instead."""


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, computed in fp32, returned in the dtype of `hidden`."""
    wide = hidden.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight.to(hidden.dtype) * scaled.to(hidden.dtype)


def rotary_tables(shape: LlamaShape, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_dim] of positions 0..length-1, on the device and in the dtype of `like`."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=like.device) / shape.head_dim
    frequencies = 1.0 / (shape.rope_theta**exponents)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=like.device), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(heads: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Applies rotary positions to [batch, heads, time, head_dim]; halves are paired, as in Hugging Face's layout."""
    cosines, sines = tables
    lower, upper = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-upper, lower), dim=-1) * sines


def linear(parameters: Parameters, name: str, hidden: Tensor, lora_scale: float) -> Tensor:
    """`hidden` [..., in] through the linear layer `name`, plus its LoRA path if `parameters` has one: [..., out]."""
    weight = parameters[f"{name}.weight"]
    result: Tensor
    if isinstance(weight, QuantizedLinear):
        result = weight(hidden)
    else:
        result = functional.linear(hidden, weight.to(hidden.dtype))
    down = parameters.get(f"{name}.lora_A")
    if down is None:
        return result
    up = parameters[f"{name}.lora_B"]
    narrow = functional.linear(hidden, down.to(hidden.dtype))
    return result + functional.linear(narrow, up.to(hidden.dtype)) * lora_scale


def attention(
    parameters: Parameters,
    name: str,
    shape: LlamaShape,
    hidden: Tensor,
    tables: tuple[Tensor, Tensor],
    lora_scale: float,
) -> Tensor:
    """Causal grouped-query self-attention: [batch, time, hidden] -> [batch, time, hidden]."""
    batch, time, _ = hidden.shape

    def heads(projection: str, count: int) -> Tensor:
        flat = linear(parameters, f"{name}.{projection}", hidden, lora_scale)
        return flat.view(batch, time, count, shape.head_dim).transpose(1, 2)

    query = rotate(heads("q_proj", shape.num_attention_heads), tables)
    key = rotate(heads("k_proj", shape.num_key_value_heads), tables)
    value = heads("v_proj", shape.num_key_value_heads)
    group = shape.num_attention_heads // shape.num_key_value_heads
    if group > 1:
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return linear(parameters, f"{name}.o_proj", mixed.transpose(1, 2).reshape(batch, time, -1), lora_scale)


def feed_forward(parameters: Parameters, name: str, hidden: Tensor, lora_scale: float) -> Tensor:
    """SwiGLU: [batch, time, hidden] -> [batch, time, hidden]."""
    gate = functional.silu(linear(parameters, f"{name}.gate_proj", hidden, lora_scale))
    return linear(
        parameters, f"{name}.down_proj", gate * linear(parameters, f"{name}.up_proj", hidden, lora_scale), lora_scale
    )


def block(
    parameters: Parameters,
    layer: int,
    shape: LlamaShape,
    hidden: Tensor,
    tables: tuple[Tensor, Tensor],
    lora_scale: float,
) -> Tensor:
    """One decoder block: [batch, time, hidden] -> [batch, time, hidden]."""
    prefix = block_prefix(layer)
    normed = rms_norm(hidden, parameters[f"{prefix}input_layernorm.weight"], shape.rms_norm_eps)
    hidden = hidden + attention(parameters, f"{prefix}self_attn", shape, normed, tables, lora_scale)
    normed = rms_norm(hidden, parameters[f"{prefix}post_attention_layernorm.weight"], shape.rms_norm_eps)
    return hidden + feed_forward(parameters, f"{prefix}mlp", normed, lora_scale)
