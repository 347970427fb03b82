"""The manifest: canonical bytes that never change by accident, and errors that name the field."""

import json
from pathlib import Path
from typing import Any

import pytest
from swarm_peer.errors import ManifestError
from swarm_peer.swarm.manifest import Manifest, freeze, load_settings, parse_manifest, parse_settings

from tests.tiny import tiny_manifest

GOLDEN = Path(__file__).parent / "golden" / "manifest.json"

COMPLETE = """
seed = 7
[model]
name = "tiny"
stages = 2
compute_dtype = "bf16"
[train]
mode = "full"
steps = 5
batch = 6
microbatch = 4
[data]
texts = ["a.txt", "b.txt"]
heldout = ["c.txt"]
heldout_tokens = 100
sequence_length = 16
[optimizer]
learning_rate = 1e-4
schedule = "cosine"
warmup_steps = 2
clip_norm = 0.5
[pipeline]
staleness = 0
min_replicas = 2
slots = 3
[codecs]
activations = "dynamic8"
gradients = "fp32"
reduce = "int8"
block = 128
[limits]
gradient_bytes = 1000
payload_bytes = 2000
visit_bytes = 3000
spill_bytes = 0
"""


def frozen(**changes: Any) -> Manifest:
    fields = {name: getattr(tiny_manifest(), name) for name in Manifest.model_fields if name != "protocol"}
    return freeze(**{**fields, **changes})


def test_canonical_bytes_are_the_golden_ones() -> None:
    assert tiny_manifest().canonical() == GOLDEN.read_bytes()


def test_the_run_id_is_a_function_of_the_bytes_and_of_every_field() -> None:
    base = frozen()
    assert parse_manifest(base.canonical()) == base
    assert parse_manifest(base.canonical()).run_id == base.run_id
    others = [frozen(nonce="1" * 32), frozen(organizer="2" * 64), frozen(texts_sha256=("3" * 64,))]
    assert len({base.run_id, *(other.run_id for other in others)}) == 4
    changed = base.model_copy(update={"nonce": "1" * 32})
    assert changed.run_id == parse_manifest(changed.canonical()).run_id != base.run_id
    assert base.model_copy().run_id == base.run_id


def test_every_setting_survives_the_round_trip() -> None:
    settings = parse_settings(COMPLETE)
    assert parse_manifest(frozen(settings=settings).canonical()).settings == settings
    assert settings.codecs.reduce == "int8"
    assert frozen(settings=settings).microbatches == 2


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{}",
        b"[1]",
        b"\xff\xfe",
        b"[" * 100_000,
        tiny_manifest().canonical() + b" ",
        json.dumps(json.loads(tiny_manifest().canonical())).encode(),
        tiny_manifest().canonical().replace(b'"protocol":1', b'"protocol":2'),
        tiny_manifest().canonical().replace(b'"seed":3', b'"seed":3.0'),
    ],
    ids=["empty", "no fields", "a list", "not UTF-8", "deep", "a space more", "not canonical", "protocol 2", "a float"],
)
def test_bytes_that_are_no_manifest_are_refused(bad: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(bad)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("stages = 2", 'stages = "two"', ["model.stages", "integer", "'two'"]),
        ("stages = 2", "stages = 0", ["model.stages", "greater than 0", "0"]),
        ("steps = 5", "step = 5", ["train.step", "Extra inputs"]),
        ('mode = "full"', 'mode = "half"', ["train.mode", "'lora' or 'full'", "'half'"]),
        ("microbatch = 4", "microbatch = 7", ["train", "microbatch (7) must not exceed batch (6)"]),
        ("staleness = 0", "staleness = 2", ["pipeline.staleness", "0 or 1", "2"]),
        ('activations = "dynamic8"', 'activations = "int7"', ["codecs.activations", "'int7'"]),
        ("clip_norm = 0.5", "clip_norm = inf", ["optimizer.clip_norm", "finite"]),
        ("learning_rate = 1e-4", "learning_rate = -1.0", ["optimizer.learning_rate", "greater than 0"]),
        ('texts = ["a.txt", "b.txt"]', "texts = []", ["data.texts", "at least 1"]),
        ("[model]", "[modell]", ["modell", "Extra inputs"]),
        ('name = "tiny"', "", ["model.name", "required"]),
        ("seed = 7", "seed = ", ["not TOML"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_came_and_what_is_wanted(old: str, new: str, said: list[str]) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_settings(COMPLETE.replace(old, new, 1), "run.toml")
    for part in ["run.toml", *said]:
        assert part in str(caught.value)


def test_settings_that_do_not_fit_the_model_are_refused() -> None:
    settings = tiny_manifest().settings
    deep = settings.model_copy(update={"model": settings.model.model_copy(update={"stages": 7})})
    with pytest.raises(ManifestError, match=r"model\.stages is 7, but the model has 6 layers"):
        frozen(settings=deep)
    long = settings.model_copy(update={"data": settings.data.model_copy(update={"sequence_length": 4096})})
    with pytest.raises(ManifestError, match=r"data\.sequence_length is 4096"):
        frozen(settings=long)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"missing\.toml"):
        load_settings(tmp_path / "missing.toml")


def test_layers_are_cut_as_equal_as_can_be() -> None:
    for stages in range(1, 7):
        manifest = tiny_manifest(stages=stages)
        cut = [manifest.layers(stage) for stage in range(stages)]
        assert [layer for layers in cut for layer in layers] == list(range(6))
        assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_a_quantized_base_is_frozen() -> None:
    text = '[model]\nname = "tiny"\nbase = "nf4"\n'
    assert parse_settings(text).model.base == "nf4"
    with pytest.raises(ManifestError, match="wanted lora"):
        parse_settings(text + '[train]\nmode = "full"\n')
