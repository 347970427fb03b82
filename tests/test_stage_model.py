"""The cut model against transformers' uncut one: output, loss and gradients, wherever it is cut."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from swarm_peer.swarm.initial import base_tensor, uniform
from swarm_peer.swarm.manifest import LlamaShape
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.model.names import base_shapes, lora_shapes
from swarm_peer.swarm.model.stage import stage_forward
from torch import Tensor
from torch.nn import functional

transformers = pytest.importorskip("transformers")

SMALL = LlamaShape(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    vocab_size=61,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=500.0,
    tie_word_embeddings=False,
)
RANK, ALPHA = 4, 10.0


def reference_model(shape: LlamaShape) -> Any:
    values = shape.model_dump()
    rope = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values, rope_parameters=rope, pad_token_id=None))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than real ones, and norms other than 1: small differences should show.
            parameter.copy_(base_tensor(0, name, parameter.shape, 0.2) + uniform(1, name, parameter.shape, -0.1, 0.1))
    return model.eval()


def cut(layers: int, stages: int) -> list[range]:
    bounds = [layers * stage // stages for stage in range(stages + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]


def run_cut(
    parameters: Mapping[str, Tensor], shape: LlamaShape, stages: int, tokens: Tensor, labels: Tensor, lora: bool
) -> tuple[list[Tensor], Tensor]:
    """Outputs of all stages but the last, and the loss; each stage sees only its own tensors."""
    inputs, outputs = tokens, []
    ranges = cut(shape.num_hidden_layers, stages)
    for stage, layers in enumerate(ranges):
        is_first, is_last = stage == 0, stage == stages - 1
        names = set(base_shapes(shape, layers, is_first=is_first, is_last=is_last))
        if lora:
            names |= set(lora_shapes(shape, layers, RANK))
        own = {name: parameters[name] for name in names}
        inputs = stage_forward(
            own,
            shape,
            layers,
            is_first=is_first,
            is_last=is_last,
            inputs=inputs,
            labels=labels,
            lora_scale=ALPHA / RANK,
        )
        outputs.append(inputs)
    return outputs[:-1], outputs[-1]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 61, (3, 21), generator=generator)
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [SMALL, TINY], ids=["small", "tiny"])
def test_full_training_matches_at_every_cut(shape: LlamaShape, tied: bool, batch: tuple[Tensor, Tensor]) -> None:
    shape = shape.model_copy(update={"tie_word_embeddings": tied})
    tokens, labels = batch
    model = reference_model(shape)
    whole = model(tokens, output_hidden_states=True)
    loss = functional.cross_entropy(whole.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    parameters = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    for stages in (1, 2, 3, shape.num_hidden_layers):
        outputs, ours = run_cut(parameters, shape, stages, tokens, labels, lora=False)
        for layers, output in zip(cut(shape.num_hidden_layers, stages), outputs, strict=False):
            torch.testing.assert_close(output, whole.hidden_states[layers.stop], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours, loss, rtol=1e-5, atol=0)
        gradients = torch.autograd.grad(ours, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            theirs = model.get_parameter(name).grad
            error = (gradient - theirs).norm() / theirs.norm()
            assert error < 1e-5, f"{name} at {stages} stages: {error}"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [SMALL, TINY], ids=["small", "tiny"])
def test_lora_matches_a_model_with_the_product_merged(
    shape: LlamaShape, tied: bool, batch: tuple[Tensor, Tensor]
) -> None:
    """W + s B A in place of W: its gradient G gives those of the factors, s B^T G and s G A^T."""
    shape = shape.model_copy(update={"tie_word_embeddings": tied})
    tokens, labels = batch
    model = reference_model(shape)
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    factors = {
        name: uniform(2, name, size, -0.2, 0.2).requires_grad_()
        for name, size in lora_shapes(shape, range(shape.num_hidden_layers), RANK).items()
    }
    scale = ALPHA / RANK
    with torch.no_grad():
        for name, down in factors.items():
            if name.endswith("lora_A"):
                linear = name.removesuffix(".lora_A")
                model.get_parameter(f"{linear}.weight").add_(scale * factors[f"{linear}.lora_B"] @ down)
    logits = model(tokens).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    for stages in (1, 2, 3, shape.num_hidden_layers):
        _, ours = run_cut({**base, **factors}, shape, stages, tokens, labels, lora=True)
        torch.testing.assert_close(ours, loss, rtol=1e-5, atol=0)
        gradients = dict(zip(factors, torch.autograd.grad(ours, list(factors.values())), strict=True))
        for name, gradient in gradients.items():
            linear, kind = name.rsplit(".", 1)
            merged = model.get_parameter(f"{linear}.weight").grad
            down, up = factors[f"{linear}.lora_A"].detach(), factors[f"{linear}.lora_B"].detach()
            theirs = scale * (up.T @ merged if kind == "lora_A" else merged @ down.T)
            error = (gradient - theirs).norm() / theirs.norm()
            assert error < 1e-4, f"{name} at {stages} stages: {error}"


def test_bf16_computes_close_to_fp32_and_gives_fp32_gradients(batch: tuple[Tensor, Tensor]) -> None:
    tokens, labels = batch
    layers = range(TINY.num_hidden_layers)
    parameters = {
        name: base_tensor(0, name, size, 0.02).requires_grad_()
        for name, size in base_shapes(TINY, layers, is_first=True, is_last=True).items()
    }
    wide, narrow = (
        stage_forward(
            parameters, TINY, layers, is_first=True, is_last=True, inputs=tokens, labels=labels, compute_dtype=dtype
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert narrow.dtype == torch.float32
    assert 0 < abs(narrow.item() - wide.item()) < 0.01 * wide.item()
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(narrow, list(parameters.values())))


def test_a_later_token_does_not_change_an_earlier_one(batch: tuple[Tensor, Tensor]) -> None:
    tokens, _ = batch
    layers = range(2)
    parameters = {
        name: base_tensor(0, name, size, 0.2)
        for name, size in base_shapes(TINY, layers, is_first=True, is_last=False).items()
    }
    changed = tokens.clone()
    changed[:, 10] += 1
    one, other = (
        stage_forward(parameters, TINY, layers, is_first=True, is_last=False, inputs=ids) for ids in (tokens, changed)
    )
    torch.testing.assert_close(one[:, :10], other[:, :10])
    assert not torch.allclose(one[:, 10:], other[:, 10:])


def test_the_last_stage_needs_labels() -> None:
    with pytest.raises(ValueError, match="labels"):
        stage_forward({}, TINY, range(0), is_first=False, is_last=True, inputs=torch.zeros(1, 2, 64))
