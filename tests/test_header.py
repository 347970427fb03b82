"""Headers of safetensors files: read as the library writes them, and refused where they would point elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from swarm_peer.errors import ModelError
from swarm_peer.swarm.model.header import HEADER_LIMIT, LENGTH_BYTES, header_length, parse_header

GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def parsed(table: Any, size: int = 32) -> dict[str, Any]:
    content = table if isinstance(table, bytes) else json.dumps(table).encode()
    return dict(parse_header(content, LENGTH_BYTES + len(content) + size, "x.safetensors"))


def test_a_header_as_the_library_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"one": torch.arange(6).reshape(2, 3).half(), "other": torch.ones(5, dtype=torch.int8)}
    save_file(tensors, path, metadata={"format": "pt"})
    content = path.read_bytes()
    length = header_length(content[:8], len(content), "x")
    entries = parse_header(content[8 : 8 + length], len(content), "x")
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        "one": ("F16", (2, 3)),
        "other": ("I8", (5,)),
    }
    one = content[entries["one"].start : entries["one"].stop]
    assert torch.equal(torch.frombuffer(bytearray(one), dtype=torch.float16).view(2, 3), tensors["one"])


@pytest.mark.parametrize("length", [2**63, HEADER_LIMIT + 1, 93])
def test_a_length_beyond_the_file_or_the_limit(length: int) -> None:
    with pytest.raises(ModelError, match=f"its header is said to have {length} bytes"):
        header_length(length.to_bytes(8, "little"), 100 if length == 93 else 2**62, "x")


def test_a_dtype_of_unknown_width_is_left_to_who_wants_the_tensor() -> None:
    assert parsed({"a": {"dtype": "F8_E4M3", "shape": [5], "data_offsets": [0, 5]}}, 5)["a"].dtype == "F8_E4M3"


def with_b(**fields: Any) -> dict[str, Any]:
    return GOOD | {"b": GOOD["b"] | fields}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"[", "is not JSON"),
        (b"[" * 5000, "is not JSON"),
        (b"\xff\xff", "is not JSON"),
        (["a"], "is a list"),
        (with_b(data_offsets=[20, 28]), "b begins at byte"),
        (with_b(data_offsets=[26, 34]), "b begins at byte"),
        (with_b(data_offsets=[0, 8]), "a begins at byte"),
        (with_b(data_offsets=[24, 30]), "b has 6 bytes; BF16 of shape"),
        (with_b(data_offsets=[24, 40], shape=[8]), "its header wants"),
        ({"a": GOOD["a"]}, "its header wants"),
        (with_b(data_offsets=[-8, 0]), "b has offsets"),
        (with_b(data_offsets=[32, 24]), "b has offsets"),
        (with_b(data_offsets=[24]), "b has offsets"),
        (with_b(data_offsets=[24, 32.0]), "b has offsets"),
        (with_b(shape=[-4]), "b has shape"),
        (with_b(shape=[True]), "b has shape"),
        (with_b(shape="4"), "b has shape"),
        (with_b(dtype=3), "b has dtype"),
        (GOOD | {"b": 3}, "b is a int"),
    ],
)
def test_a_header_that_is_none(table: Any, words: str) -> None:
    assert set(parsed(GOOD)) == {"a", "b"}
    with pytest.raises(ModelError, match=rf"x\.safetensors: is not a whole safetensors file \(.*{words}"):
        parsed(table)
