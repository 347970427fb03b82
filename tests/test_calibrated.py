"""nf4 that is chosen for what a layer is given: the outputs are closer, the bits the same."""

import pytest
import torch
from swarm_peer.compression.calibrated import Gram, aimed_at, calibrated, output_error
from swarm_peer.compression.linear import Nf4Linear
from swarm_peer.errors import ModelError
from torch import Tensor


def inputs_of(features: int, rows: int = 400) -> Tensor:
    """Correlated, as hidden states are, and of very different sizes."""
    made = torch.Generator().manual_seed(features)
    mixed = torch.randn(rows, features, generator=made) @ torch.randn(features, features, generator=made)
    return mixed * torch.rand(features, generator=made).square()


@pytest.mark.parametrize("size", [(96, 128), (40, 64), (130, 192)])
def test_outputs_are_much_closer_than_of_weights_rounded_each_for_itself(size: tuple[int, int]) -> None:
    weight, inputs = 0.02 * torch.randn(size, generator=torch.Generator().manual_seed(1)), inputs_of(size[1])
    gram = Gram(size[1], weight.device)
    for part in inputs.split(100):
        gram.add(part, part)
    assert torch.equal(aimed_at(weight, gram), weight)
    layer, rounded = calibrated(weight, gram.matrix), Nf4Linear.quantize(weight)
    errors = []
    for held in (layer, rounded):
        wanted = inputs @ weight.T
        errors.append(float((inputs @ held.weight().T - wanted).norm() / wanted.norm()))
        assert output_error(weight, held.weight(), gram) == pytest.approx(errors[-1], rel=1e-3)
    assert errors[0] < 0.7 * errors[1]
    assert {name: part.shape for name, part in layer.state_dict().items()} == {
        name: part.shape for name, part in rounded.state_dict().items()
    }
    assert torch.equal(calibrated(weight, gram.matrix).codes, layer.codes)
    rows = inputs[:3]
    assert torch.allclose(layer(rows), rows @ layer.weight().T, atol=1e-4)


def test_inputs_that_are_off_are_made_up_for() -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(2))
    whole = inputs_of(64)
    inputs = whole + 0.1 * whole.roll(1, dims=1)
    gram = Gram(64, weight.device)
    gram.add(inputs, whole)

    def error(held: Tensor) -> float:
        return float((inputs @ held.T - whole @ weight.T).norm())

    assert error(aimed_at(weight, gram)) < 0.6 * error(weight)
    for held in (weight, aimed_at(weight, gram)):
        beside = error(held) / float((whole @ weight.T).norm())
        assert output_error(weight, held, gram) == pytest.approx(beside, rel=1e-3)


def test_where_nothing_is_known_of_the_inputs_each_weight_is_rounded_for_itself() -> None:
    weight = torch.randn(16, 64)
    assert torch.equal(calibrated(weight, torch.zeros(64, 64)).codes, Nf4Linear.quantize(weight).codes)
    across = torch.randn(16, 100)
    assert torch.equal(calibrated(across, torch.eye(100)).codes, Nf4Linear.quantize(across).codes)
    with pytest.raises(ModelError, match="gram"):
        calibrated(weight, torch.eye(65))


def test_an_input_that_never_comes_and_weights_of_zero_are_no_trouble() -> None:
    inputs = inputs_of(128)
    inputs[:, 5] = 0.0
    inputs[:, 64:128] = inputs[:, :64]  # the gram matrix is singular
    weight = torch.randn(24, 128)
    weight[3] = 0.0
    gram = Gram(128, weight.device)
    gram.add(inputs, inputs)
    layer = calibrated(weight, gram.matrix)
    assert not layer.weight()[3].any()
    assert output_error(weight, layer.weight(), gram) < output_error(weight, Nf4Linear.quantize(weight).weight(), gram)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ModelError, match="not finite"):
        calibrated(torch.randn(16, 64), torch.full((64, 64), bad))
