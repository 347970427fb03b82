"""Wire codecs: error bounds, exactness against brute force, fixed bytes, and what a receiver refuses."""

import hashlib
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peer.compression import CodecSpec, decode, encode, encoded_bytes
from swarm_peer.compression import codec as module
from swarm_peer.errors import CodecError, NonFiniteError
from swarm_peer.kernels.blockwise import dynamic_levels, quantize_dynamic

NAMES: tuple[Any, ...] = ("fp32", "int8", "dynamic8")
HEADER = 24
"""Bytes before the dimensions."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def log_normal(*shape: int) -> torch.Tensor:
    generator = np.random.default_rng(1)
    signs = generator.choice([-1.0, 1.0], shape)
    return torch.from_numpy((signs * generator.lognormal(0.0, 3.0, shape)).astype(np.float32))


def round_trip(tensor: torch.Tensor, spec: CodecSpec) -> torch.Tensor:
    return decode(encode(tensor, spec), spec, shape=tuple(tensor.shape))


def reseal(coded: bytes, shape: tuple[int, ...], spec: CodecSpec, payload: bytes) -> bytes:
    """`coded` with another payload of the same length, and the checksum that belongs to it."""
    assert len(coded) == HEADER + 4 * len(shape) + len(payload)
    return module._header(shape, spec, zlib.crc32(payload)) + payload


@pytest.mark.parametrize(("name", "bound"), [("int8", 0.0071), ("dynamic8", 0.0109)])
def test_relative_error_on_normal_values(name: Any, bound: float) -> None:
    values = normal(512, 1024)
    error = round_trip(values, CodecSpec(name, 256)) - values
    relative = (error.norm() / values.norm()).item()
    assert 0.5 * bound < relative <= bound


def test_the_dynamic_code_keeps_small_values_beside_large_ones() -> None:
    values = log_normal(1 << 16)
    relative = {}
    for name in NAMES[1:]:
        back = round_trip(values, CodecSpec(name, 256))
        relative[name] = ((back - values).abs() / values.abs()).median().item()
    assert relative["dynamic8"] < 0.1 < 0.9 < relative["int8"]


def test_fp32_is_exact() -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 1.0, -3.4028235e38, 3.4028235e38])
    back = round_trip(values, CodecSpec("fp32"))
    assert torch.equal(back.view(torch.int32), values.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_coded_as_the_fp32_it_stands_for(name: Any, dtype: torch.dtype) -> None:
    values = normal(700).to(dtype)
    assert encode(values, CodecSpec(name)) == encode(values.float(), CodecSpec(name))


def brute_force_codes(values: torch.Tensor, block: int) -> np.ndarray:
    """Nearest levels by comparing with all 256 in float64; on a tie, the level of smaller magnitude."""
    levels = np.array(dynamic_levels(), dtype=np.float32).astype(np.float64)
    by_magnitude = np.argsort(np.abs(levels), kind="stable")
    codes = []
    for first in range(0, len(values), block):
        part = values[first : first + block].numpy()
        absmax = np.abs(part).max()
        scaled = part.astype(np.float64) / np.float64(absmax or 1)
        # argmin takes the first of equals, and the levels stand in order of magnitude.
        codes.append(by_magnitude[np.abs(scaled[:, None] - levels[by_magnitude]).argmin(axis=1)])
    return np.concatenate(codes)


def denormals() -> torch.Tensor:
    bits = np.random.default_rng(2).integers(0, 1 << 23, 4096, dtype=np.int32)
    bits[::2] |= np.int32(-(2**31))
    return torch.from_numpy(bits.view(np.float32))


def midpoints() -> torch.Tensor:
    """Blocks of absmax 1 that hold the values nearest to every midpoint of two levels, both neighbours included."""
    levels = np.array(dynamic_levels(), dtype=np.float32).astype(np.float64)
    middles = ((levels[:-1] + levels[1:]) / 2).astype(np.float32)
    near = [np.nextafter(middles, np.float32(-2)), middles, np.nextafter(middles, np.float32(2))]
    return torch.from_numpy(np.concatenate([np.append(part, np.float32(1)) for part in near]))


@pytest.mark.parametrize(
    "values",
    [normal(1 << 15), log_normal(1 << 15), denormals(), torch.zeros(512), midpoints(), normal(1000) * 1e-38],
    ids=["normal", "log-normal", "denormals", "zeros", "midpoints", "small"],
)
def test_dynamic_codes_are_the_nearest_levels(values: torch.Tensor) -> None:
    codes, _ = quantize_dynamic(values, 256)
    assert int((codes.numpy() != brute_force_codes(values, 256)).sum()) == 0


def test_the_dynamic_map_is_the_published_one() -> None:
    levels = dynamic_levels()
    assert len(levels) == len(set(levels)) == 256
    assert levels == sorted(levels)
    assert (levels[127], levels[255]) == (0.0, 1.0)
    assert [-level for level in levels[:127]] == levels[254:127:-1]
    decades = [sum(10.0 ** (power - 1) < level < 10.0**power for level in levels) for power in range(-6, 1)]
    assert decades == [1, 2, 4, 8, 16, 32, 64]
    assert levels[128] == pytest.approx(5.5e-7)
    assert levels[254] == pytest.approx(1 - 0.9 / 128)


@pytest.mark.parametrize("name", NAMES[1:])
def test_zero_survives_and_a_block_of_zeros_is_zero(name: Any) -> None:
    values = torch.zeros(768)
    values[:256] = normal(256)
    values[5] = 0.0
    back = round_trip(values, CodecSpec(name, 256))
    assert back[5] == 0.0
    assert torch.equal(back[256:], torch.zeros(512))


def test_nothing_clips_in_int8() -> None:
    values = normal(1 << 16)
    largest = values.view(-1, 256).abs().amax(dim=1, keepdim=True)
    back = round_trip(values, CodecSpec("int8", 256)).view(-1, 256)
    # Half a step, a step being at most absmax / 127 and what rounding the scale up to bf16 adds.
    assert ((back - values.view(-1, 256)).abs() <= largest / 127 * (1 + 2**-7) * 0.5001).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (1,), (255,), (256,), (257,), (3, 5, 7), (2, 1, 300)])
def test_any_shape(name: Any, shape: tuple[int, ...]) -> None:
    spec = CodecSpec(name, 64)
    values = normal(*shape) if shape else torch.tensor(1.25)
    coded = encode(values, spec)
    assert len(coded) == encoded_bytes(shape, spec)
    back = decode(memoryview(coded), spec, shape=shape)
    assert (back.shape, back.dtype) == (values.shape, torch.float32)
    # 5 % of the largest: either code's widest step at the top of its range is below 1.5 %.
    if values.numel():
        assert (back - values).abs().max() <= 0.05 * values.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_layout_does_not_matter(name: Any) -> None:
    spec, values = CodecSpec(name, 64), normal(40, 60)
    assert encode(values.T, spec) == encode(values.T.contiguous(), spec)
    assert encode(values[::3, 1::2], spec) == encode(values[::3, 1::2].contiguous(), spec)
    assert encode(values[:1].expand(5, 60), spec) == encode(values[:1].repeat(5, 1), spec)


def test_a_ragged_tail_has_a_scale_of_its_own() -> None:
    values = torch.cat([normal(256) * 1000, normal(44)])
    back = round_trip(values, CodecSpec("int8", 256))
    assert (back[256:] - values[256:]).abs().max() < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_what_is_decoded_does_not_share_the_buffer(name: Any) -> None:
    spec, values = CodecSpec(name), normal(300)
    buffer = bytearray(encode(values, spec))
    back = decode(memoryview(buffer), spec, shape=(300,))
    before = back.clone()
    buffer[:] = bytes(len(buffer))
    assert torch.equal(back, before)
    back += 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_non_finite_values_are_not_encoded(name: Any, bad: float) -> None:
    values = normal(1000)
    values[[3, 700, 999]] = bad
    with pytest.raises(NonFiniteError, match=r"\b3 of "):
        encode(values, CodecSpec(name))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_non_finite_values_and_scales_are_not_decoded(name: Any, bad: float) -> None:
    spec, shape = CodecSpec(name, 64), (100,)
    coded = encode(normal(100), spec)
    payload = bytearray(coded[HEADER + 4 :])
    if name == "int8":
        payload[0:2] = torch.tensor([bad], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    else:
        payload[0:4] = np.float32(bad).tobytes()
    with pytest.raises(NonFiniteError):
        decode(reseal(coded, shape, spec, bytes(payload)), spec, shape=shape)


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_numbers_come_back_finite(name: Any) -> None:
    """What may be sent may be received: no finite tensor may be coded into bytes that every receiver refuses."""
    largest = torch.finfo(torch.float32).max
    for absmax in np.linspace(largest / 2, largest, 257, dtype=np.float64).astype(np.float32).tolist():
        values = torch.tensor([absmax, -absmax, absmax / 3])
        assert torch.isfinite(round_trip(values, CodecSpec(name, 64))).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_only_floating_point_is_encoded(dtype: torch.dtype) -> None:
    with pytest.raises(CodecError, match=str(dtype)):
        encode(torch.zeros(3, dtype=dtype), CodecSpec("fp32"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1,) * 9, (0,) * 300, (0, 1 << 32), (-1,), (-2, -3)])
def test_shapes_that_no_header_holds(name: Any, shape: tuple[int, ...]) -> None:
    spec = CodecSpec(name)
    with pytest.raises(CodecError, match="up to 8 sizes"):
        encoded_bytes(shape, spec)
    with pytest.raises(CodecError, match="up to 8 sizes"):
        decode(bytes(32), spec, shape=shape)
    if min(shape) >= 0 and len(shape) < 64:  # torch itself stops at 64 dimensions
        with pytest.raises(CodecError, match="up to 8 sizes"):
            encode(torch.empty(shape), spec)


@pytest.mark.parametrize(
    ("name", "block"), [("int4", 256), ("", 256), ("int8", 0), ("dynamic8", -64), ("int8", 1 << 30)]
)
def test_a_spec_that_makes_no_sense(name: Any, block: int) -> None:
    with pytest.raises(CodecError):
        CodecSpec(name, block)


@pytest.mark.parametrize("sent", NAMES)
@pytest.mark.parametrize("expected", NAMES)
def test_the_receivers_codec_counts(sent: Any, expected: Any) -> None:
    coded = encode(normal(512), CodecSpec(sent, 64))
    if sent == expected:
        decode(coded, CodecSpec(expected, 64), shape=(512,))
    else:
        with pytest.raises(CodecError, match=expected):
            decode(coded, CodecSpec(expected, 64), shape=(512,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(16, 32), (511,), (513,), (1, 512), (32, 16, 1)])
def test_another_shape_is_refused(name: Any, shape: tuple[int, ...]) -> None:
    coded = encode(normal(512), CodecSpec(name))
    with pytest.raises(CodecError):
        decode(coded, CodecSpec(name), shape=shape)


@pytest.mark.parametrize(
    ("at", "field"),
    [
        (0, "magic is b'RPT'; expected b'SPT'"),
        (3, "format version is 3; expected 2"),
        (4, "codec id is 0; expected 1"),
        (5, "number of dimensions is 3; expected 2"),
        (6, "padding"),
        (8, "block is 65; expected 64"),
        (12, "payload length is 157; expected 156"),
        (20, "payload crc32"),
        (24, r"shape is \(2, 50\); expected int8 of shape \(3, 50\)"),
        (32, "payload crc32"),
        (-1, "payload crc32"),
    ],
)
def test_the_error_names_the_field_that_differs(at: int, field: str) -> None:
    spec = CodecSpec("int8", 64)
    coded = bytearray(encode(normal(3, 50), spec))
    coded[at] ^= 1
    with pytest.raises(CodecError, match=field):
        decode(bytes(coded), spec, shape=(3, 50))


def test_another_block_is_refused() -> None:
    """Equal in length: 100 elements are one block of 128 and one of 256."""
    coded = encode(normal(100), CodecSpec("int8", 128))
    assert len(coded) == encoded_bytes((100,), CodecSpec("int8", 256))
    with pytest.raises(CodecError):
        decode(coded, CodecSpec("int8", 256), shape=(100,))


def test_a_huge_expected_shape_allocates_nothing() -> None:
    for shape in [(1 << 40,), (1 << 20, 1 << 20, 1 << 20)]:
        with pytest.raises(CodecError):
            decode(encode(normal(16), CodecSpec("int8")), CodecSpec("int8"), shape=shape)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_mutated_bytes_raise_codec_errors_only(name: Any, data: st.DataObject) -> None:
    spec, shape = CodecSpec(name, 64), (3, 50)
    coded = bytearray(encode(normal(*shape), spec))
    original = bytes(coded)
    match data.draw(st.sampled_from(["flip", "cut", "grow", "replace", "noise"])):
        case "flip":
            for _ in range(data.draw(st.integers(1, 4))):
                coded[data.draw(st.integers(0, len(coded) - 1))] ^= data.draw(st.integers(1, 255))
        case "cut":
            del coded[data.draw(st.integers(0, len(coded) - 1)) :]
        case "grow":
            coded += data.draw(st.binary(min_size=1, max_size=40))
        case "replace":
            at = data.draw(st.integers(0, len(coded)))
            piece = data.draw(st.binary(max_size=32))
            coded[at : at + len(piece)] = piece
        case _:
            coded[:] = data.draw(st.binary(max_size=400))
    if bytes(coded) != original:
        with pytest.raises(CodecError):
            decode(bytes(coded), spec, shape=shape)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_a_lying_payload_with_the_right_checksum_is_finite_or_refused(name: Any, data: st.DataObject) -> None:
    spec, shape = CodecSpec(name, 64), (100,)
    coded = encode(normal(100), spec)
    size = len(coded) - HEADER - 4
    start = data.draw(st.integers(0, size - 1))
    payload = bytearray(coded[-size:])
    piece = data.draw(st.binary(min_size=1, max_size=64))[: size - start]
    payload[start : start + len(piece)] = piece
    try:
        back = decode(reseal(coded, shape, spec, bytes(payload)), spec, shape=shape)
    except CodecError:
        return
    assert torch.isfinite(back).all()


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=200),
    block=st.integers(1, 300),
)
def test_any_finite_values_come_back_near(name: Any, values: list[float], block: int) -> None:
    spec, tensor = CodecSpec(name, block), torch.tensor(values, dtype=torch.float32)
    back = round_trip(tensor, spec).double()
    for first in range(0, len(values), block):
        part, came = tensor[first : first + block].double(), back[first : first + block]
        # A bf16 scale of denormal size has few bits left, and cannot be smaller than 2^-133.
        assert ((part - came).abs() <= 0.0151 * part.abs().max() + 2.0**-133).all()


@pytest.mark.parametrize("name", NAMES)
def test_bytes_do_not_depend_on_the_number_of_threads(name: Any) -> None:
    spec, values, threads = CodecSpec(name), normal(300, 1000), torch.get_num_threads()
    digests = set()
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            coded = encode(values, spec)
            back = decode(coded, spec, shape=(300, 1000))
            digests.add(hashlib.sha256(coded + back.numpy().tobytes()).hexdigest())
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_makes_the_same_bytes(name: Any) -> None:
    # Blocks of 1: as many scales as elements. 127 does not divide by its reciprocal in 3 of 20 million.
    spec, values = CodecSpec(name, 1), torch.cat([normal(1 << 22), denormals(), midpoints()])
    coded = encode(values, spec)
    assert encode(values.cuda(), spec) == coded
    shape = tuple(values.shape)
    assert torch.equal(decode(coded, spec, shape=shape, device="cuda").cpu(), decode(coded, spec, shape=shape))


GOLDEN = {
    "fp32": "f89feea5a9745fe2548143901392f1ea6ae69b4ba7d3cd951c30faa3bf4857bf",
    "int8": "6d04f33cd3e845e72ea59341d6357af2211dded6a58075c02e2407b766188001",
    "dynamic8": "6e1ba177c0125de08666364154f23bfcf02e4d3fd15f580c12285d96f8a75f27",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_a_fixed_tensor_never_change(name: Any) -> None:
    """A change here is a change of the wire format or of the code's meaning: raise `FORMAT_VERSION`."""
    words = np.random.Philox(key=np.array([7, 11], dtype=np.uint64)).random_raw(5000)
    uniform = (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    values = torch.from_numpy(uniform * uniform * uniform)  # products of fp32 numbers: the same bits everywhere
    coded = encode(values.view(5, 1000), CodecSpec(name, 256))
    assert hashlib.sha256(coded).hexdigest() == GOLDEN[name]
