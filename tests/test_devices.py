"""No operation mixes devices: what a GPU computes is run on torch's `meta`, a device other than the CPU that is
everywhere.

Its tensors have shapes and types and no values, and like those of CUDA they refuse to meet one on the CPU. What looks
at values (are they finite, which features stand out) is left out.
"""

from typing import Any

import pytest
import torch
from swarm_peer.compression import linear
from swarm_peer.compression.linear import Int8Linear, Nf4Linear
from swarm_peer.kernels import blockwise, random_bits, rotation
from swarm_peer.swarm import optimizer
from swarm_peer.swarm.backend import Update
from swarm_peer.swarm.manifest import OptimizerSettings
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.model.names import base_shapes, block_linears, lora_shapes
from swarm_peer.swarm.model.stage import stage_forward
from torch import Tensor

ELSEWHERE = torch.device("meta")
UPDATE = Update(factor=0.01, learning_rate=1e-3, bias_correction1=0.1, bias_correction2=0.001)


@pytest.fixture(autouse=True)
def _meta_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absmax(blocks: Tensor) -> Tensor:
        return blocks.abs().amax(dim=1)

    monkeypatch.setattr(blockwise, "absmax", absmax)
    monkeypatch.setattr(linear, "on_gpu", lambda tensor: tensor.device == ELSEWHERE)


def test_it_would_be_seen() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.add(values(4), torch.zeros(4))


def is_there(*tensors: Tensor) -> bool:
    return all(tensor.device == ELSEWHERE for tensor in tensors)


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=ELSEWHERE)


@pytest.mark.parametrize("elements", [4096, 1001])
def test_blockwise_codes(elements: int) -> None:
    flat = values(elements)
    dither = random_bits.uniform(elements, 3, ELSEWHERE)
    for codes, scales in (
        blockwise.quantize_linear(flat, 64),
        blockwise.quantize_linear(flat, 64, blockwise.INT4, dither),
    ):
        assert is_there(codes, scales, blockwise.dequantize_linear(codes, scales, 64))
    codes, scales = blockwise.quantize_dynamic(flat, 64)
    assert is_there(codes, scales, blockwise.dequantize_dynamic(codes, scales, 64))
    codes, scales = blockwise.quantize_nf4(flat, 64)
    packed = blockwise.pack_nibbles(codes)
    assert is_there(packed, blockwise.unpack_nibbles(packed, elements), blockwise.dequantize_nf4(codes, scales, 64))
    assert is_there(blockwise.dequantize_nf4_bytes(packed, scales, elements, 64))


def test_rotation() -> None:
    flat = values(4096)
    assert is_there(rotation.rotate_back(rotation.rotate(flat, 64, 5), 64, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 384, 512), (40, 172, 1100)])
def test_linear_layers(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    for layer in (Nf4Linear(inputs, outputs, device=ELSEWHERE), Int8Linear(inputs, outputs, device=ELSEWHERE)):
        came = layer.multiply_back(values(rows, outputs, dtype=dtype))
        assert is_there(came)
        assert came.dtype == dtype
    given = values(rows, inputs, dtype=dtype).requires_grad_()
    result = Nf4Linear(inputs, outputs, bias=torch.zeros(outputs), device=ELSEWHERE)(given)
    (gradient,) = torch.autograd.grad(result.sum(), given)
    assert is_there(result, gradient)
    assert result.dtype == gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stage(dtype: torch.dtype) -> None:
    layers = range(2)
    base: dict[str, Any] = {
        name: values(*shape, dtype=dtype)
        for name, shape in base_shapes(TINY, layers, is_first=True, is_last=True).items()
    }
    for name, (rows, columns) in block_linears(TINY, 1).items():
        base[f"{name}.weight"] = Nf4Linear(columns, rows, device=ELSEWHERE)
    trained = {name: values(*shape).requires_grad_() for name, shape in lora_shapes(TINY, layers, 8).items()}
    tokens = torch.empty(2, 32, dtype=torch.int64, device=ELSEWHERE)
    loss = stage_forward(
        {**base, **trained},
        TINY,
        layers,
        is_first=True,
        is_last=True,
        inputs=tokens,
        labels=tokens,
        compute_dtype=dtype,
    )
    assert is_there(loss, *torch.autograd.grad(loss, list(trained.values())))


@pytest.mark.parametrize("form", ["fp32", "8bit"])
def test_an_update(form: Any) -> None:
    shapes = {"one.lora_A": (8, 1024), "two.lora_B": (64, 8)}
    parameters = {name: values(*shape) for name, shape in shapes.items()}
    state = optimizer.fresh_state(parameters, form)
    gradients = {name: values(*shape) for name, shape in shapes.items()}
    after = optimizer.adamw(state, gradients, UPDATE, OptimizerSettings(state=form))
    assert is_there(*(piece for _, piece in after.pieces()))
