"""Puts a `transformers` model onto the base that a run trained its adapters on.

An adapter that was trained on an nf4 or int8 base fits that base: on the 16-bit one its loss is a little different.
`use_base(model, "nf4")`, before `peft` loads the adapter, gives the loss that the swarm had. A checkpoint that is in
nf4 itself `open_model` opens, without bitsandbytes.

Errors: `ModelError` for an unknown base format, and what reading a checkpoint raises.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...compression.linear import QuantizedLinear, quantized
from ...errors import ModelError
from ..manifest import LINEARS
from .checkpoint import Checkpoint
from .files import FolderFiles
from .folder import model_config
from .names import pieces


class BaseLinear(nn.Linear):
    """A linear layer, as `peft` wants one, that computes with a quantized weight. Its own `weight` is empty."""

    def __init__(self, layer: QuantizedLinear) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would draw values for a weight that is not wanted
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.register_parameter("bias", None)
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs


def open_model(folder: str | Path) -> Any:
    """The `transformers` model of a checkpoint in a folder, in fp32; linear layers that are in nf4 there stay so."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tensors: dict[str, Tensor] = {}
    layers: dict[str, QuantizedLinear] = {}
    with Checkpoint(FolderFiles(Path(folder))) as checkpoint:
        for name, weight in checkpoint.read(pieces(checkpoint.shape)):
            if isinstance(weight, QuantizedLinear):
                layers[name.removesuffix(".weight")] = weight
            tensors[name] = weight.weight() if isinstance(weight, QuantizedLinear) else weight.float()
        config = LlamaConfig.from_dict(model_config(checkpoint.shape, "fp32"))
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32)
    for name, layer in layers.items():
        model.set_submodule(name, BaseLinear(layer))
    return model


def use_base(model: nn.Module, base: str) -> Any:
    """Replaces the weights of the decoder's linear layers, in place, by what a base format (`nf4`, `int8`, `bf16`,
    `fp32`) makes of them; returns the model."""
    if base not in ("nf4", "int8", "bf16", "fp32"):
        raise ModelError(f"base format {base!r}; wanted nf4, int8, bf16 or fp32")
    for part in list(model.modules()):
        for name, linear in list(part.named_children()):
            if name in LINEARS and isinstance(linear, nn.Linear) and base != "fp32":
                if base == "bf16":
                    linear.weight.data = linear.weight.data.to(torch.bfloat16).to(linear.weight.dtype)
                else:
                    setattr(part, name, BaseLinear(quantized(base, linear.weight.data)))
    return model
