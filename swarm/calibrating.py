"""A checkpoint's linear layers in nf4, fitted to a text: made once, by whoever offers the model, and read by all peers.

The text goes through the model layer by layer, each as it has been quantized; every linear layer's codes are chosen for
what it is given there (`compression/calibrated.py`). One layer is held at a time in float32, and the hidden states of
the text, as they are and as they would be were nothing quantized; what is done waits in memory until a file of it is
full (`folder.SHARD_BYTES`). What comes out is a checkpoint as bitsandbytes writes one: of a linear layer peers read a
quarter of what 16 bits take.

Errors: `ModelError` for a checkpoint that is in nf4 already, for one in which the text comes to no finite numbers, and
what reading it raises; those of `folder.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..compression.calibrated import Gram, aimed_at, calibrated, output_error
from ..compression.linear import Nf4Linear, QuantizedLinear
from ..errors import ModelError
from .manifest import LlamaShape
from .model.block import Parameters, attention, feed_forward, rms_norm, rotary_tables
from .model.checkpoint import Checkpoint, Weight
from .model.folder import NumberType, Shards, copy_tokenizer, model_config, new_folder, write_json
from .model.names import EMBEDDING, Piece, block_linears, block_prefix, pieces
from .model.opening import tokenizer_folder

BATCH_TOKENS = 4096
"""Computed at a time."""

_NUMBER_TYPES: dict[str, NumberType] = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


@dataclass(frozen=True, slots=True)
class Fitted:
    """One linear layer: how far its outputs on the text are from those of a model that is not quantized, of 1; as it
    is now, and were its weights rounded each for itself."""

    name: str
    error: float
    rounded: float


def write_calibrated(
    folder: Path,
    checkpoint: Checkpoint,
    samples: Tensor,
    *,
    device: str = "cpu",
    tell: Callable[[Fitted], None] = lambda fitted: None,
) -> None:
    """Writes the checkpoint in nf4 to a new folder, with its tokenizer. `samples`: token ids [samples, tokens] of the
    text; `tell` hears of each linear layer. Blocks."""
    with new_folder(folder) as made:
        writer = Shards(made)
        dtype = _NUMBER_TYPES[checkpoint.tensors[EMBEDDING].at.entry.dtype]
        config = model_config(checkpoint.shape, dtype)
        for name, weight in fit(checkpoint, samples, device=device, tell=tell):
            if isinstance(weight, Nf4Linear):
                for at, tensor in weight.to_bitsandbytes(name.removesuffix("weight"), config["dtype"]).items():
                    writer.add(at, tensor)
            else:
                assert isinstance(weight, Tensor)
                writer.add(name, weight)
        writer.finish()
        write_json(made / "config.json", config | {"quantization_config": quantization_config(config["dtype"])})
        copy_tokenizer(tokenizer_folder(checkpoint.files), made)


def quantization_config(dtype: str) -> dict[str, object]:
    """What `transformers` is told of such a checkpoint."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["lm_head"],
    }


def fit(
    checkpoint: Checkpoint, samples: Tensor, *, device: str, tell: Callable[[Fitted], None]
) -> Iterator[tuple[str, Weight]]:
    """The tensors of the checkpoint one after the other, linear layers as `Nf4Linear`, on the CPU."""
    if checkpoint.is_nf4:
        raise ModelError(f"{checkpoint.files.where}: is in nf4 already; wanted a 16- or 32-bit checkpoint")
    hidden, whole, layers = list[Tensor](), list[Tensor](), 0
    for piece in pieces(checkpoint.shape):
        weights = dict(_numbers(checkpoint, piece))
        if EMBEDDING in weights:
            parts = torch.split(samples, max(1, BATCH_TOKENS // samples.shape[1]))
            whole = [weights[EMBEDDING][part].float() for part in parts]
            hidden = list(whole)
        if any(name.startswith(block_prefix(layers)) for name in weights):
            yield from _Layer(checkpoint.shape, layers, weights, torch.device(device), tell).fit(hidden, whole).items()
            layers += 1
        else:
            yield from weights.items()


def _numbers(checkpoint: Checkpoint, piece: Piece) -> Iterator[tuple[str, Tensor]]:
    for name, weight in checkpoint.read([piece]):
        assert isinstance(weight, Tensor)
        yield name, weight


class _Watched(QuantizedLinear):
    """A linear layer that is not quantized, and remembers what it was given last."""

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self._weight = weight
        self.inputs = weight[:0]

    def forward(self, inputs: Tensor) -> Tensor:
        self.inputs = inputs
        return functional.linear(inputs, self._weight)


class _Layer:
    """One decoder layer, whose linear layers are quantized one after the other, in the order in which they are used.
    What a linear layer is given has come through those before it as they are now."""

    def __init__(
        self,
        shape: LlamaShape,
        number: int,
        weights: Mapping[str, Tensor],
        device: torch.device,
        tell: Callable[[Fitted], None],
    ) -> None:
        self._shape = shape
        self._weights = weights
        self._device = device
        self._tell = tell
        self._prefix = block_prefix(number)
        self._linears = [f"{name}.weight" for name in block_linears(shape, number)]
        self._whole: dict[str, Tensor | QuantizedLinear] = {}
        for name, weight in weights.items():
            wide = weight.to(device, torch.float32)
            self._whole[name] = _Watched(wide) if name in self._linears else wide
        self._fitted: dict[str, Nf4Linear] = {}

    @torch.no_grad()
    def fit(self, hidden: list[Tensor], whole: list[Tensor]) -> dict[str, Weight]:
        """Its tensors. `hidden` and `whole`, batches of [samples, tokens, hidden] on the CPU, are what comes out of it
        then, as it has become and as it was."""
        for part, groups in (
            (self._attend, (("q_proj", "k_proj", "v_proj"), ("o_proj",))),
            (self._feed, (("gate_proj", "up_proj"), ("down_proj",))),
        ):
            for group in groups:
                self._fit_group([name for name in self._linears if name.split(".")[-2] in group], part, hidden, whole)
            for batches, parameters in ((hidden, self._whole | self._fitted), (whole, self._whole)):
                for number, batch in enumerate(batches):
                    states = batch.to(self._device)
                    batches[number] = (states + part(parameters, states)).cpu()
        return {**self._weights, **{name: layer.to("cpu") for name, layer in self._fitted.items()}}

    def _attend(self, parameters: Parameters, states: Tensor) -> Tensor:
        normed = self._normed("input_layernorm", states)
        tables = rotary_tables(self._shape, states.shape[1], states)
        return attention(parameters, f"{self._prefix}self_attn", self._shape, normed, tables, 1.0)

    def _feed(self, parameters: Parameters, states: Tensor) -> Tensor:
        return feed_forward(parameters, f"{self._prefix}mlp", self._normed("post_attention_layernorm", states), 1.0)

    def _normed(self, name: str, states: Tensor) -> Tensor:
        weight = self._whole[f"{self._prefix}{name}.weight"]
        assert isinstance(weight, Tensor)
        return rms_norm(states, weight, self._shape.rms_norm_eps)

    def _fit_group(
        self,
        names: list[str],
        part: Callable[[Parameters, Tensor], Tensor],
        hidden: list[Tensor],
        whole: list[Tensor],
    ) -> None:
        """Quantizes linear layers that share an input."""
        watched = self._whole[names[0]]
        assert isinstance(watched, _Watched)
        gram = Gram(watched.in_features, self._device)
        for ours, others in zip(hidden, whole, strict=True):
            given = []
            for parameters, batch in ((self._whole | self._fitted, ours), (self._whole, others)):
                part(parameters, batch.to(self._device))
                given.append(watched.inputs)
            gram.add(*given)
        if not gram.is_finite:
            raise ModelError(f"on this text, what {names[0]} is given is not finite: nothing can be fitted to it")
        for name in names:
            weight = self._weights[name].to(self._device, torch.float32)
            wanted = aimed_at(weight, gram)
            layer = calibrated(wanted, gram.matrix)
            rounded = output_error(weight, Nf4Linear.quantize(weight).weight(), gram)
            error = output_error(weight, layer.weight(), gram)
            self._tell(Fitted(name.removesuffix(".weight"), error, rounded))
            self._fitted[name] = layer
