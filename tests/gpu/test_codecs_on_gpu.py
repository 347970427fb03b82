"""Wire codecs on a GPU: the bytes of the CPU, whichever side writes or reads them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from swarm_peer.compression import CodecSpec, decode, encode
from swarm_peer.compression.feedback import ErrorFeedback
from swarm_peer.errors import NonFiniteError
from swarm_peer.kernels import engine
from torch import Tensor

from tests.codec_messages import EVERY, NAMES, log_normal, normal, with_outliers
from tests.gpu.device import DEVICE, ON_GPU

pytestmark = ON_GPU

SEED = 12345


def bits(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def denormals() -> Tensor:
    return normal(33, 96) * 1e-42


def of_all_sizes() -> Tensor:
    """From the smallest to nearly the largest that float32 holds."""
    generator = np.random.default_rng(2)
    values = generator.standard_normal((64, 160)) * 10.0 ** generator.integers(-44, 38, (64, 160))
    return torch.from_numpy(np.clip(values, -3.4e38, 3.4e38).astype(np.float32))


def signed_zeros() -> Tensor:
    return torch.where(normal(8, 100) < 0, -0.0, 0.0)


VALUES: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: normal(7, 1000),
    "log-normal": lambda: log_normal(64, 192),
    "outliers": lambda: with_outliers(40, 2048),
    "denormals": denormals,
    "all sizes": of_all_sizes,
    "zeros": signed_zeros,
    "one": lambda: torch.full((1,), 1.5),
    "none": lambda: torch.empty(0, 64),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("block", [64, 256])
@pytest.mark.parametrize("text", EVERY)
def test_the_same_bytes_and_the_same_values(text: str, block: int, kind: str) -> None:
    values, spec = VALUES[kind](), CodecSpec.parse(text, block)
    if text == "fp16":
        values = values.clamp(-60000.0, 60000.0)
    if spec.rotation:
        values = values.clamp(-1e33, 1e33)  # sums of a whole block, twice, must stay finite
    coded = encode(values, spec, seed=SEED)
    assert encode(values.to(DEVICE), spec, seed=SEED) == coded
    there, here = decode(coded, spec=spec, device=DEVICE), decode(coded, spec=spec)
    assert there.device == DEVICE
    assert torch.equal(bits(there), bits(here))
    out = torch.empty_like(values, device=DEVICE)
    assert decode(coded, out, spec=spec) is out
    assert torch.equal(bits(out), bits(here))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", EVERY)
def test_half_precision_and_other_layouts(text: str, dtype: torch.dtype) -> None:
    values, spec = normal(192, 70).to(dtype), CodecSpec.parse(text, 64)
    coded = encode(values.T, spec, seed=SEED)
    assert encode(values.to(DEVICE).T, spec, seed=SEED) == coded
    there = decode(coded, device=DEVICE)
    assert there.dtype == dtype
    assert torch.equal(bits(there), bits(decode(coded)))


@pytest.mark.parametrize("text", NAMES)
def test_what_is_not_finite_is_counted(text: str) -> None:
    values = normal(1000)
    values[[3, 500, 999]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    with pytest.raises(NonFiniteError, match=r"\b3 of"):
        encode(values.to(DEVICE), CodecSpec.parse(text, 64))


def test_error_feedback_keeps_the_same() -> None:
    spec = CodecSpec.parse("int4", 64)
    there, here = ErrorFeedback(spec), ErrorFeedback(spec)
    for turn in range(4):
        values = normal(20, 100, seed=turn)
        assert there.encode("one", values.to(DEVICE)) == here.encode("one", values)


@pytest.mark.parametrize("code", ["dynamic", "nf4"])
def test_codes_do_not_leave_their_device(code: str) -> None:
    values = normal(5000)
    found = engine.codes_of(code, values.to(DEVICE), 256)  # type: ignore[arg-type]
    for there, here in zip(found, engine.codes_of(code, values, 256), strict=True):  # type: ignore[arg-type]
        assert there.device == DEVICE
        assert torch.equal(there.cpu(), here)
