"""The engine: every instruction set of the native module gives the bytes of the torch reference."""

import doctest
import os
import random
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peer.errors import NonFiniteError
from swarm_peer.kernels import blockwise, engine

native = engine.native()
pytestmark = pytest.mark.skipif(native is None, reason="the native kernels were not built")
SETS = native.sets() if native is not None else []

HEADER, CHECKSUM_AT = b"head\0\0\0\0", 4
REFERENCE: dict[Any, Any] = {
    "linear": (blockwise.quantize_linear, blockwise.dequantize_linear),
    "dynamic": (blockwise.quantize_dynamic, blockwise.dequantize_dynamic),
    "nf4": (blockwise.quantize_nf4, blockwise.dequantize_nf4),
}
SCALES_AS: dict[Any, torch.dtype] = {"linear": torch.bfloat16, "dynamic": torch.float32, "nf4": torch.float32}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _best_set_afterwards() -> Iterator[None]:
    yield
    if native is not None:
        native.use(SETS[-1])


def by_reference(code: Any, values: torch.Tensor, block: int) -> tuple[bytes, torch.Tensor]:
    """The payload, and what it decodes to."""
    codes, scales = REFERENCE[code][0](values, block)
    decoded = REFERENCE[code][1](codes, scales, block)
    if code == "nf4":
        codes = blockwise.pack_nibbles(codes)
    return engine.to_bytes(scales) + engine.to_bytes(codes), decoded


def natively(code: Any, values: torch.Tensor, block: int, threads: int = 1) -> tuple[bytes, torch.Tensor]:
    """The same by the native module alone."""
    assert native is not None
    count = values.numel()
    codes = np.zeros(engine.code_bytes(code, count), np.uint8)
    scales = np.zeros(-(-count // block) * SCALES_AS[code].itemsize, np.uint8)
    assert native.quantize(code, values.numpy(), codes, scales, count, block, threads) == 0
    decoded = np.zeros(count, np.float32)
    assert native.dequantize(code, codes, scales, decoded, count, block, threads) == 0
    return scales.tobytes() + codes.tobytes(), torch.from_numpy(decoded)


def assert_equal_bytes(values: torch.Tensor, block: int, threads: int = 1) -> None:
    assert native is not None
    for code in REFERENCE:
        if code == "nf4" and block % 2:
            continue
        wanted, decoded = by_reference(code, values, block)
        for name in SETS:
            native.use(name)
            made, back = natively(code, values, block, threads)
            differing = sum(one != other for one, other in zip(made, wanted, strict=True))
            assert made == wanted, f"{code}, {name}: {differing} bytes differ"
            assert torch.equal(back.view(torch.int32), decoded.view(torch.int32)), f"{code}, {name}"


def drawn(kind: str, count: int) -> torch.Tensor:
    generator = np.random.default_rng(count)
    values: Any = {
        "normal": lambda: generator.standard_normal(count),
        "log-normal": lambda: generator.choice([-1.0, 1.0], count) * generator.lognormal(0.0, 3.0, count),
        "tiny": lambda: generator.standard_normal(count) * 1e-38,
        "denormal": lambda: generator.standard_normal(count) * 1e-42,
        "huge": lambda: generator.uniform(-3.4e38, 3.4e38, count),
        "zeros": lambda: np.where(generator.random(count) < 0.5, 0.0, -0.0),
        "sparse": lambda: np.where(generator.random(count) < 0.99, 0.0, generator.standard_normal(count)),
        "mixed": lambda: generator.standard_normal(count) * 10.0 ** generator.integers(-40, 38, count),
    }[kind]()
    return torch.from_numpy(np.clip(values, -3.4e38, 3.4e38).astype(np.float32))


@pytest.mark.parametrize("kind", ["normal", "log-normal", "tiny", "denormal", "huge", "zeros", "sparse", "mixed"])
@pytest.mark.parametrize("block", [64, 256, 4096])
def test_every_set_gives_the_bytes_of_the_reference(kind: str, block: int) -> None:
    assert_equal_bytes(drawn(kind, 100_003), block)


@settings(max_examples=200, deadline=None)
@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300),
    block=st.integers(1, 100),
    threads=st.integers(1, 3),
)
def test_any_finite_bits(bits: list[int], block: int, threads: int) -> None:
    values = torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32))
    assert_equal_bytes(torch.where(torch.isfinite(values), values, torch.ones_like(values)), block, threads)


def test_quotients_at_the_midpoints() -> None:
    """Values whose quotients lie at, just below and just above each midpoint of two levels, for many scales."""
    _, middles = blockwise._dynamic_tables(torch.device("cpu"))
    for largest in [1.0, 3.0, 0.1, 7.3e-12, 6.02e23, 1.1754944e-38]:
        near = (middles * largest).float()
        near = torch.cat([torch.nextafter(near, torch.zeros(())), near, torch.nextafter(near, torch.full((), 1e38))])
        assert_equal_bytes(torch.cat([near, -near, torch.tensor([largest])]).clamp(-largest, largest), 1000)


def test_no_two_midpoints_share_a_bucket_of_the_lookup() -> None:
    """The native dynamic code rests on it: numbers that share exponent and 6 bits of mantissa have one among them."""
    _, middles = blockwise._dynamic_tables(CPU)
    keys = (middles.float().view(torch.int32) >> 17).tolist()
    assert len(set(keys)) == len(keys) == 128


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(threads: int) -> None:
    assert_equal_bytes(drawn("log-normal", 1 << 20), 256, threads)


def test_many_callers_at_once() -> None:
    values = drawn("normal", 1 << 18)
    wanted = engine.pack("linear", HEADER, CHECKSUM_AT, values, 64)
    wrong: list[bytes] = []

    def call() -> None:
        for _ in range(20):
            made = engine.pack("linear", HEADER, CHECKSUM_AT, values, 64, threads=3)
            if made != wanted:
                wrong.append(made)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize("name", SETS)
def test_non_finite_elements_are_counted(name: str) -> None:
    assert native is not None
    native.use(name)
    values = drawn("normal", 1000)
    values[[3, 500, 999]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for code in REFERENCE:
        with pytest.raises(NonFiniteError, match=r"\b3 of "):
            engine.pack(code, HEADER, CHECKSUM_AT, values, 64)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("code", ["linear", "dynamic"])
def test_a_message_is_header_scales_and_codes_and_their_checksum(code: Any, name: str) -> None:
    assert native is not None
    native.use(name)
    values = drawn("normal", 1000)
    payload, _ = by_reference(code, values, 64)
    checksum = zlib.crc32(HEADER + payload).to_bytes(4, "little")
    made = engine.pack(code, HEADER, CHECKSUM_AT, values, 64)
    assert made == HEADER[:CHECKSUM_AT] + checksum + HEADER[CHECKSUM_AT + 4 :] + payload


def test_crc32_is_zlibs() -> None:
    draw = random.Random(0)
    for length in [0, 1, 15, 16, 63, 64, 65, 80, 127, 128, 129, 1000, 4096, 65537]:
        data = draw.randbytes(length)
        assert engine.crc32(data) == zlib.crc32(data)
        assert engine.crc32(data[7:], zlib.crc32(data[:7])) == zlib.crc32(data)
        assert engine.crc32(memoryview(data)[min(length, 3) :]) == zlib.crc32(data[3:])


def test_wrong_arguments_are_refused() -> None:
    assert native is not None
    values = np.zeros(64, np.float32)
    good: tuple[Any, ...] = ("linear", HEADER, CHECKSUM_AT, values, 64, 64, 1)
    assert len(native.pack(*good)) == len(HEADER) + 2 + 64
    for at, bad in [(0, "cubic"), (2, -1), (2, 5), (3, values[:63]), (4, 63), (4, -1), (5, 0), (6, 0)]:
        with pytest.raises(ValueError, match=r"no|wanted|must"):
            native.pack(*good[:at], bad, *good[at + 1 :])
    codes, scales = np.zeros(64, np.uint8), np.zeros(2, np.uint8)
    good = ("linear", codes, scales, values, 64, 64, 1)
    assert native.dequantize(*good) == 0
    for at, bad in [(0, "cubic"), (1, codes[:-1]), (2, scales[1:]), (3, values[1:]), (4, 65), (5, 32), (5, 0), (6, -2)]:
        with pytest.raises(ValueError, match=r"no|wanted|must"):
            native.dequantize(*good[:at], bad, *good[at + 1 :])
    with pytest.raises(ValueError, match="whole bytes"):
        native.dequantize("nf4", codes, scales, values, 64, 63, 1)
    with pytest.raises(ValueError, match="aligned"):
        native.dequantize("linear", codes, np.zeros(3, np.uint8)[1:], values, 64, 64, 1)
    values.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        native.dequantize(*good)
    with pytest.raises(ValueError, match="instruction set"):
        native.use("mmx")


def test_an_unaligned_payload_is_read() -> None:
    values = drawn("normal", 1000)
    payload, decoded = by_reference("dynamic", values, 64)
    shifted = memoryview(b"x" + payload)[1:]
    assert torch.equal(engine.dequantize("dynamic", shifted[: 4 * 16], shifted[4 * 16 :], 1000, 64, CPU), decoded)


def test_the_levels_of_nf4_are_quantiles_with_an_exact_zero() -> None:
    """As the paper makes them: of N(0, 1) from 1 - 0.9677083 on, 8 positive and 7 negative, over the largest."""
    offset = 0.9677083
    quantile = np.vectorize(NormalDist().inv_cdf)
    positive, negative = quantile(np.linspace(offset, 0.5, 9)[:-1]), -quantile(np.linspace(offset, 0.5, 8)[:-1])
    made = np.sort(np.concatenate([positive, negative, [0.0]])) / positive.max()
    assert np.abs(made - np.array(blockwise.NF4_LEVELS)).max() < 2e-6


def test_the_textbook_example_of_blockwise_scaling() -> None:
    failed, attempted = doctest.testmod(blockwise)
    assert (failed, attempted) == (0, 6)


@pytest.mark.parametrize(("choice", "printed"), [("torch", "torch"), ("plain", "native (plain)")])
def test_the_engine_can_be_chosen(choice: str, printed: str) -> None:
    code = "from swarm_peer.kernels import engine; print(engine.name())"
    environment = {**os.environ, engine.CHOICE: choice}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == printed


@pytest.mark.parametrize("name", SETS)
def test_absmax_is_that_of_each_block(name: str) -> None:
    assert native is not None
    native.use(name)
    values, block = drawn("mixed", 10_007), 256
    largest = np.zeros(-(-values.numel() // block), np.float32)
    native.absmax(values.numpy(), largest, values.numel(), block)
    assert largest.tolist() == [part.abs().max().item() for part in values.split(block)]
