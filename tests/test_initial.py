"""Initial values are the same bits everywhere: golden digests, and the shape of the distribution."""

import hashlib

import pytest
import torch
from swarm_peer.swarm.initial import base_tensor, lora_tensor, uniform


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("seed", "name", "shape", "golden"),
    [
        (0, "model.embed_tokens.weight", (256, 64), "f4d75095b5b3b467cda62cc046116e78382c0931ebfb0cf29b4b8f9f730ec8ad"),
        (
            7,
            "model.layers.3.self_attn.q_proj.lora_A",
            (8, 64),
            "e631e5474685d17a572cccbbe44da21f65ad1aa392dbb5721790757bb477f778",
        ),
        (2**63 - 1, "x", (3,), "e68144dd9e8bab3835bdfd81ea7fc1fd5c3af7d1ec19736bf3d0ecd5d7d2670c"),
    ],
)
def test_uniform_gives_the_golden_bits(seed: int, name: str, shape: tuple[int, ...], golden: str) -> None:
    assert digest(uniform(seed, name, shape, -0.125, 0.125)) == golden


def test_a_bound_that_fp32_must_round_gives_the_golden_bits() -> None:
    assert (
        digest(base_tensor(0, "w", (64, 64), 0.02))
        == "6435cb55352d435f06e4acdc3d8e39ca12f5cabf347cbafa72ccea6aa59c6219"
    )


def test_values_are_uniform_with_the_standard_deviation_asked_for() -> None:
    values = base_tensor(1, "w", (512, 512), 0.02)
    bound = 0.02 * 3**0.5
    assert values.dtype == torch.float32
    assert values.abs().max() <= bound
    assert values.mean().abs() < 2e-4
    assert values.std() == pytest.approx(0.02, rel=0.01)
    quarters = torch.histc(values, bins=4, min=-bound, max=bound) / values.numel()
    assert torch.allclose(quarters, torch.full((4,), 0.25), atol=0.005)


def test_a_tensor_longer_than_one_chunk_continues_the_same_stream() -> None:
    long = uniform(3, "w", (2**20 + 5,), 0.0, 1.0)
    assert torch.equal(long[:1000], uniform(3, "w", (1000,), 0.0, 1.0))
    assert not torch.equal(long[-5:], long[:5])


def test_seed_and_name_both_matter() -> None:
    one = uniform(0, "a", (8,), 0.0, 1.0)
    assert not torch.equal(one, uniform(1, "a", (8,), 0.0, 1.0))
    assert not torch.equal(one, uniform(0, "b", (8,), 0.0, 1.0))


def test_norms_are_one_and_lora_starts_as_the_base() -> None:
    assert torch.equal(base_tensor(0, "model.norm.weight", (4,), 0.02), torch.ones(4))
    assert torch.equal(lora_tensor(0, "q.lora_B", (6, 2)), torch.zeros(6, 2))
    factor = lora_tensor(0, "q.lora_A", (2, 64))
    assert 0.1 < factor.abs().max() <= 0.125
