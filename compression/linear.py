"""Linear layers whose frozen weight is quantized: plain modules with plain buffers.

`Nf4Linear` holds 4-bit codes with doubly quantized scales, 4.127 bits a weight (QLoRA: Dettmers et al. 2023, arXiv
2305.14314). `Int8Linear` holds int8 rows and multiplies int8 by int8, but for the input features that stand out, which
go in full precision (LLM.int8(): Dettmers et al. 2022, arXiv 2208.07339). Both give the gradient of their input; the
weight has none. On the CPU they compute in float32, on a GPU in an input's own bfloat16 or float16, else in float32
too. Their state dicts are what safetensors can hold, and load strictly.

Inputs are [..., in], outputs [..., out], of the input's type. Errors: `ModelError` for shapes that do not fit.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ModelError, NonFiniteError
from ..kernels import blockwise, cuda, engine
from . import quant_state

THRESHOLD = 6.0
"""LLM.int8(): an input feature of which some value is as large goes in full precision."""

GROUP = 1024
"""Inputs that share a scale in `Int8Linear`."""

TILE_ELEMENTS = 1 << 22
"""So many weights are decoded at a time: 16 MiB."""

GPU_TILE_ELEMENTS = 1 << 24
"""On a GPU, where each of the few kernels of a tile has to be started: 64 MiB."""


def on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


class QuantizedLinear(nn.Module):
    """What the formats have in common. `bias` is a buffer, or None."""

    bias: Tensor | None
    codes: Tensor

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

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole weight, decoded: [out, in]. Beside it no more than a tile is held in float32."""
        whole = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.codes.device)
        for first, last in self._tiles():
            whole[first:last] = self.rows(first, last)
        return whole

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.shape[-1] != self.in_features:
            raise ModelError(f"inputs have {inputs.shape[-1]} features; this layer takes {self.in_features}")
        flat = inputs.reshape(-1, self.in_features)
        if not on_gpu(flat) or flat.dtype not in (torch.bfloat16, torch.float16):
            flat = flat.float()
        outputs: Tensor = _Multiply.apply(flat, self)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def multiply(self, inputs: Tensor) -> Tensor:
        """[n, in] -> [n, out], of the inputs' type: float32, on a GPU bfloat16 and float16 too."""
        if on_gpu(inputs):
            return torch.mm(inputs, self.weight(inputs.dtype).T)
        outputs = torch.empty(len(inputs), self.out_features, device=inputs.device)
        for first, last in self._tiles():
            torch.mm(inputs, self.rows(first, last).T, out=outputs[:, first:last])
        return outputs

    def multiply_back(self, gradients: Tensor) -> Tensor:
        """[n, out] -> [n, in], of the same types: the gradient of the input."""
        if on_gpu(gradients):
            return torch.mm(gradients, self.weight(gradients.dtype))
        total = torch.zeros(len(gradients), self.in_features, device=gradients.device)
        for first, last in self._tiles():
            total.addmm_(gradients[:, first:last], self.rows(first, last))
        return total

    def _tiles(self) -> list[tuple[int, int]]:
        step = self.row_step
        elements = GPU_TILE_ELEMENTS if on_gpu(self.codes) else TILE_ELEMENTS
        height = max(1, elements // max(1, self.in_features * step)) * step
        return [(at, min(at + height, self.out_features)) for at in range(0, self.out_features, height)]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: Tensor, layer: QuantizedLinear) -> Tensor:
        context.layer, context.dtype = layer, inputs.dtype
        return layer.multiply(inputs)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.layer.multiply_back(gradients[0].contiguous().to(context.dtype)), None


def quantized(base: str, weight: Tensor) -> "QuantizedLinear":
    """The layer of a weight [out, in] in the format `nf4` or `int8`."""
    if base == "nf4":
        return Nf4Linear.quantize(weight)
    if base == "int8":
        return Int8Linear.quantize(weight)
    raise ModelError(f"base format {base!r}; wanted nf4 or int8")


def empty(base: str, outputs: int, inputs: int) -> "QuantizedLinear":
    """A layer of zeros in the format `nf4` or `int8`, for a state dict to be loaded into."""
    if base == "nf4":
        return Nf4Linear(inputs, outputs)
    if base == "int8":
        return Int8Linear(inputs, outputs)
    raise ModelError(f"base format {base!r}; wanted nf4 or int8")


class Nf4Linear(QuantizedLinear):
    """Blocks go on from row to row. Buffers: `codes` uint8 [out * in / 2]; for its B blocks either `scale_codes`
    uint8 [B] and `scale_scales` float32 [B / 256, rounded up], and with `shifted` what is added to all of them,
    `scale_shift` float32 [1], as bitsandbytes has it; or `scales` float32 [B], without double quantization."""

    scale_codes: Tensor | None
    scale_scales: Tensor | None
    scale_shift: Tensor | None
    scales: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        block: int = 64,
        double: bool = True,
        shifted: bool = False,
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
        self.register_buffer("scale_shift", torch.zeros(1) if double and shifted else None)
        self.register_buffer("scales", None if double else torch.zeros(blocks))
        self.to(device)

    @classmethod
    def quantize(cls, weight: Tensor, *, block: int = 64, bias: Tensor | None = None, threads: int = 1) -> "Nf4Linear":
        """Of a floating-point weight [out, in], on its device."""
        outputs, inputs = weight.shape
        layer = cls(inputs, outputs, block=block, bias=bias, device=weight.device)
        flat = weight.detach().to(torch.float32).reshape(-1)
        layer.codes, scales = engine.codes_of("nf4", flat, block, threads)
        layer.scale_codes, layer.scale_scales = engine.codes_of("dynamic", scales, engine.SCALE_BLOCK, threads)
        return layer

    @classmethod
    def from_bitsandbytes(
        cls, state: Mapping[str, Tensor], prefix: str = "", shape: tuple[int, int] | None = None
    ) -> "Nf4Linear":
        """The layer of a checkpoint that bitsandbytes wrote (`Linear4bit`, nf4, with or without double quantization):
        the same codes, and scales that decode as they do there (to 3e-7). `shape`: the [out, in] that it must have.
        Raises `ModelError` for anything else, and for scales that are not finite."""
        name, bias = f"{prefix}weight", state.get(f"{prefix}bias")
        told = quant_state.read(state, name, shape)
        outputs, inputs = told.shape
        nested, scales = told.nested_blocksize, state[f"{name}.absmax"]
        double = nested is not None and _is_usual(nested, state[f"{name}.nested_quant_map"])
        layer = cls(inputs, outputs, block=told.blocksize, double=double, shifted=told.nested_offset != 0.0, bias=bias)
        held = {"codes": state[name].reshape(-1)}
        if double:
            held |= {"scale_codes": scales, "scale_scales": state[f"{name}.nested_absmax"]}
            if layer.scale_shift is not None:
                held["scale_shift"] = torch.tensor([told.nested_offset])
        elif nested is not None:
            shared = state[f"{name}.nested_absmax"][torch.arange(len(scales)) // nested]
            held["scales"] = state[f"{name}.nested_quant_map"][scales.long()] * shared + told.nested_offset
        else:
            held["scales"] = scales
        for buffer, content in held.items():
            getattr(layer, buffer).copy_(content)
        try:
            is_finite = bool(torch.isfinite(layer.decoded_scales()).all())
        except NonFiniteError:
            is_finite = False
        if not is_finite:
            raise ModelError(f"{name} holds NaN or infinity")
        return layer

    def to_bitsandbytes(self, prefix: str = "", dtype: str = "bfloat16") -> dict[str, Tensor]:
        """The tensors of it in a checkpoint, as bitsandbytes names them and reads them again. `dtype`: what it is to
        compute in there."""
        name = f"{prefix}weight"
        state = {name: self.codes.view(-1, 1), f"{name}.quant_map": torch.tensor(blockwise.NF4_LEVELS)}
        nested, shift = None, 0.0
        if self.scales is not None:
            state[f"{name}.absmax"] = self.scales
        else:
            assert self.scale_codes is not None
            assert self.scale_scales is not None
            nested, shift = engine.SCALE_BLOCK, 0.0 if self.scale_shift is None else self.scale_shift.item()
            state |= {f"{name}.absmax": self.scale_codes, f"{name}.nested_absmax": self.scale_scales}
            state[f"{name}.nested_quant_map"] = torch.tensor(blockwise.dynamic_levels())
        state[f"{name}.{quant_state.QUANT_STATE}"] = quant_state.packed(
            (self.out_features, self.in_features), self.block, nested, shift, dtype
        )
        if self.bias is not None:
            state[f"{prefix}bias"] = self.bias
        return {at: tensor.cpu().contiguous() for at, tensor in state.items()}

    def rows(self, first: int, last: int) -> Tensor:
        start, end = first * self.in_features, last * self.in_features
        scales = self.decoded_scales(start // self.block, -(-end // self.block))
        codes, elements = self.codes[start // 2 : (end + 1) // 2], end - start
        threads = torch.get_num_threads()
        values = engine.values_of("nf4", codes, scales, elements, self.block, threads=threads, check=False)
        return values.view(last - first, self.in_features)

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        if on_gpu(self.codes):
            shape = self.out_features, self.in_features
            made = cuda.decoded_nf4(self.codes, self.decoded_scales(), shape, self.block, dtype)
            if made is not None:
                return made
        return super().weight(dtype)

    def decoded_scales(self, first: int = 0, last: int | None = None) -> Tensor:
        """float32 [last - first], of all blocks unless told."""
        if self.scales is not None:
            return self.scales[first:last]
        assert self.scale_codes is not None
        assert self.scale_scales is not None
        group = first // engine.SCALE_BLOCK
        codes, scales = self.scale_codes[group * engine.SCALE_BLOCK : last], self.scale_scales[group:]
        scales = scales[: -(-len(codes) // engine.SCALE_BLOCK)]
        values = engine.values_of("dynamic", codes, scales, len(codes), engine.SCALE_BLOCK, check=False)
        values = values[first - group * engine.SCALE_BLOCK :]
        return values if self.scale_shift is None else values + self.scale_shift

    def multiply(self, inputs: Tensor) -> Tensor:
        fits = self.block % engine.FUSED_STEP == 0 and self.in_features % self.block == 0
        if fits and len(inputs) <= engine.FUSED_ROWS and engine.has_fused(inputs.device):
            scales, threads = self.decoded_scales(), torch.get_num_threads()
            return engine.nf4_matmul(inputs, self.codes, scales, self.out_features, self.block, threads)
        return super().multiply(inputs)


def _is_usual(block: int, levels: Tensor) -> bool:
    """Whether a double quantization is that of `Nf4Linear`: bitsandbytes has its levels to a unit in the last place."""
    ours = torch.tensor(blockwise.dynamic_levels())
    return (
        block == engine.SCALE_BLOCK and levels.shape == ours.shape and torch.allclose(levels.float().cpu(), ours, 3e-7)
    )


class Int8Linear(QuantizedLinear):
    """Inputs go in groups of 1,024, each with a scale of its own for every row of weight and input. Buffers: `codes`
    int8 [out, in]; `scales` float32 [out, groups]."""

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
        wide = inputs.float()
        outlying = (wide.abs() >= self.threshold).any(dim=0).nonzero().view(-1)
        usual = wide
        if len(outlying):
            usual = wide.clone()
            usual[:, outlying] = 0.0
        outputs = torch.zeros(len(inputs), self.out_features, device=inputs.device)
        for group, (first, last) in enumerate(self.groups):
            codes, scales = _rows_to_int8(usual[:, first:last])
            products = _int8_product(codes, self.codes[:, first:last]).float()
            outputs.addcmul_(products.mul_(scales[:, None]), self.scales[:, group])
        if len(outlying):
            apart = self.codes[:, outlying].float() * self.scales[:, outlying // GROUP]
            outputs.addmm_(wide[:, outlying], apart.T)
        return outputs.to(inputs.dtype)


def _int8_product(rows: Tensor, weight: Tensor) -> Tensor:
    """int8 [r, c] times int8 [o, c], transposed -> int32 [r, o].

    cuBLAS takes more than 16 rows, of which, as of everything else, there must be a multiple of eight, and wants its
    memory aligned to 16 bytes; zeros fill what is missing.
    """
    if not on_gpu(rows):
        return torch._int_mm(rows, weight.T)
    count, outputs, width = len(rows), len(weight), -rows.shape[1] % 16
    rows = functional.pad(rows, (0, width, 0, max(32 - count, -count % 8)))
    if width or outputs % 16 or weight.stride(0) % 16:
        weight = functional.pad(weight, (0, width, 0, -outputs % 16)).contiguous()
    return torch._int_mm(rows, weight.T)[:count, :outputs]


def _rows_to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [r, c] -> (int8 codes [r, c], float32 scales [r]): the largest of a row is 127 steps."""
    largest = rows.abs().amax(dim=1)
    scales = largest / torch.full_like(largest, 127.0)  # CUDA would multiply by the reciprocal of a plain number
    safe = torch.where(scales == 0, torch.ones_like(scales), scales)
    return torch.round(rows / safe[:, None]).to(torch.int8), scales
