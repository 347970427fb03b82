"""Linear layers whose frozen weight is quantized: plain modules with plain buffers.

`Nf4Linear` holds 4-bit codes with doubly quantized scales, 4.127 bits a weight (QLoRA: Dettmers et al. 2023, arXiv
2305.14314). `Int8Linear` holds int8 rows and multiplies int8 by int8, but for the input features that stand out, which
go in full precision (LLM.int8(): Dettmers et al. 2022, arXiv 2208.07339). Both compute in float32 and give the gradient
of their input; the weight has none. Their state dicts are what safetensors can hold, and load strictly.

Inputs are [..., in], outputs [..., out], of the input's type. Errors: `ModelError` for shapes that do not fit.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..kernels import engine

THRESHOLD = 6.0
"""LLM.int8(): an input feature of which some value is as large goes in full precision."""

GROUP = 1024
"""Inputs that share a scale in `Int8Linear`."""

TILE_ELEMENTS = 1 << 22
"""So many weights are decoded at a time: 16 MiB."""


class QuantizedLinear(nn.Module):
    """What the formats have in common. `bias` is a buffer, or None."""

    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None) -> None:
        super().__init__()
        if bias is not None and bias.shape != (out_features,):
            raise ModelError(f"a bias of shape {tuple(bias.shape)} for {out_features} outputs")
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32).clone())

    row_step = 1
    """What the first row of `rows` must be a multiple of, and the last one unless it is the end."""

    def rows(self, first: int, last: int) -> Tensor:
        """The weights of outputs [first, last), decoded: float32 [last - first, in]."""
        raise NotImplementedError

    def weight(self) -> Tensor:
        """The whole weight, decoded: float32 [out, in]."""
        return self.rows(0, self.out_features)

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.shape[-1] != self.in_features:
            raise ModelError(f"inputs have {inputs.shape[-1]} features; this layer takes {self.in_features}")
        flat = inputs.reshape(-1, self.in_features).float()
        outputs: Tensor = _Multiply.apply(flat, self)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def multiply(self, inputs: Tensor) -> Tensor:
        """float32 [n, in] -> [n, out]."""
        outputs = torch.empty(len(inputs), self.out_features, device=inputs.device)
        for first, last in self._tiles():
            torch.mm(inputs, self.rows(first, last).T, out=outputs[:, first:last])
        return outputs

    def multiply_back(self, gradients: Tensor) -> Tensor:
        """float32 [n, out] -> [n, in]: the gradient of the input."""
        total = torch.zeros(len(gradients), self.in_features, device=gradients.device)
        for first, last in self._tiles():
            total.addmm_(gradients[:, first:last], self.rows(first, last))
        return total

    def _tiles(self) -> list[tuple[int, int]]:
        step = self.row_step
        height = max(1, TILE_ELEMENTS // max(1, self.in_features * step)) * step
        return [(at, min(at + height, self.out_features)) for at in range(0, self.out_features, height)]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: Tensor, layer: QuantizedLinear) -> Tensor:
        context.layer = layer
        return layer.multiply(inputs)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.layer.multiply_back(gradients[0].contiguous().float()), None


def quantized(base: str, weight: Tensor) -> "QuantizedLinear":
    """The layer of a weight [out, in] in the format `nf4` or `int8`."""
    if base == "nf4":
        return Nf4Linear.quantize(weight)
    if base == "int8":
        return Int8Linear.quantize(weight)
    raise ModelError(f"base format {base!r}; wanted nf4 or int8")


class Nf4Linear(QuantizedLinear):
    """Blocks go on from row to row. Buffers: `codes` uint8 [out * in / 2]; for its B blocks either `scale_codes`
    uint8 [B] and `scale_scales` float32 [B / 256, rounded up], or `scales` float32 [B], as bitsandbytes has them
    without double quantization."""

    codes: Tensor
    scale_codes: Tensor | None
    scale_scales: Tensor | None
    scales: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        block: int = 64,
        double: bool = True,
        bias: Tensor | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """Zeros, to be loaded; `quantize` makes one of a weight."""
        super().__init__(in_features, out_features, bias)
        if block < 2 or block % 2:
            raise ModelError(f"blocks of {block} elements; wanted an even number")
        self.block = block
        self.row_step = block // math.gcd(in_features, block)
        elements = in_features * out_features
        blocks = -(-elements // block)
        self.register_buffer("codes", torch.full((engine.code_bytes("nf4", elements),), 0x77, dtype=torch.uint8))
        self.register_buffer("scale_codes", torch.full((blocks,), 127, dtype=torch.uint8) if double else None)
        self.register_buffer("scale_scales", torch.zeros(-(-blocks // engine.SCALE_BLOCK)) if double else None)
        self.register_buffer("scales", None if double else torch.zeros(blocks))
        self.to(device)

    @classmethod
    def quantize(cls, weight: Tensor, *, block: int = 64, bias: Tensor | None = None, threads: int = 1) -> "Nf4Linear":
        """Of a floating-point weight [out, in], on its device."""
        outputs, inputs = weight.shape
        layer = cls(inputs, outputs, block=block, bias=bias, device=weight.device)
        flat = weight.detach().to(torch.float32).reshape(-1)
        scales, codes = engine.quantize("nf4", flat, block, threads=threads)
        split = engine.scale_bytes("dynamic", -(-len(flat) // block), engine.SCALE_BLOCK)
        assert layer.scale_codes is not None
        assert layer.scale_scales is not None
        layer.codes.copy_(engine.from_bytes(memoryview(codes), torch.uint8, weight.device))
        layer.scale_scales.copy_(engine.from_bytes(memoryview(scales)[:split], torch.float32, weight.device))
        layer.scale_codes.copy_(engine.from_bytes(memoryview(scales)[split:], torch.uint8, weight.device))
        return layer

    @classmethod
    def from_bitsandbytes(cls, state: Mapping[str, Tensor], prefix: str = "") -> "Nf4Linear":
        """The layer of a checkpoint that bitsandbytes wrote (`Linear4bit`, nf4, with or without double quantization):
        the same codes, its scales as they decode there. Raises `ModelError` for anything else."""
        name = f"{prefix}weight"
        packed = state.get(f"{name}.quant_state.bitsandbytes__nf4")
        if packed is None or name not in state or f"{name}.absmax" not in state:
            raise ModelError(f"{name}: no nf4 weight of bitsandbytes; it has {sorted(state)[:8]}")
        try:
            told = json.loads(bytes(packed.tolist()).decode())
            (outputs, inputs), block = told["shape"], told["blocksize"]
            scales = state[f"{name}.absmax"]
            if "nested_blocksize" in told:
                levels, beside = state[f"{name}.nested_quant_map"].float(), state[f"{name}.nested_absmax"].float()
                shared = beside.repeat_interleave(told["nested_blocksize"])[: len(scales)]
                scales = levels[scales.int()] * shared + told["nested_offset"]
        except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
            raise ModelError(f"{name}: its quantization state cannot be read: {error}") from error
        layer = cls(inputs, outputs, block=block, double=False, bias=state.get(f"{prefix}bias"))
        codes = state[name].reshape(-1)
        assert layer.scales is not None
        if codes.shape != layer.codes.shape or scales.shape != layer.scales.shape:
            raise ModelError(f"{name}: {len(codes)} bytes of codes and {len(scales)} scales for [{outputs}, {inputs}]")
        layer.codes.copy_(codes)
        layer.scales.copy_(scales)
        return layer

    def rows(self, first: int, last: int) -> Tensor:
        start, end = first * self.in_features, last * self.in_features
        scales = self.decoded_scales()[start // self.block : -(-end // self.block)]
        codes, elements = self.codes[start // 2 : (end + 1) // 2], end - start
        return engine.values_of("nf4", codes, scales, elements, self.block).view(last - first, self.in_features)

    def decoded_scales(self) -> Tensor:
        """float32 [B]."""
        if self.scales is not None:
            return self.scales
        assert self.scale_codes is not None
        assert self.scale_scales is not None
        blocks = len(self.scale_codes)
        return engine.values_of("dynamic", self.scale_codes, self.scale_scales, blocks, engine.SCALE_BLOCK)

    def multiply(self, inputs: Tensor) -> Tensor:
        fits = self.block % engine.FUSED_STEP == 0 and self.in_features % self.block == 0
        if fits and len(inputs) <= engine.FUSED_ROWS and engine.has_fused(inputs.device):
            return engine.nf4_matmul(inputs, self.codes, self.decoded_scales(), self.out_features, self.block)
        return super().multiply(inputs)


class Int8Linear(QuantizedLinear):
    """Inputs go in groups of 1,024, each with a scale of its own for every row of weight and input. Buffers: `codes`
    int8 [out, in]; `scales` float32 [out, groups]."""

    codes: Tensor
    scales: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        threshold: float = THRESHOLD,
        bias: Tensor | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.threshold = threshold
        self.register_buffer("codes", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(out_features, len(self.groups)))
        self.to(device)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """First and last input of each."""
        return [(at, min(at + GROUP, self.in_features)) for at in range(0, self.in_features, GROUP)]

    @classmethod
    def quantize(cls, weight: Tensor, *, threshold: float = THRESHOLD, bias: Tensor | None = None) -> "Int8Linear":
        """Of a floating-point weight [out, in], on its device."""
        outputs, inputs = weight.shape
        layer = cls(inputs, outputs, threshold=threshold, bias=bias, device=weight.device)
        for group, (first, last) in enumerate(layer.groups):
            codes, scales = _rows_to_int8(weight[:, first:last].detach().to(torch.float32))
            layer.codes[:, first:last] = codes
            layer.scales[:, group] = scales
        return layer

    def rows(self, first: int, last: int) -> Tensor:
        scales = self.scales[first:last].repeat_interleave(GROUP, dim=1)[:, : self.in_features]
        return self.codes[first:last].float() * scales

    def multiply(self, inputs: Tensor) -> Tensor:
        outlying = (inputs.abs() >= self.threshold).any(dim=0).nonzero().view(-1)
        usual = inputs
        if len(outlying):
            usual = inputs.clone()
            usual[:, outlying] = 0.0
        outputs = torch.zeros(len(inputs), self.out_features, device=inputs.device)
        for group, (first, last) in enumerate(self.groups):
            codes, scales = _rows_to_int8(usual[:, first:last])
            products = torch._int_mm(codes, self.codes[:, first:last].T).float()
            outputs.addcmul_(products.mul_(scales[:, None]), self.scales[:, group])
        if len(outlying):
            apart = self.codes[:, outlying].float() * self.scales[:, outlying // GROUP]
            outputs.addmm_(inputs[:, outlying], apart.T)
        return outputs


def _rows_to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [r, c] -> (int8 codes [r, c], float32 scales [r]): the largest of a row is 127 steps."""
    largest = rows.abs().amax(dim=1)
    scales = largest / torch.full_like(largest, 127.0)  # CUDA would multiply by the reciprocal of a plain number
    safe = torch.where(scales == 0, torch.ones_like(scales), scales)
    return torch.round(rows / safe[:, None]).to(torch.int8), scales
