"""Wire codecs: error bounds, exactness against brute force, fixed bytes, and what a receiver refuses."""

import hashlib
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peer.compression import CodecSpec, decode, encode, encoded_bytes
from swarm_peer.errors import CodecError, NonFiniteError
from swarm_peer.kernels.blockwise import dynamic_levels, quantize_dynamic

from tests.codec_messages import (
    EVERY,
    HEADER,
    NAMES,
    QUANTIZED,
    log_normal,
    normal,
    relative_error,
    round_trip,
    sealed,
    with_outliers,
    with_payload,
)


@pytest.mark.parametrize(
    ("text", "block", "bound"),
    [
        ("bf16", 256, 0.0017),
        ("int8", 256, 0.0071),
        ("dynamic8", 256, 0.0109),
        ("nf4", 64, 0.093),
        ("int4", 64, 0.109),
        ("int8+stochastic", 256, 0.0101),
    ],
)
def test_relative_error_on_normal_values(text: str, block: int, bound: float) -> None:
    values = normal(512, 1024)
    assert 0.5 * bound < relative_error(round_trip(values, text, block), values) <= bound


@pytest.mark.parametrize(
    ("text", "block", "bound"),
    [
        ("int8", 64, 0.011),
        ("dynamic8", 256, 0.0123),
        ("int8+columns", 256, 0.009),
        ("int4+rotation", 128, 0.110),
        ("int4+columns", 128, 0.110),
    ],
)
def test_relative_error_with_outlier_features(text: str, block: int, bound: float) -> None:
    values = with_outliers()
    assert 0.5 * bound < relative_error(round_trip(values, text, block), values) <= bound


def test_relative_error_of_the_dynamic_code_where_two_outlier_features_share_a_block() -> None:
    values = with_outliers(features=(100, 180, 1500, 3000))
    decoded = round_trip(values, "dynamic8", 256)
    assert 0.011 < relative_error(decoded, values) <= 0.012
    plain = values.abs().amax(dim=0) < 10  # the other features, by themselves
    assert 0.013 < relative_error(decoded[:, plain], values[:, plain]) <= 0.0135


@pytest.mark.parametrize(
    ("text", "block", "elements", "bits"),
    [
        ("int8", 256, 1 << 20, 8.13),
        ("int8", 256, 1 << 12, 8.4),
        ("dynamic8", 256, 1 << 20, 8.13),
        ("dynamic8", 256, 1 << 12, 8.4),
        ("nf4", 64, 1 << 20, 4.13),
        ("int4", 128, 1 << 20, 4.13),
    ],
)
def test_bits_an_element(text: str, block: int, elements: int, bits: float) -> None:
    spec = CodecSpec.parse(text, block)
    coded = encode(normal(elements), spec)
    assert len(coded) == encoded_bytes((elements,), spec)
    assert 8 * len(coded) / elements <= bits


def test_the_dynamic_code_keeps_small_values_beside_large_ones() -> None:
    values = log_normal(1 << 16)
    relative = {}
    for name in ("int8", "dynamic8"):
        back = round_trip(values, name)
        relative[name] = ((back - values).abs() / values.abs()).median().item()
    assert relative["dynamic8"] < 0.1 < 0.9 < relative["int8"]


def test_fp32_is_exact() -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 1.0, -3.4028235e38, 3.4028235e38])
    back = round_trip(values, "fp32")
    assert torch.equal(back.view(torch.int32), values.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", EVERY)
def test_half_precision_is_coded_as_the_fp32_it_stands_for(text: str, dtype: torch.dtype) -> None:
    values, spec = normal(7, 100).to(dtype), CodecSpec.parse(text, 64)
    coded, as_fp32 = encode(values, spec), encode(values.float(), spec)
    back = decode(coded)
    assert coded[HEADER:] == as_fp32[HEADER:]
    assert back.dtype == dtype
    assert torch.equal(back, decode(as_fp32).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", QUANTIZED)
def test_the_largest_of_half_precision_stays_finite(name: str, dtype: torch.dtype) -> None:
    """A scale that is rounded up would carry it beyond."""
    values = torch.full((64,), torch.finfo(dtype).max, dtype=dtype)
    assert torch.isfinite(round_trip(values, name, 64)).all()


def test_a_message_of_a_type_narrower_than_its_codec_stays_finite() -> None:
    """No encoder makes it, but a header may say so: the largest bfloat16s of a tensor that was float16."""
    coded = bytearray(encode(torch.tensor([3e38, -3e38, 1.0]), CodecSpec("bf16")))
    coded[5] = 1
    assert decode(sealed(coded)).tolist() == [65504.0, -65504.0, 1.0]


def test_what_a_half_cannot_hold_is_not_encoded_as_one() -> None:
    with pytest.raises(NonFiniteError, match=r"\b2 of 3"):
        encode(torch.tensor([1.0, 70000.0, -1e9]), CodecSpec("fp16"))


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


@pytest.mark.parametrize("text", [text for text in EVERY if "rotation" not in text])
def test_zero_survives_and_a_block_of_zeros_is_zero(text: str) -> None:
    values = torch.zeros(768)
    values[:256] = normal(256)
    values[5] = 0.0
    back = round_trip(values, text)
    assert back[5] == 0.0
    assert torch.equal(back[256:], torch.zeros(512))


def test_nothing_clips_in_int8() -> None:
    values = normal(1 << 16)
    largest = values.view(-1, 256).abs().amax(dim=1, keepdim=True)
    back = round_trip(values, "int8").view(-1, 256)
    # Half a step, a step being at most absmax / 127 and what rounding the scale up to bf16 adds.
    assert ((back - values.view(-1, 256)).abs() <= largest / 127 * (1 + 2**-7) * 0.5001).all()


@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (1,), (255,), (256,), (257,), (3, 5, 7), (2, 1, 300)])
def test_any_shape(text: str, shape: tuple[int, ...]) -> None:
    spec = CodecSpec.parse(text, 64)
    values = normal(*shape) if shape else torch.tensor(1.25)
    coded = encode(values, spec)
    if spec.columns or spec.entropy:
        assert len(coded) <= encoded_bytes(shape, spec)
    else:
        assert len(coded) == encoded_bytes(shape, spec)
    back = decode(memoryview(coded), spec=spec, shape=shape)
    assert (back.shape, back.dtype) == (values.shape, torch.float32)
    if values.numel():
        # Of the largest: a step at the top is below 1.5 % with 8 bits, 1 / 7 with 4; two of them if rounded at random.
        step = {"int8": 0.0151, "dynamic8": 0.0151, "nf4": 0.16, "int4": 0.3}.get(spec.name, 0.004)
        rotated = 8.0 if spec.rotation else 1.0  # an error is spread, the largest is the sum of a block at the most
        assert (back - values).abs().max() <= step * rotated * values.abs().max()
    out = torch.full(shape, 7.0)
    assert decode(coded, out) is out
    assert torch.equal(out, back)


@pytest.mark.parametrize("text", EVERY)
def test_layout_does_not_matter(text: str) -> None:
    spec, values = CodecSpec.parse(text, 64), normal(40, 60)
    assert encode(values.T, spec) == encode(values.T.contiguous(), spec)
    assert encode(values[::3, 1::2], spec) == encode(values[::3, 1::2].contiguous(), spec)
    assert encode(values[:1].expand(5, 60), spec) == encode(values[:1].repeat(5, 1), spec)


def test_a_ragged_tail_has_a_scale_of_its_own() -> None:
    values = torch.cat([normal(256) * 1000, normal(44)])
    back = round_trip(values, "int8")
    assert (back[256:] - values[256:]).abs().max() < 0.02


@pytest.mark.parametrize("text", EVERY)
def test_what_is_decoded_does_not_share_the_buffer(text: str) -> None:
    buffer = bytearray(encode(normal(300), CodecSpec.parse(text)))
    back = decode(memoryview(buffer))
    before = back.clone()
    buffer[:] = bytes(len(buffer))
    assert torch.equal(back, before)
    back += 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("text", EVERY)
def test_non_finite_values_are_not_encoded(text: str, bad: float) -> None:
    values = normal(1000)
    values[[3, 700, 999]] = bad
    with pytest.raises(NonFiniteError, match=r"\b3 of "):
        encode(values, CodecSpec.parse(text))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_non_finite_values_and_scales_are_not_decoded(name: str, bad: float) -> None:
    coded = encode(normal(100), CodecSpec.parse(name, 64))
    payload = bytearray(coded[HEADER + 4 :])
    first: dict[str, Any] = {
        "int8": torch.bfloat16,
        "int4": torch.bfloat16,
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
    }
    number = torch.tensor([bad], dtype=first.get(name, torch.float32)).view(torch.uint8).numpy().tobytes()
    payload[: len(number)] = number
    with pytest.raises(NonFiniteError):
        decode(with_payload(coded, 1, bytes(payload)))


@pytest.mark.parametrize("name", ["fp32", *QUANTIZED, "int8+columns+entropy"])
def test_the_largest_numbers_come_back_finite(name: str) -> None:
    """What may be sent may be received: no finite tensor may be coded into bytes that every receiver refuses."""
    largest = torch.finfo(torch.float32).max
    for absmax in np.linspace(largest / 2, largest, 257, dtype=np.float64).astype(np.float32).tolist():
        values = torch.tensor([absmax, -absmax, absmax / 3])
        assert torch.isfinite(round_trip(values, name, 64)).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float64])
def test_only_floating_point_is_encoded(dtype: torch.dtype) -> None:
    with pytest.raises(CodecError, match=str(dtype)):
        encode(torch.zeros(3, dtype=dtype), CodecSpec("fp32"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1,) * 9, (0,) * 300, (0, 1 << 32), (-1,), (-2, -3)])
def test_shapes_that_no_header_holds(name: Any, shape: tuple[int, ...]) -> None:
    spec = CodecSpec(name)
    with pytest.raises(CodecError, match="up to 8 sizes"):
        encoded_bytes(shape, spec)
    if min(shape) >= 0 and len(shape) < 64:  # torch itself stops at 64 dimensions
        with pytest.raises(CodecError, match="up to 8 sizes"):
            encode(torch.empty(shape), spec)


@pytest.mark.parametrize("sent", EVERY)
@pytest.mark.parametrize("expected", EVERY)
def test_the_receivers_codec_counts(sent: str, expected: str) -> None:
    coded = encode(normal(512), CodecSpec.parse(sent, 64))
    if sent == expected:
        decode(coded, spec=CodecSpec.parse(expected, 64), shape=(512,), dtype=torch.float32)
    else:
        with pytest.raises(CodecError, match="codec is"):
            decode(coded, spec=CodecSpec.parse(expected, 64), shape=(512,))


@pytest.mark.parametrize("shape", [(16, 32), (511,), (513,), (1, 512), (32, 16, 1)])
def test_another_shape_block_or_type_than_the_expected_is_refused(shape: tuple[int, ...]) -> None:
    coded = encode(normal(512), CodecSpec("int8"))
    with pytest.raises(CodecError, match="shape is"):
        decode(coded, shape=shape)
    with pytest.raises(CodecError, match="shape is"):
        decode(coded, torch.empty(shape))
    with pytest.raises(CodecError, match="codec is"):
        decode(coded, spec=CodecSpec("int8", 128))
    with pytest.raises(CodecError, match="element type is"):
        decode(coded, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("text", EVERY)
def test_into_any_tensor_of_the_shape(text: str, dtype: torch.dtype) -> None:
    coded = encode(normal(30, 64), CodecSpec.parse(text, 64))
    out = torch.empty(64, 30, dtype=dtype).T  # not contiguous
    decode(coded, out)
    assert torch.equal(out, decode(coded).to(dtype))


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, b"S", "magic is b'SQT'"),
        (3, 2, "format version is 2"),
        (4, 7, "codec id is 7"),
        (4, 3, "scale type is 1; fp16 has 0"),
        (4, 6, "payload length is"),
        (5, 3, "element type is 3"),
        (6, 9, "number of dimensions is 9"),
        (6, 3, "are accepted"),
        (7, 2, "scale type is 2"),
        (8, 1 << 4, "bits are set"),
        (9, 1, "bits are set"),
        (10, 1, "bits are set"),
        (12, 0, "block is 0"),
        (15, 255, "block is"),
        (16, 1, "seed is 1"),
        (20, 1, "payload length is"),
        (28, 1, "checksum"),
        (32, 7, "payload length is 156"),
        (35, 255, "are accepted"),
        (-1, 99, "checksum"),
    ],
)
def test_the_error_names_the_field_that_is_wrong(at: int, value: Any, why: str) -> None:
    coded = bytearray(encode(normal(3, 50), CodecSpec("int8", 64)))
    assert len(coded) == HEADER + 8 + 3 * 2 + 150
    if at == 0:
        coded[1:2] = b"Q"
    else:
        coded[at] = value
    with pytest.raises(CodecError, match=why):
        decode(bytes(coded))


@pytest.mark.parametrize("text", EVERY)
def test_more_elements_than_are_accepted_allocate_nothing(text: str) -> None:
    coded = bytearray(encode(normal(16), CodecSpec.parse(text, 64)))
    decode(coded, max_elements=16)
    with pytest.raises(CodecError, match="at most 15"):
        decode(coded, max_elements=15)
    coded[HEADER : HEADER + 4] = struct.pack("<I", (1 << 32) - 1)
    with pytest.raises(CodecError, match="are accepted"):
        decode(sealed(coded))
    with pytest.raises(CodecError, match="payload length"):
        decode(sealed(coded), max_elements=1 << 40)


def test_an_empty_shape_of_sizes_beyond_the_limit_is_refused() -> None:
    coded = bytearray(encode(torch.zeros(0, 3, 5), CodecSpec("int8")))
    assert decode(coded).shape == (0, 3, 5)
    coded[HEADER + 4 : HEADER + 12] = b"\xff" * 8
    with pytest.raises(CodecError, match="are accepted"):
        decode(sealed(coded))


@settings(max_examples=300, deadline=None)
@given(text=st.sampled_from(EVERY), data=st.data())
def test_mutated_bytes_raise_codec_errors_only(text: str, data: st.DataObject) -> None:
    spec, shape = CodecSpec.parse(text, 64), (3, 50)
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
            decode(bytes(coded))


@settings(max_examples=300, deadline=None)
@given(text=st.sampled_from(EVERY), data=st.data())
def test_a_lying_payload_with_the_right_checksum_is_finite_or_refused(text: str, data: st.DataObject) -> None:
    coded = encode(normal(100), CodecSpec.parse(text, 64))
    size = len(coded) - HEADER - 4
    start = data.draw(st.integers(0, size - 1))
    payload = bytearray(coded[-size:])
    piece = data.draw(st.binary(min_size=1, max_size=64))[: size - start]
    payload[start : start + len(piece)] = piece
    try:
        back = decode(with_payload(coded, 1, bytes(payload)))
    except CodecError:
        return
    assert torch.isfinite(back).all()


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(QUANTIZED),
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=200),
    block=st.integers(1, 150),
)
def test_any_finite_values_come_back_near(name: str, values: list[float], block: int) -> None:
    block *= 2
    tensor = torch.tensor(values, dtype=torch.float32)
    back = round_trip(tensor, name, block).double()
    step = {"int8": 0.0151, "dynamic8": 0.0151, "nf4": 0.16, "int4": 0.15}[name]
    # nf4's scales have scales themselves: what is a millionth of the largest block's may round to nothing.
    beside = 1e-6 * tensor.abs().max().double() if name == "nf4" and values else 0.0
    for first in range(0, len(values), block):
        part, came = tensor[first : first + block].double(), back[first : first + block]
        # A bf16 scale of denormal size has few bits left, and cannot be smaller than 2^-133.
        assert ((part - came).abs() <= step * part.abs().max() + beside + 2.0**-133 * 8).all()


@pytest.mark.parametrize("text", EVERY)
def test_bytes_do_not_depend_on_the_number_of_threads(text: str) -> None:
    spec, values, threads = CodecSpec.parse(text), normal(300, 1000), torch.get_num_threads()
    digests = set()
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            coded = encode(values, spec, threads=count)
            back = decode(coded, threads=count)
            digests.add(hashlib.sha256(coded + back.numpy().tobytes()).hexdigest())
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("text", EVERY)
def test_a_gpu_makes_the_same_bytes(text: str) -> None:
    # Blocks of 2: half as many scales as elements. 127 does not divide by its reciprocal in 3 of 20 million.
    spec = CodecSpec.parse(text, 2)
    values = torch.cat([normal(1 << 22), denormals(), midpoints()]) if text != "fp16" else normal(1 << 22)
    coded = encode(values, spec)
    assert encode(values.cuda(), spec) == coded
    assert torch.equal(decode(coded, device="cuda").cpu(), decode(coded))


GOLDEN = {
    "fp32": "ff7e75ce1fc3b16e36fccdb2036099c63a6704e78516cef78fc5840a35fca4f1",
    "fp16": "fdc87956848b13fa7075d38ad9dcc79d8ee0e9419889adf032d9e86516d536b2",
    "bf16": "aa2e778c51ded4b6819f6d0598531514dd47a162c11559cbd7d506a2bb2c09b1",
    "int8": "1320c6b5f16253c984fe15bd71dac983fa4b41b7f65cacbc208a883bcccfb9c9",
    "dynamic8": "a1321c2db63ca31e5d9950429882b763e4e00c3fc55d9b33070d08528064e05a",
    "nf4": "d5ade6dd2dafddd53b53f6edcd622eea4dc94ba6cfc7636c482ddb14c04e9098",
    "int4": "4b4228366f22855074f84db032b49f034d4a08450f5ea460a0e5255724236a06",
    "int8+columns": "4f640b32942a9c3e046d63622009ebb2dc3bff70bbde60dd3fdfd70b8ddcbda5",
    "int8+rotation": "a32fa3718bb82a48ab9ddbd1c300c988211731d4ee92255b908366456d1a5a20",
    "int8+stochastic": "0b1908b6d4bcb6012de76079799e32b93455dabec002d0ea617cab4cf01b1a44",
}


@pytest.mark.parametrize("text", [text for text in EVERY if "entropy" not in text])
def test_the_bytes_of_a_fixed_tensor_never_change(text: str) -> None:
    """A change here is a change of the wire format or of the code's meaning: raise `FORMAT_VERSION`."""
    words = np.random.Philox(key=np.array([7, 11], dtype=np.uint64)).random_raw(5000)
    uniform = (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    values = torch.from_numpy(uniform * uniform * uniform)  # products of fp32 numbers: the same bits everywhere
    values.view(5, 1000)[:, 77] *= 64
    coded = encode(values.view(5, 1000), CodecSpec.parse(text, 256))
    assert hashlib.sha256(coded).hexdigest() == GOLDEN[text]
