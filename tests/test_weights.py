"""Checkpoints from a folder: what is read, and what is refused with which words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from swarm_peer.errors import ModelError
from swarm_peer.swarm.manifest import DataSettings, LlamaShape, Manifest, ModelSettings, Settings, Weights, freeze
from swarm_peer.swarm.model.checkpoint import Checkpoint
from swarm_peer.swarm.model.config import TINY, parse_shape
from swarm_peer.swarm.model.files import FolderFiles
from swarm_peer.swarm.model.names import base_shapes, lora_shapes, pieces, stage_base_shapes, stage_pieces
from swarm_peer.swarm.model.weights import random_base, stage_base

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
}
SHAPE = parse_shape(CONFIG)
WANTED = base_shapes(SHAPE, range(2), is_first=True, is_last=True)
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(dict(random_base(0, SHAPE, WANTED)), tmp_path / "model.safetensors")
    return tmp_path


def shard(folder: Path) -> None:
    """Splits the single file of `folder` in two with an index."""
    tensors = dict(random_base(0, SHAPE, WANTED))
    first = {name: tensor for name, tensor in tensors.items() if "layers.0" in name}
    second = {name: tensor for name, tensor in tensors.items() if name not in first}
    save_file(first, folder / "a.safetensors")
    save_file(second, folder / "b.safetensors")
    files = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "model.safetensors").unlink()


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(FolderFiles(folder))


def read_whole(folder: Path) -> dict[str, torch.Tensor]:
    return dict(opened(folder).read(pieces(SHAPE)))


def manifest(shape: LlamaShape = SHAPE, weights: Weights | None = None) -> Manifest:
    return freeze(
        settings=Settings(model=ModelSettings(name="x", stages=2), data=DataSettings(sequence_length=32)),
        shape=shape,
        weights=weights,
        texts_sha256=("0" * 64,),
        heldout_sha256=("0" * 64,),
        organizer="0" * 64,
        nonce="0" * 32,
    )


def test_a_stage_reads_its_own_tensors_only(folder: Path) -> None:
    run = manifest(weights=opened(folder).weights())
    first, last = (dict(stage_base(run, stage, opened(folder))) for stage in (0, 1))
    assert set(first) == set(stage_base_shapes(run, 0))
    assert not set(first) & set(last)
    assert set(first) | set(last) == set(WANTED)
    assert torch.equal(last[QUERY], dict(random_base(0, SHAPE, WANTED))[QUERY])


@pytest.mark.parametrize("tied", [False, True])
def test_every_stage_holds_whole_pieces(tied: bool) -> None:
    run = manifest(SHAPE.model_copy(update={"tie_word_embeddings": tied}))
    assert [piece.label for piece in pieces(run.shape)] == ["the embedding", "layer 0", "layer 1", "the final norm"] + (
        [] if tied else ["the head"]
    )
    for stage in (0, 1):
        names = [name for piece in stage_pieces(run, stage) for name in piece.shapes]
        assert sorted(names) == sorted(stage_base_shapes(run, stage))


def test_shards_hold_the_same_tensors_under_the_same_digests(folder: Path) -> None:
    single, whole = read_whole(folder), opened(folder).weights()
    shard(folder)
    assert all(torch.equal(tensor, single[name]) for name, tensor in read_whole(folder).items())
    assert opened(folder).weights() == whole


def test_the_digest_of_a_piece_follows_every_byte_of_it(folder: Path) -> None:
    before = opened(folder).weights()
    assert opened(folder).weights() == before
    assert len(before.pieces) == len(pieces(SHAPE)) == 5
    found, path = opened(folder).tensors[QUERY].at.entry, folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[found.start] ^= 1
    path.write_bytes(content)
    after = opened(folder).weights()
    assert after.headers == before.headers
    assert [a == b for a, b in zip(after.pieces, before.pieces, strict=True)] == [True, True, False, True, True]
    run = manifest(weights=before)
    assert len(dict(stage_base(run, 0, opened(folder)))) == len(stage_base_shapes(run, 0))
    came: list[str] = []
    with pytest.raises(ModelError, match=r"layer 1 has digest .* the run wants"):
        came.extend(name for name, _ in stage_base(run, 1, opened(folder)))
    assert len(came) == 8, "the last tensor of a wrong piece is not handed out"


def test_other_headers_are_refused_before_anything_is_read(folder: Path) -> None:
    weights = opened(folder).weights()
    save_file({name: tensor.half() for name, tensor in random_base(0, SHAPE, WANTED)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"its headers have digest .* the run wants"):
        stage_base(manifest(weights=weights), 0, opened(folder))


def test_a_run_without_a_checkpoint_takes_none(folder: Path) -> None:
    with pytest.raises(ModelError, match="has no checkpoint"):
        stage_base(manifest(), 0, opened(folder))


def test_tied_embeddings_are_held_at_both_ends() -> None:
    ends = (
        base_shapes(TINY, range(2), is_first=True, is_last=False),
        base_shapes(TINY, range(4, 6), is_first=False, is_last=True),
    )
    assert all("model.embed_tokens.weight" in names and "lm_head.weight" not in names for names in ends)
    assert "model.norm.weight" in ends[1]


def test_lora_factors_of_all_seven_linear_layers() -> None:
    shapes = lora_shapes(TINY, range(1), rank=8)
    assert len(shapes) == 14
    assert shapes["model.layers.0.mlp.down_proj.lora_A"] == (8, 172)
    assert shapes["model.layers.0.self_attn.k_proj.lora_B"] == (32, 8)


def test_without_a_checkpoint_the_base_is_a_function_of_the_seed() -> None:
    run = manifest(TINY)
    one, other = dict(stage_base(run, 0, None)), dict(stage_base(run, 0, None))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    shared = "model.embed_tokens.weight"
    assert torch.equal(one[shared], dict(stage_base(run, 1, None))[shared])


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors: is not a whole safetensors file"):
        read_whole(folder)


@pytest.mark.parametrize("header", [b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{" * 16])
def test_a_corrupt_header_is_refused(folder: Path, header: bytes) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(header + path.read_bytes()[len(header) :])
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        read_whole(folder)


@pytest.mark.parametrize(
    ("replacement", "words"),
    [
        (None, f"{QUERY} is missing"),
        (torch.zeros(16, 15), rf"{QUERY} has shape \(16, 15\); config.json wants \(16, 16\)"),
        (torch.zeros(16, 16, dtype=torch.float64), f"{QUERY} has dtype F64"),
        (torch.full((16, 16), torch.nan), f"{QUERY} holds NaN"),
    ],
)
def test_a_bad_tensor_is_named(folder: Path, replacement: torch.Tensor | None, words: str) -> None:
    tensors = dict(random_base(0, SHAPE, WANTED))
    if replacement is None:
        del tensors[QUERY]
    else:
        tensors[QUERY] = replacement
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=words):
        read_whole(folder)


def test_no_weights_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        read_whole(tmp_path)
    with pytest.raises(ModelError, match="no folder"):
        dict(stage_base(manifest(weights=Weights(headers="0" * 64)), 0, None))


@pytest.mark.parametrize("target", ["../b.safetensors", "/b.safetensors", "b.bin", 3])
def test_an_index_that_points_elsewhere_is_refused(folder: Path, target: object) -> None:
    shard(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][QUERY] = target
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match="beside the index"):
        read_whole(folder)


def test_a_shard_or_an_index_entry_that_is_missing(folder: Path) -> None:
    shard(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({"weight_map": {k: v for k, v in index["weight_map"].items() if k != QUERY}}))
    with pytest.raises(ModelError, match=f"{QUERY} is missing"):
        read_whole(folder)
    path.write_text(json.dumps(index))
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"b\.safetensors"):
        read_whole(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="weight_map"):
        read_whole(folder)


def test_a_folder_of_another_shape_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"rms_norm_eps": 1e-6}))
    with pytest.raises(ModelError, match="the manifest wants"):
        stage_base(manifest(weights=Weights(headers="0" * 64)), 0, opened(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": None, "rope_theta": 5000},
        {"rope_scaling": None, "head_dim": 4, "attention_bias": False},
        {"architectures": ["MistralForCausalLM"], "sliding_window": None},
        {"architectures": ["MistralForCausalLM"], "sliding_window": 64},
    ],
)
def test_forms_of_the_family_that_are_the_same_model(changes: dict[str, Any]) -> None:
    assert parse_shape(CONFIG | changes) == SHAPE


def test_what_a_config_may_leave_out() -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("num_key_value_heads", "rope_parameters")}
    shape = parse_shape(config)
    assert (shape.num_key_value_heads, shape.rope_theta, shape.tie_word_embeddings) == (4, 10000.0, False)
    del config["max_position_embeddings"]
    assert parse_shape(config | {"max_sequence_length": 64}) == shape


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures"),
        ({"architectures": None}, "architectures"),
        ({"architectures": [["Qwen2ForCausalLM"]]}, "architectures"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "architectures.*biases on queries, keys and values"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "architectures.*norms on queries and keys"),
        ({"architectures": ["MistralForCausalLM"], "max_position_embeddings": 8192}, "sliding_window"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 32}, "sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": "much"}}, "rope_theta"),
        ({"rope_parameters": 3}, "rope_parameters"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 18}, "head_dim"),
        ({"hidden_size": -16, "head_dim": 4}, "hidden_size"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"num_key_value_heads": 3}, "num_attention_heads"),
    ],
)
def test_what_is_outside_the_family_is_refused_by_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelError, match=key):
        parse_shape(CONFIG | changes)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 5000, b" " * (2**20 + 1)])
def test_a_config_that_is_no_config(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        opened(tmp_path)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        opened(tmp_path)
