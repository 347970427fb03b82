"""Options of codecs: outlier columns, entropy coding, rounding at random, rotation; and error feedback."""

import math
import struct

import numpy as np
import pytest
import torch
import zstandard
from swarm_peer.compression import CodecSpec, ErrorFeedback, decode, encode
from swarm_peer.compression.columns import SHARE
from swarm_peer.errors import CodecError, NonFiniteError
from swarm_peer.kernels import rotation

from tests.codec_messages import EVERY, HEADER, normal, relative_error, round_trip, with_outliers, with_payload


@pytest.mark.parametrize(
    ("text", "block", "why"),
    [
        ("int3", 256, "unknown"),
        ("", 256, "unknown"),
        ("int8", 0, "block is 0"),
        ("dynamic8", -64, "block is -64"),
        ("int8", 1 << 30, "block is"),
        ("nf4", 65, "even"),
        ("int4+rotation", 96, "power of two"),
        ("dynamic8+rotation", 256, "int8 and int4"),
        ("nf4+stochastic", 64, "int8 and int4"),
        ("fp16+entropy", 256, "quantized"),
        ("int8+rows", 256, "options are"),
        ("int8+columns+columns", 256, "each once"),
    ],
)
def test_a_spec_that_makes_no_sense(text: str, block: int, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        CodecSpec.parse(text, block)


@pytest.mark.parametrize("text", EVERY)
def test_a_spec_is_what_its_text_says(text: str) -> None:
    spec = CodecSpec.parse(text, 64)
    assert str(spec) == text
    assert all(getattr(spec, option) for option in text.split("+")[1:])


def test_only_columns_that_stand_out_are_split_off() -> None:
    plain, spec = normal(64, 256), CodecSpec.parse("int8+columns")
    assert len(encode(plain, spec)) == len(encode(plain, CodecSpec("int8"))) + 4
    outlying = plain.clone()
    outlying[:, [3, 200]] *= 50
    section = encode(outlying, spec)[-(4 + 2 * (4 + 2 * 64)) :]
    assert struct.unpack_from("<3I", section) == (2, 3, 200)
    back = round_trip(outlying, "int8+columns")
    assert torch.equal(back[:, [3, 200]], outlying[:, [3, 200]].to(torch.bfloat16).float())
    many = plain.clone()
    many[0, :100] = torch.linspace(50, 150, 100)
    section = encode(many, spec)[-(4 + 256 // SHARE * (4 + 2 * 64)) :]
    assert struct.unpack_from(f"<{1 + 256 // SHARE}I", section) == (16, *range(84, 100)), "those that stand out most"


@pytest.mark.parametrize(
    "section",
    [
        b"",
        b"\1\0\0",
        struct.pack("<I", 17),
        struct.pack("<II", 1, 256) + bytes(8),
        struct.pack("<III", 2, 5, 5) + bytes(16),
    ],
)
def test_columns_that_cannot_be_are_refused(section: bytes) -> None:
    spec = CodecSpec.parse("int8+columns")
    coded = encode(normal(4, 256), spec)
    with pytest.raises(CodecError, match=r"columns|payload"):
        decode(with_payload(coded, 2, coded[HEADER + 8 : -4] + section))


def test_entropy_coding_pays_where_codes_differ_in_frequency() -> None:
    values = torch.cat([normal(1 << 16), torch.zeros(1 << 16)])
    with_it, without = (encode(values, CodecSpec.parse(text)) for text in ("int8+entropy", "int8"))
    assert len(with_it) < 0.8 * len(without)
    assert torch.equal(decode(with_it), decode(without))
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, 1 << 16).astype(np.float32))
    assert len(encode(noise, CodecSpec.parse("int8+entropy"))) <= len(encode(noise, CodecSpec("int8"))) + 4


@pytest.mark.parametrize("told", [True, False], ids=["size told", "size not told"])
@pytest.mark.parametrize("plain", [0, 63, 65, 1 << 24, 1 << 33])
def test_a_coded_section_that_is_not_what_is_due_is_refused(plain: int, told: bool) -> None:
    coder = zstandard.ZstdCompressor(write_content_size=told)
    bomb = coder.compress(bytes(min(plain, 1 << 24)))
    if plain > 1 << 24:
        if not told:
            pytest.skip("a frame that does not tell its size cannot lie about it")
        bomb = bytearray(bomb)
        bomb[4] |= 0xC0  # the size takes eight bytes
        bomb[5:9] = plain.to_bytes(8, "little")
    coded = encode(normal(64), CodecSpec.parse("int8+entropy", 64))
    for section in (bomb, bomb + b"\0", bomb + bomb):
        payload = coded[HEADER + 4 : HEADER + 6] + struct.pack("<I", len(section)) + section
        with pytest.raises(CodecError, match=r"not the 64 bytes|cannot be read|payload length"):
            decode(with_payload(coded, 1, bytes(payload)))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_rounding_at_random_is_right_on_average_and_the_seeds(name: str) -> None:
    values = torch.full((1 << 16,), 0.3)
    values[::64] = 1.0
    spec = CodecSpec.parse(f"{name}+stochastic", 64)
    one, same, other = (encode(values, spec, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    rounded = decode(one)[values == 0.3]
    assert len(rounded.unique()) == 2
    step = (rounded.max() - rounded.min()).item()
    assert rounded.double().mean().item() == pytest.approx(0.3, abs=4 * step / 2 / math.sqrt(len(rounded)))
    nearest = round_trip(values, name, 64)[values == 0.3]
    assert abs(nearest.double().mean().item() - 0.3) > 4 * step / 2 / math.sqrt(len(rounded))


def test_a_rotation_is_undone_with_the_seed_in_the_message() -> None:
    values, spec = with_outliers(64, 512), CodecSpec.parse("int8+rotation", 128)
    coded = {encode(values, spec, seed=seed) for seed in (0, 1, (1 << 32) - 1)}
    assert len(coded) == 3
    for message in coded:
        assert relative_error(decode(message), values) < 0.012
    for seed in (-1, 1 << 32):
        with pytest.raises(CodecError, match="seed"):
            encode(values, spec, seed=seed)


def test_error_feedback_loses_nothing_for_good() -> None:
    feedback, spec = ErrorFeedback(CodecSpec("int4", 64)), CodecSpec("int4", 64)
    values = [normal(1000, seed=seed) for seed in range(20)]
    wanted = torch.stack(values).sum(0)
    came = torch.stack([decode(feedback.encode("w", value)) for value in values]).sum(0)
    plain = torch.stack([decode(encode(value, spec)) for value in values]).sum(0)
    assert relative_error(came, wanted) < 0.4 * relative_error(plain, wanted)
    feedback.encode("other", values[0])
    feedback.forget("w")
    assert feedback.encode("w", values[0]) == encode(values[0], spec)
    with pytest.raises(NonFiniteError):
        feedback.encode("w", torch.full((1000,), torch.nan))
    assert torch.isfinite(decode(feedback.encode("w", values[1]))).all()


@pytest.mark.parametrize("name", ["int8+rotation", "int4+rotation"])
def test_what_a_rotation_cannot_hold_is_refused_by_who_encodes(name: str) -> None:
    spec = CodecSpec.parse(name, 256)
    most = rotation.largest(256)
    fits = torch.full((512,), most)
    assert torch.isfinite(decode(encode(fits, spec))).all()
    with pytest.raises(CodecError, match="rotated blocks of 256"):
        encode(2 * fits, spec)
    assert decode(encode(torch.zeros(0), spec)).numel() == 0
