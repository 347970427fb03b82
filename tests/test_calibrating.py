"""A model in nf4 that is fitted to a text: closer to what it was made of, and in everything else a checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from swarm_peer.compression.linear import Nf4Linear, QuantizedLinear
from swarm_peer.compression.quant_state import QUANT_STATE
from swarm_peer.errors import DataError, ManifestError, ModelError, StorageError, UsageError
from swarm_peer.peer.reference import _build_model, run_reference
from swarm_peer.swarm.arithmetic import RealArithmetic
from swarm_peer.swarm.calibrating import Fitted, write_calibrated
from swarm_peer.swarm.exporting import Export
from swarm_peer.swarm.freezing import prepare
from swarm_peer.swarm.manifest import DataSettings, Manifest, ModelSettings, Settings, TrainSettings
from swarm_peer.swarm.model.as_trained import open_model
from swarm_peer.swarm.model.checkpoint import Checkpoint
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.model.files import FolderFiles
from swarm_peer.swarm.model.folder import Shards, check_target
from swarm_peer.swarm.model.held import HeldStore
from swarm_peer.swarm.model.names import block_linears, pieces
from swarm_peer.swarm.model.opening import open_checkpoint
from swarm_peer.swarm.model.weights import stage_base
from swarm_peer.swarm.peer import Parts
from swarm_peer.swarm.quantize_command import windows
from swarm_peer.swarm.sources import cache_folder
from swarm_peer.swarm.torch_backend import TorchBackend
from torch import Tensor

from tests.chaos.schedules import Schedule
from tests.chaos.virtual import Chaos
from tests.processes import home
from tests.tiny import corpora, tiny_manifest, tiny_swarm

from .checkpoints import run_of, write_checkpoint
from .range_server import RangeServer
from .test_agreement import assert_agree
from .test_export import loss_elsewhere

SHAPE = TINY.model_copy(update={"intermediate_size": 192, "num_hidden_layers": 3})
"""Every linear layer takes a multiple of 64 inputs."""

QUERY = "model.layers.1.self_attn.q_proj.weight"


def samples(seed: int = 0) -> Tensor:
    return torch.randint(256, (16, 64), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in bf16, in two shards, with a tokenizer."""
    folder = tmp_path_factory.mktemp("plain")
    write_checkpoint(folder, shape=SHAPE)
    letters = tokenizers.models.WordLevel({chr(97 + number): number for number in range(26)}, unk_token="a")
    tokenizer = tokenizers.Tokenizer(letters)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def fitted(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Fitted]]:
    """The same in nf4, and what was told of its layers."""
    folder, told = tmp_path_factory.mktemp("nf4") / "made", list[Fitted]()
    with Checkpoint(FolderFiles(plain)) as checkpoint:
        write_calibrated(folder, checkpoint, samples(), tell=told.append)
    return folder, told


def read(folder: Path) -> dict[str, Any]:
    with Checkpoint(FolderFiles(folder)) as checkpoint:
        return dict(checkpoint.read(pieces(checkpoint.shape)))


def manifest_on(folder: Path, **model: Any) -> Manifest:
    with Checkpoint(FolderFiles(folder)) as checkpoint:
        made = run_of(checkpoint.weights(), shape=SHAPE)
    settings = made.settings.model_copy(update={"model": made.settings.model.model_copy(update=model)})
    return made.model_copy(update={"settings": settings})


# ---- a checkpoint


def test_a_model_that_is_fitted_is_closer_to_what_it_was_made_of(
    plain: Path, fitted: tuple[Path, list[Fitted]]
) -> None:
    folder, told = fitted
    assert [one.name for one in told] == [
        name for layer in range(SHAPE.num_hidden_layers) for name in block_linears(SHAPE, layer)
    ]
    assert all(one.error < 0.9 * one.rounded for one in told)
    whole, held = read(plain), read(folder)
    assert whole.keys() == held.keys()
    linears = {f"{one.name}.weight" for one in told}
    for name, weight in held.items():
        assert isinstance(weight, QuantizedLinear) == (name in linears)
        if name not in linears:
            assert torch.equal(weight, whole[name])
    elsewhere = samples(seed=1)
    with torch.no_grad():
        wanted, ours = (open_model(at)(elsewhere).logits for at in (plain, folder))
        rounded = open_model(plain)
        for name in linears:
            rounded.get_parameter(name).copy_(Nf4Linear.quantize(whole[name]).weight())
        theirs = rounded(elsewhere).logits
    assert (ours - wanted).norm() < 0.9 * (theirs - wanted).norm()


def test_what_is_read_is_what_was_written(fitted: tuple[Path, list[Fitted]]) -> None:
    tensors, layer = load_file(fitted[0] / "model.safetensors"), read(fitted[0])[QUERY]
    assert torch.equal(tensors[QUERY].view(-1), layer.codes)
    assert torch.equal(tensors[f"{QUERY}.absmax"], layer.scale_codes)
    told = json.loads(bytes(tensors[f"{QUERY}.{QUANT_STATE}"].tolist()))
    assert (told["shape"], told["blocksize"], told["quant_type"]) == ([64, 64], 64, "nf4")
    assert json.loads((fitted[0] / "config.json").read_text())["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert (fitted[0] / "tokenizer.json").exists()


def test_a_stage_reads_it_from_a_folder_and_keeps_no_second_copy(
    fitted: tuple[Path, list[Fitted]], tmp_path: Path
) -> None:
    run = manifest_on(fitted[0], base="nf4")
    with Checkpoint(FolderFiles(fitted[0])) as checkpoint:
        came: list[tuple[int, int]] = []
        made = HeldStore(tmp_path).get_or_make(
            run, 1, torch.device("cpu"), lambda: stage_base(run, 1, checkpoint, lambda *at: came.append(at))
        )
    assert not list(tmp_path.iterdir())
    layer = made[QUERY]
    assert isinstance(layer, Nf4Linear)
    assert torch.equal(layer.codes, read(fitted[0])[QUERY].codes)
    assert TorchBackend(run, 1, made).lengths
    sizes = load_file(fitted[0] / "model.safetensors")
    wanted = sum(
        part.numel() * part.element_size() for name, part in sizes.items() if name.startswith("model.layers.1.")
    )
    assert came[-1] == (wanted, wanted)


@pytest.mark.parametrize(
    ("part", "wrong", "told"),
    [("absmax", b"\x01", "layer 1 has digest"), ("nested_absmax", b"\x00\x00\xc0\x7f", "NaN or infinity")],
)
def test_from_a_url_a_layer_takes_few_requests_and_wrong_bytes_are_not_kept(
    part: str, wrong: bytes, told: str, fitted: tuple[Path, list[Fitted]], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SWARM_PEER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    shutil.copytree(fitted[0], tmp_path / "site" / "model")
    path = tmp_path / "site" / "model" / "model.safetensors"
    right = path.read_bytes()
    with Checkpoint(FolderFiles(fitted[0])) as checkpoint:
        digests = checkpoint.weights().pieces
        layer = next(piece for piece in pieces(SHAPE) if QUERY in piece.shapes)
        here, at = dict(checkpoint.read([layer])), checkpoint.tensors[QUERY].beside[part].entry.start
        wanted = sum(
            one.stop - one.start
            for one in (part.entry for name in layer.shapes for part in checkpoint.tensors[name].all(name).values())
        )
    path.write_bytes(right[:at] + wrong + right[at + len(wrong) :])

    def came() -> dict[str, Any]:
        checkpoint = open_checkpoint(server.url + "model")
        assert checkpoint is not None
        with checkpoint:
            _ = checkpoint.tensors
            asked, served, kept = len(server.requests), server.bytes_served, bytes_kept()
            try:
                return dict(checkpoint.read([layer], digests))
            except ModelError:
                assert bytes_kept() == kept
                raise
            finally:
                assert len(server.requests) - asked <= 4
                assert server.bytes_served - served <= wanted

    with RangeServer(tmp_path / "site") as server:
        with pytest.raises(ModelError, match=told):
            came()
        path.write_bytes(right)
        found = came()
    assert found.keys() == here.keys()
    assert torch.equal(found[QUERY].codes, here[QUERY].codes)


def bytes_kept() -> int:
    return sum(path.stat().st_size for path in (cache_folder() / "weights").iterdir())


@pytest.mark.parametrize("base", ["int8", "bf16"])
def test_a_base_that_it_is_not_is_refused(base: str, fitted: tuple[Path, list[Fitted]]) -> None:
    run = manifest_on(fitted[0], base=base)
    with Checkpoint(FolderFiles(fitted[0])) as checkpoint, pytest.raises(ModelError, match=f"the run wants.*{base}"):
        TorchBackend(run, 1, stage_base(run, 1, checkpoint))


def test_a_manifest_takes_it_as_what_it_is(fitted: tuple[Path, list[Fitted]], tmp_path: Path) -> None:
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text("abcdefgh" * 300)
    other.write_text("hgfedcba" * 300)

    def frozen(base: str = "auto", mode: str = "lora") -> Manifest:
        data = DataSettings(texts=(str(text),), heldout=(str(other),), sequence_length=32, heldout_tokens=64)
        model = ModelSettings.model_validate({"name": str(fitted[0]), "stages": 3, "base": base})
        settings = Settings(model=model, data=data, train=TrainSettings.model_validate({"mode": mode}))
        return prepare(settings, organizer="0" * 64, nonce="0" * 32).manifest

    assert frozen().settings.model.base == frozen("nf4").settings.model.base == "nf4"
    with pytest.raises(ManifestError, match=r"in nf4: model\.base is 'int8'"):
        frozen("int8")
    with pytest.raises(ManifestError, match="only adapters"):
        frozen(mode="full")


def test_the_swarm_agrees_with_the_reference_on_it_and_an_adapter_gives_its_loss(
    fitted: tuple[Path, list[Fitted]], tmp_path: Path
) -> None:
    manifest = tiny_manifest(base="nf4", steps=4)
    manifest = manifest.model_copy(update={"shape": SHAPE})
    with Checkpoint(FolderFiles(fitted[0])) as checkpoint:
        manifest = manifest.model_copy(update={"weights": checkpoint.weights(), "shape": checkpoint.shape})
    export = Export(tmp_path / "adapter")

    def backend(run: Manifest, stage: int) -> TorchBackend:
        with Checkpoint(FolderFiles(fitted[0])) as checkpoint:
            return TorchBackend(run, stage, stage_base(run, stage, checkpoint))

    def build(schedule: Schedule, chaos: Chaos) -> Any:
        parts = Parts(backend=backend, arithmetic=RealArithmetic)
        swarm = tiny_swarm(manifest, watch=chaos.watch, emit=chaos.emit, parts=parts)
        swarm.keep = export.keep
        return swarm

    report = Chaos(Schedule(0, 1, 2, standby=False, faults=())).simulate(build)
    assert report["heldout"]["after"] < report["heldout"]["before"]
    assert_agree(report, run_reference(manifest, *corpora(), fitted[0]), 1e-3)
    export.write(manifest)
    loss = loss_elsewhere(manifest, corpora()[1], fitted[0], "as it is", export.folder)
    assert loss == pytest.approx(report["heldout"]["after"], abs=1e-3)


def test_weights_that_were_left_as_they_are_each_peer_rounds(fitted: tuple[Path, list[Fitted]], tmp_path: Path) -> None:
    """As the reference does, which reads the folder by itself."""
    shutil.copytree(fitted[0], tmp_path / "mixed")
    path = tmp_path / "mixed" / "model.safetensors"
    tensors = load_file(path)
    plain = read(fitted[0])[QUERY].weight().bfloat16() + 0.01
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(QUERY)} | {QUERY: plain}
    save_file(tensors, path)
    run = manifest_on(tmp_path / "mixed", base="nf4")
    with Checkpoint(FolderFiles(tmp_path / "mixed")) as checkpoint:
        held = TorchBackend(run, 1, stage_base(run, 1, checkpoint))._base[QUERY]
    assert isinstance(held, Nf4Linear)
    assert torch.equal(held.weight(), Nf4Linear.quantize(plain).weight())
    layer = _build_model(run, tmp_path / "mixed").model.layers[1].self_attn
    assert torch.equal(layer.q_proj.base.weight, held.weight())
    others = read(fitted[0])[QUERY.replace("q_proj", "o_proj")].weight()
    assert torch.equal(getattr(layer.o_proj, "base", layer.o_proj).weight, others)


# ---- what is refused

Tensors = dict[str, Tensor]


def _without(part: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[f"{QUERY}.{part}"]

    return change


def _told(**changes: Any) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        name = f"{QUERY}.{QUANT_STATE}"
        told = json.loads(bytes(tensors[name].tolist())) | changes
        tensors[name] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)

    return change


def _changed(part: str, content: Tensor) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"{QUERY}{part}"] = content

    return change


def _both(one: Callable[[Tensors], None], other: Callable[[Tensors], None]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        one(tensors)
        other(tensors)

    return change


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (_without("absmax"), "absmax is missing"),
        (_without(QUANT_STATE), "bitsandbytes__nf4 is missing"),
        (_without("nested_quant_map"), "nested_quant_map is missing"),
        (_without("nested_absmax"), "nested_absmax is missing"),
        (_changed("", torch.zeros(2047, 1, dtype=torch.uint8)), "bytes of codes"),
        (_changed(".absmax", torch.zeros(63, dtype=torch.uint8)), r"absmax is U8 \[63\]; wanted U8 \[64\]"),
        (_changed(".absmax", torch.zeros(64, dtype=torch.int64)), r"absmax is I64 \[64\]; wanted U8"),
        (_changed(".absmax", torch.zeros(64)), r"absmax is F32 \[64\]; wanted U8"),
        (
            _changed(".absmax", torch.zeros(64, *[1] * 40, dtype=torch.uint8)),
            r"absmax is U8 \[64, 1, .*wanted U8 \[64\]",
        ),
        (_changed(".quant_map", torch.linspace(-1, 1, 16)), "not those of nf4"),
        (_changed(".quant_map", torch.linspace(-1, 1, 17)), r"quant_map is F32 \[17\]"),
        (_changed(".nested_quant_map", torch.zeros(256, 1)), r"nested_quant_map is F32 \[256, 1\]"),
        (_changed(".nested_quant_map", torch.linspace(-1, 1, 256)), "scales of its own"),
        (_changed(".nested_absmax", torch.tensor([float("nan")])), "NaN or infin"),
        (_changed(".nested_absmax", torch.zeros(1 << 20)), r"nested_absmax is F32 \[1048576\]"),
        (_changed(".nested_absmax", torch.zeros(3)), r"nested_absmax is F32 \[3\]; wanted F32 \[1\]"),
        (_changed(f".{QUANT_STATE}", torch.zeros(5000, dtype=torch.uint8)), r"wanted U8 \[4096\]"),
        (_changed(f".{QUANT_STATE}", torch.zeros(0, dtype=torch.uint8)), r"is U8 \[0\]; wanted U8 \[1\]"),
        (_told(shape=[0, 64]), "cannot be read: shape"),
        (_told(shape=[10**3000, 64]), "cannot be read: "),
        (_changed(f".{QUANT_STATE}", torch.zeros(10, 10, dtype=torch.uint8)), r"is U8 \[10, 10\]"),
        (_changed(f".{QUANT_STATE}", torch.zeros(10, dtype=torch.uint8)), "cannot be read"),
        (_told(nested_offset=float("inf")), "cannot be read: nested_offset"),
        (_told(nested_offset=10**400), "cannot be read"),
        (_told(nested_offset=1e300), "cannot be read: nested_offset"),
        (_both(_changed(".nested_absmax", torch.tensor([3e38])), _told(nested_offset=3e38)), "NaN or infin"),
        (_told(quant_type="fp4"), "cannot be read: quant_type"),
        (_told(shape=[32, 128]), r"is \[32, 128\]"),
        (_told(shape=[1 << 40, 1 << 20]), r"wanted \[64, 64\]"),
        (_told(shape=["x", 1 << 29]), "cannot be read: shape"),
        (_told(shape="much"), "cannot be read: shape"),
        (_told(blocksize=0), "cannot be read: blocksize"),
        (_told(blocksize=-64), "cannot be read: blocksize"),
        (_told(blocksize=1 << 40), "cannot be read: blocksize"),
        (_told(blocksize=128), "absmax is uint8"),
        (_told(nested_blocksize=1 << 28), "cannot be read: nested_blocksize"),
        (_told(nested_blocksize=64), "scales of its own"),
        (_told(nested_blocksize=None), "absmax is uint8"),
    ],
)
def test_a_broken_one_is_refused(
    change: Callable[[Tensors], None], wanted: str, fitted: tuple[Path, list[Fitted]], tmp_path: Path
) -> None:
    tensors = load_file(fitted[0] / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((fitted[0] / "config.json").read_text())
    with pytest.raises(ModelError, match=wanted):
        read(tmp_path)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        "nf4",
    ],
)
def test_other_quantizations_are_refused(quantization: Any, fitted: tuple[Path, list[Fitted]], tmp_path: Path) -> None:
    config = json.loads((fitted[0] / "config.json").read_text()) | {"quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantization_config .* or nf4 by bitsandbytes"):
        Checkpoint(FolderFiles(tmp_path))


# ---- the command


def test_samples_are_drawn_from_the_texts(plain: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + number % 26) for number in range(500)))
    drawn = windows([text], plain, 20, 30, 256)
    assert drawn.shape == (20, 30)
    assert torch.equal((drawn[:, 1:] - drawn[:, :-1]) % 26, torch.ones(20, 29, dtype=torch.int64))
    assert len({int(row[0]) for row in drawn}) > 5
    assert torch.equal(drawn, windows([text], plain, 20, 30, 256))
    assert windows([text], plain, 2, 500, 256).shape == (2, 500)
    with pytest.raises(DataError, match="500 tokens"):
        windows([text], plain, 2, 501, 256)
    with pytest.raises(DataError, match="token 25; the model has 20"):
        windows([text], plain, 2, 50, 20)


def test_the_command_writes_a_model_and_says_how_close_it_is(plain: Path, tmp_path: Path) -> None:
    text, made = tmp_path / "text.txt", tmp_path / "made"
    text.write_text("abcdefghijklmnopqrstuvwxyz" * 40)
    with home() as user:

        def quantize(model: object, *flags: object) -> tuple[int, str]:
            flags = ("--texts", text, "--samples", 4, "--tokens", 32, *flags)
            return user.run("swarm-coordinator", "quantize", str(model), *map(str, (made, *flags)))

        code, output = quantize(plain)
        assert code == 0, output
        lines = output.splitlines()
        assert len(lines) == SHAPE.num_hidden_layers + 1
        assert lines[0].startswith("layer 1 of 3: its outputs are off by ")
        assert lines[-1].startswith(f"written: {made}")
        assert isinstance(read(made)[QUERY], Nf4Linear)

        code, output = quantize(plain)
        assert code != 0
        assert "is there already" in output
        (tmp_path / "made").rename(tmp_path / "first")
        for model, wanted in ((tmp_path / "first", "is in nf4 already"), ("tiny", "has no checkpoint")):
            code, output = quantize(model)
            assert code != 0
            assert wanted in output
            assert not made.exists()
        for flags, wanted in (
            (("--device", "abacus"), "--device abacus"),
            (("--tokens", 513), "reads 512 at the most"),
        ):
            code, output = quantize(plain, *flags)
            assert code != 0
            assert wanted in output
            assert not made.exists()


@pytest.mark.parametrize("where", ["a link", "here"])
def test_a_folder_that_could_not_be_made_anew_in_the_end_is_refused_at_once(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UsageError, match="not there yet"):
        check_target(tmp_path / "a link" if where == "a link" else Path("."))


def test_a_file_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "nowhere")
    shards.add("weight", torch.zeros(4))
    with pytest.raises(StorageError, match="cannot be written"):
        shards.finish()


@pytest.mark.parametrize(("dtype", "named"), [(torch.float16, "float16"), (torch.float32, "float32")])
def test_numbers_stay_what_they_are(dtype: torch.dtype, named: str, plain: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(plain, source)
    for path in source.glob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    with Checkpoint(FolderFiles(source)) as checkpoint:
        write_calibrated(tmp_path / "made", checkpoint, samples()[:2])
    assert json.loads((tmp_path / "made" / "config.json").read_text())["dtype"] == named
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    assert json.loads(bytes(tensors[f"{QUERY}.{QUANT_STATE}"].tolist()))["dtype"] == named
    assert tensors["model.norm.weight"].dtype == dtype


def test_a_model_that_comes_to_no_finite_numbers_is_refused(plain: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(plain, source)
    for path in source.glob("*.safetensors"):
        large = {"gate_proj": 1e20, "up_proj": 1e30}
        tensors = load_file(path)
        for name in tensors:
            tensors[name] = tensors[name] * next((factor for part, factor in large.items() if part in name), 1.0)
        save_file(tensors, path)
    with Checkpoint(FolderFiles(source)) as checkpoint, pytest.raises(ModelError, match=r"down_proj.* not finite"):
        write_calibrated(tmp_path / "made", checkpoint, samples()[:2])
    assert not (tmp_path / "made").exists()
