"""Quantized linear layers on a GPU beside the same ones on the CPU."""

from typing import Any

import pytest
import torch
from swarm_peer.compression.calibrated import Gram, calibrated, output_error
from swarm_peer.compression.linear import Int8Linear, Nf4Linear
from torch import Tensor

from tests.gpu.device import DEVICE, HERE, ON_GPU

pytestmark = ON_GPU

SHAPES = [(384, 512), (172, 100), (7, 1030), (65, 2088), (2048, 4096)]
"""Outputs, inputs."""

KINDS: dict[str, Any] = {"nf4": Nf4Linear, "int8": Int8Linear}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(came: Tensor, wanted: Tensor) -> float:
    return ((came.cpu().float() - wanted.float()).norm() / wanted.float().norm()).item()


def outputs_and_gradient(layer: Any, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    given = inputs.clone().requires_grad_()
    outputs = layer(given)
    outputs.backward(gradient)
    assert given.grad is not None
    return outputs.detach(), given.grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_gives_the_same_codes(kind: str, shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    there, here = KINDS[kind].quantize(weight.to(DEVICE)), KINDS[kind].quantize(weight)
    for name, tensor in here.state_dict().items():
        found = there.state_dict()[name]
        assert found.device == DEVICE
        assert torch.equal(found.cpu(), tensor), name
    assert torch.equal(there.weight().cpu(), here.weight())


@pytest.mark.parametrize("rows", [1, 8, 17, 130])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_it_is_the_cpus(kind: str, shape: tuple[int, int], rows: int) -> None:
    outputs, inputs = shape
    layer = KINDS[kind].quantize(normal(*shape), bias=normal(outputs, seed=3))
    given, gradient = normal(rows, inputs, seed=1), normal(rows, outputs, seed=2)
    given[:, 5] *= 20  # stands out
    wanted, wanted_gradient = outputs_and_gradient(layer, given, gradient)
    came, came_gradient = outputs_and_gradient(layer.to(DEVICE), given.to(DEVICE), gradient.to(DEVICE))
    assert came.device == came_gradient.device == DEVICE
    assert relative_error(came, wanted) < 1e-5
    assert relative_error(came_gradient, wanted_gradient) < 1e-5
    assert next(layer.to(HERE).buffers()).device == HERE


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 0.006), (torch.float16, 0.001)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_in_half_precision_it_is_near(kind: str, shape: tuple[int, int], dtype: torch.dtype, rounding: float) -> None:
    outputs, inputs = shape
    layer = KINDS[kind].quantize(normal(*shape))
    given, gradient = normal(40, inputs, seed=1).to(dtype), normal(40, outputs, seed=2).to(dtype)
    weight = layer.weight()
    came, came_gradient = outputs_and_gradient(layer.to(DEVICE), given.to(DEVICE), gradient.to(DEVICE))
    assert came.dtype == came_gradient.dtype == dtype
    assert relative_error(came, given.float() @ weight.T) < rounding + (0.013 if kind == "int8" else 0.0)
    assert relative_error(came_gradient, gradient.float() @ weight) < rounding


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the memory of a CUDA device is measured")
def test_the_weight_is_held_decoded_only_while_it_is_used() -> None:
    outputs, inputs = 8192, 8192
    layer = Nf4Linear(inputs, outputs, device=DEVICE)
    given = torch.zeros(16, inputs, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    layer(given).sum().backward()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = layer(given)
    assert torch.cuda.memory_allocated() - before < 1 << 20
    kept.sum().backward()
    # 128 MiB of bfloat16, and the temporaries of one tile of 64 MiB.
    assert torch.cuda.max_memory_allocated() - before < 400 << 20


def test_codes_that_are_fitted_there_are_as_good() -> None:
    weight, inputs = normal(192, 256), normal(500, 256, seed=1) @ normal(256, 256, seed=2)
    gram = Gram(256, weight.device)
    gram.add(inputs, inputs)
    layer, there = calibrated(weight, gram.matrix), calibrated(weight.to(DEVICE), gram.matrix.to(DEVICE))
    assert there.codes.device == DEVICE
    ours, theirs = (output_error(weight, held.weight().cpu(), gram) for held in (layer, there))
    assert abs(theirs - ours) < 0.02 * ours
