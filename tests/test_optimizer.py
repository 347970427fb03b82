"""AdamW against torch's, the same bits at every CPU capability, and the trainer's scalars."""

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from swarm_peer.errors import NonFiniteError, WireError
from swarm_peer.swarm import moments
from swarm_peer.swarm.arithmetic import RealArithmetic, learning_rate
from swarm_peer.swarm.backend import Update
from swarm_peer.swarm.manifest import Manifest, ModelSettings, OptimizerSettings, Settings, TrainSettings, freeze
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.optimizer import (
    StageState,
    adamw,
    fresh_state,
    state_digest,
    state_from_bytes,
    state_to_bytes,
)

DIGESTS = """
import torch
from swarm_peer.swarm.backend import Update
from swarm_peer.swarm.initial import uniform
from swarm_peer.swarm.manifest import OptimizerSettings
from swarm_peer.swarm.optimizer import adamw, fresh_state, state_digest
torch.set_num_threads(1)
form = "FORM"
state = fresh_state({"w": uniform(0, "w", (67, 93), -1, 1), "n": uniform(0, "n", (129,), -1, 1)}, form)
settings = OptimizerSettings(weight_decay=0.1, state=form, clip_updates=form == "8bit")
for step in range(5):
    gradients = {n: uniform(step, "g" + n, p.shape, -1, 1) for n, p in state.parameters.items()}
    update = Update(0.1 / 3, 1e-3, 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1))
    state = adamw(state, gradients, update, settings)
print(torch.backends.cpu.get_cpu_capability(), state_digest(state).hex())
"""


def manifest(optimizer: OptimizerSettings, steps: int = 10) -> Manifest:
    return freeze(
        settings=Settings(model=ModelSettings(name="tiny"), train=TrainSettings(steps=steps), optimizer=optimizer),
        shape=TINY,
        texts_sha256=("0" * 64,),
        heldout_sha256=("0" * 64,),
        organizer="0" * 64,
        nonce="0" * 32,
    )


def test_follows_torch_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    start = {
        "matrix": torch.randn(33, 17, generator=generator, dtype=torch.float32),
        "norm": torch.randn(17, generator=generator, dtype=torch.float32),
    }
    settings = OptimizerSettings(learning_rate=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    state = fresh_state(start)
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    groups = [{"params": [theirs["matrix"]], "weight_decay": 0.1}, {"params": [theirs["norm"]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for step in range(20):
        gradients = {name: torch.randn(t.shape, generator=generator) for name, t in start.items()}
        state = adamw(state, gradients, Update(0.5, 0.01, 1 - 0.9 ** (step + 1), 1 - 0.95 ** (step + 1)), settings)
        for name, tensor in theirs.items():
            tensor.grad = gradients[name] * 0.5
        optimizer.step()
    for name, tensor in theirs.items():
        torch.testing.assert_close(state.parameters[name], tensor.detach(), rtol=1e-5, atol=1e-6)


def test_leaves_the_state_that_it_was_given_alone() -> None:
    state = fresh_state({"w": torch.ones(4, 4)})
    before = state_digest(state)
    after = adamw(state, {"w": torch.ones(4, 4)}, Update(1.0, 0.1, 0.1, 0.001), OptimizerSettings())
    assert state_digest(state) == before
    assert state_digest(after) != before


def test_the_digest_covers_moments_shapes_and_names() -> None:
    zero, one = {"w": torch.zeros(2, 2)}, {"w": torch.ones(2, 2)}
    base = fresh_state(zero)
    others = [
        type(base)(zero, one, zero),
        type(base)(zero, zero, one),
        fresh_state({"w": torch.zeros(4, 1)}),
        fresh_state({"v": torch.zeros(2, 2)}),
    ]
    assert len({state_digest(state) for state in [base, *others]}) == 5


# ---- 8-bit moments, clipped updates


def trained(settings: OptimizerSettings, steps: int, scale: Any = 1.0) -> StageState:
    """A state after some steps on seeded gradients of a matrix of 64 x 128, each row `scale` times as large."""
    generator = torch.Generator().manual_seed(1)
    state = fresh_state({"w": torch.zeros(64, 128), "n": torch.ones(129)}, settings.state)
    for step in range(steps):
        gradients = {n: torch.randn(p.shape, generator=generator) + 0.5 for n, p in state.parameters.items()}
        gradients["w"] *= scale
        state = adamw(state, gradients, Update(1.0, 1e-2, 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)), settings)
    return state


def test_8_bit_moments_follow_whole_ones() -> None:
    """Also where gradients of one block differ by a factor of 10,000."""
    scale = torch.logspace(-4, 0, 128)
    whole, coded = (trained(OptimizerSettings(state=form), 50, scale).parameters["w"] for form in ("fp32", "8bit"))
    error = (coded - whole).norm(dim=0) / whole.norm(dim=0)
    assert error[scale > 0.1].max() < 0.07
    assert error.max() < 0.5, "few levels are left so far down, but what they move does not explode"


def test_8_bit_moments_are_small_and_small_tensors_stay_whole() -> None:
    state = trained(OptimizerSettings(state="8bit"), 1)
    for table in (state.first_moment, state.second_moment):
        assert sum(piece.numel() * piece.element_size() for piece in moments.pieces(table["w"])) == 64 * 128 + 4 * 32
        assert isinstance(table["n"], torch.Tensor)


def test_a_positive_second_moment_stays_positive() -> None:
    values = torch.zeros(8192)
    values[::2] = torch.logspace(-44, 30, 4096, dtype=torch.float64).float()
    values[::256] = 1e30
    back = moments.second(moments.keep_second(values, "8bit"), (8192,))
    assert torch.equal(back > 0, values > 0)
    large = values > 1e-2 * 1e30
    assert ((back - values).abs() / values)[large].max() < 0.15


@pytest.mark.parametrize("form", ["fp32", "8bit"])
def test_a_state_comes_back_from_its_bytes(form: Any) -> None:
    state = trained(OptimizerSettings(state=form), 3)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.parameters.items()}
    data = state_to_bytes(state)
    assert state_digest(state_from_bytes(data, shapes, torch.device("cpu"), form)) == state_digest(state)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(WireError, match="are due"):
            state_from_bytes(wrong, shapes, torch.device("cpu"), form)
    poisoned = np.float32(np.nan).tobytes() + data[4:]
    with pytest.raises(WireError, match="NaN"):
        state_from_bytes(poisoned, shapes, torch.device("cpu"), form)
    other = "8bit" if form == "fp32" else "fp32"
    with pytest.raises(WireError, match="are due"):
        state_from_bytes(data, shapes, torch.device("cpu"), other)


def test_an_update_is_clipped_when_the_second_moment_lags_behind() -> None:
    def steps(clip: bool) -> list[float]:
        settings = OptimizerSettings(clip_updates=clip)
        state, sizes = fresh_state({"w": torch.zeros(64, 64)}), []
        for step in range(60):
            gradient = torch.full((64, 64), 100.0 if step == 50 else 1.0)
            after = adamw(
                state, {"w": gradient}, Update(1.0, 1e-2, 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)), settings
            )
            sizes.append((after.parameters["w"] - state.parameters["w"]).abs().max().item())
            state = after
        return sizes

    plain, clipped = steps(False), steps(True)
    assert clipped[:50] == plain[:50], "equal gradients are no spike"
    # g^2 is 10,000 and v, corrected, about 200: by the root of 50 too large an update.
    assert clipped[50] < 0.3 * plain[50]


def run_at(capability: str, form: str) -> tuple[str, str]:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    environment["SWARM_PEER_KERNELS"] = "torch" if capability == "default" else ""
    command = [sys.executable, "-c", DIGESTS.replace("FORM", form)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    name, digest = output.split()
    return name, digest


@pytest.mark.parametrize(
    ("form", "digest"),
    [
        ("fp32", "97f63f088ae37e91fab2c584f345779842e9b3ab820471676951bc731c50b382"),
        ("8bit", "91ae7e6868748c1ec377090cae2dd9165c11e2be502e2ac2a660f005e67b0981"),
    ],
)
def test_the_same_bits_at_every_cpu_capability(form: str, digest: str) -> None:
    plain, plain_digest = run_at("default", form)
    wide, wide_digest = run_at("avx2", form)
    if plain == wide:
        pytest.skip(f"this machine has only one CPU capability ({plain})")
    assert plain_digest == wide_digest
    assert plain_digest == digest


def test_every_operation_is_rounded_correctly() -> None:
    """Against the same formula in double precision, rounded to fp32 after each operation: that is exact rounding."""

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32).astype(np.float64)

    draw = np.random.Generator(np.random.Philox(7))
    settings = OptimizerSettings(weight_decay=0.1)
    state = fresh_state({"w": torch.from_numpy(draw.standard_normal((67, 93)).astype(np.float32))})
    weights = state.parameters["w"].numpy().astype(np.float64)
    first = second = np.zeros_like(weights)
    factor, rate, eps, beta1, rest1, beta2, rest2, keep = rounded(
        np.array([0.1 / 3, 1e-3, 1e-8, 0.9, 1 - 0.9, 0.999, 1 - 0.999, 1 - 1e-3 * 0.1])
    )
    for step in range(5):
        corrections = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
        correction1, correction2 = rounded(np.array(corrections))
        gradient = draw.standard_normal(weights.shape).astype(np.float32)
        state = adamw(state, {"w": torch.from_numpy(gradient)}, Update(0.1 / 3, 1e-3, *corrections), settings)
        scaled = rounded(gradient.astype(np.float64) * factor)
        first = rounded(rounded(first * beta1) + rounded(scaled * rest1))
        second = rounded(rounded(second * beta2) + rounded(rounded(scaled * scaled) * rest2))
        spread = rounded(rounded(np.sqrt(rounded(second / correction2))) + eps)
        weights = rounded(rounded(weights * keep) - rounded(rounded(rounded(first / correction1) / spread) * rate))
        assert np.array_equal(state.parameters["w"].numpy(), weights)
        assert np.array_equal(state.second_moment["w"].numpy(), second)


def test_warm_up_then_decay() -> None:
    flat = manifest(OptimizerSettings(learning_rate=1.0, warmup_steps=4))
    assert [learning_rate(flat, step) for step in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    linear = manifest(OptimizerSettings(learning_rate=1.0, schedule="linear", warmup_steps=2))
    rates = [learning_rate(linear, step) for step in range(2, 11)]
    assert rates == [1 - i / 8 for i in range(9)]
    cosine = manifest(OptimizerSettings(learning_rate=1.0, schedule="cosine"))
    assert learning_rate(cosine, 5) == pytest.approx(0.5)
    assert 0 < learning_rate(cosine, 9) < 0.05


@pytest.mark.parametrize(
    ("squared_norm", "factor"),
    [(0.0, 1 / 64), (64.0**2, 1 / 64), (128.0**2, 0.5 / 64), (32.0**2, 1 / 64)],
)
def test_clipping_bounds_the_norm_per_token(squared_norm: float, factor: float) -> None:
    update = RealArithmetic(manifest(OptimizerSettings(clip_norm=1.0))).update(0, squared_norm, 64)
    assert update.factor == pytest.approx(factor)


def test_the_scalars_of_a_commit_are_fp32_values() -> None:
    update = RealArithmetic(manifest(OptimizerSettings(learning_rate=1e-3, schedule="cosine"))).update(2, 123.456, 100)
    for value in (update.factor, update.learning_rate, update.bias_correction1, update.bias_correction2):
        assert value == torch.tensor(value, dtype=torch.float32).item()
    assert update.bias_correction1 == pytest.approx(1 - 0.9**3)
    assert update.bias_correction2 == pytest.approx(1 - 0.999**3)


@pytest.mark.parametrize("squared_norm", [math.nan, math.inf, -1.0])
def test_a_norm_that_is_no_norm_is_refused(squared_norm: float) -> None:
    with pytest.raises(NonFiniteError, match="step 3"):
        RealArithmetic(manifest(OptimizerSettings())).update(3, squared_norm, 10)
