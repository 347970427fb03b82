"""What a swarm has trained, loaded elsewhere by `peft` and `transformers`, gives the loss that the swarm had."""

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from swarm_peer.errors import StorageError, UnreachableError, UsageError
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.arithmetic import RealArithmetic
from swarm_peer.swarm.collecting import Collected, collect_from_run
from swarm_peer.swarm.data import Corpus, heldout_batches
from swarm_peer.swarm.exchange import Meter, Pool
from swarm_peer.swarm.export import export_adapter, export_model
from swarm_peer.swarm.exporting import Export
from swarm_peer.swarm.manifest import Manifest
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.model.folder import model_config
from swarm_peer.swarm.model.names import base_shapes, trainable_shapes
from swarm_peer.swarm.model.opening import open_checkpoint
from swarm_peer.swarm.model.weights import random_base, stage_base
from swarm_peer.swarm.optimizer import StageState, fresh_state, state_digest
from swarm_peer.swarm.peer import Parts
from swarm_peer.swarm.sources import model_path, text_path
from swarm_peer.swarm.tokenizer import FileTokenizer

from tests.chaos.schedules import Schedule, kill_at
from tests.chaos.virtual import Chaos
from tests.processes import LIMIT_SECONDS, home
from tests.tiny import backend, corpora, tiny_manifest, tiny_swarm

SEED = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with tiny's shape and the random base of the tests' seed."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(model_config(TINY, "fp32")))
    wanted = base_shapes(TINY, range(TINY.num_hidden_layers), is_first=True, is_last=True)
    save_file(dict(random_base(SEED, TINY, wanted)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def trained(manifest: Manifest, export: Export) -> dict[str, Any]:
    """The report of a tiny swarm of 3 x 2 peers that loses one to a kill, with its last version kept."""
    schedule = Schedule(0, 1, 2, standby=False, faults=(kill_at("forward", 1, step=2, nth=1),))
    chaos = Chaos(schedule)

    def build(schedule: Schedule, chaos: Chaos) -> Any:
        swarm = tiny_swarm(
            manifest, watch=chaos.watch, emit=chaos.emit, parts=Parts(backend=backend, arithmetic=RealArithmetic)
        )
        swarm.keep = export.keep
        return swarm

    report = chaos.simulate(build)
    assert chaos.done
    return report


def loss_elsewhere(manifest: Manifest, heldout: Corpus, folder: Path, base: str, *adapter: Path) -> float:
    """The held-out loss of an exported adapter or model in a process that knows nothing of the swarm."""
    batches = heldout_batches(manifest, heldout)
    rows = np.concatenate([np.concatenate([tokens, labels[:, -1:]], axis=1) for tokens, labels in batches])
    tokens = io.BytesIO()
    np.save(tokens, rows)
    command = [sys.executable, "tests/adapter_loss.py", str(folder), base, *map(str, adapter)]
    done = subprocess.run(command, input=tokens.getvalue(), capture_output=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return float(done.stdout)


@pytest.mark.parametrize(("base", "activations"), [("nf4", "int8"), ("int8", "int4")])
def test_an_adapter_gives_the_swarms_loss_in_peft(base: str, activations: str, model: Path, tmp_path: Path) -> None:
    manifest = tiny_manifest(base=base, steps=5, seed=SEED, activations=activations, gradients="dynamic8")
    export = Export(tmp_path / "adapter")
    report = trained(manifest, export)
    export.write(manifest)
    assert report["heldout"]["after"] < report["heldout"]["before"] - 0.01
    loss = loss_elsewhere(manifest, corpora()[1], model, base, export.folder)
    assert loss == pytest.approx(report["heldout"]["after"], abs=1e-3)


def test_a_merged_model_gives_the_swarms_loss_in_transformers(tmp_path: Path) -> None:
    manifest = tiny_manifest(base="nf4", steps=5, seed=SEED)
    export = Export(tmp_path / "model", merge=True, dtype="fp32")
    report = trained(manifest, export)
    export.write(manifest)
    loss = loss_elsewhere(manifest, corpora()[1], export.folder, "fp32")
    assert loss == pytest.approx(report["heldout"]["after"], abs=1e-3)


def test_a_model_that_was_trained_whole_is_written_whole(tmp_path: Path) -> None:
    manifest = tiny_manifest(mode="full", steps=5, seed=SEED)
    export = Export(tmp_path / "model", dtype="fp32")
    report = trained(manifest, export)
    export.write(manifest)
    loss = loss_elsewhere(manifest, corpora()[1], export.folder, "fp32")
    assert loss == pytest.approx(report["heldout"]["after"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["nf4", "int8", "as it is"])
def test_a_real_model_on_real_processes(base: str, tmp_path: Path) -> None:
    """SmolLM2-135M on 3 x 2 processes with the usual wire codecs, one of which is killed; the adapter in peft, which
    has none. `as it is`: one that has been fitted to a text, which costs less than half of rounding its weights."""
    adapter, path = tmp_path / "adapter", tmp_path / "report.json"
    plain = model_path("smollm2-135m")
    assert plain is not None
    folder = plain if base != "as it is" else tmp_path / "fitted"
    with home() as made:
        del made.environment["SWARM_PEER_HOME"]
        if folder != plain:
            flags = [str(folder), "--texts", "brown", "milton", "--samples", "64", "--tokens", "128"]
            code, output = made.run("swarm-coordinator", "quantize", "smollm2-135m", *flags)
            assert code == 0, output
        flags = [
            "--steps",
            "4",
            "--model",
            str(folder),
            "--base",
            base if folder == plain else "nf4",
            "--kill",
            "1@1",
            "--export",
            str(adapter),
            "--report",
            str(path),
        ]
        code, output = made.run("swarm-peer", "demo", *flags)
    assert code == 0, output
    report = json.loads(path.read_text())
    assert (report["ledger"]["lost"], report["ledger"]["duplicated"]) == (0, 0)
    assert len(report["faults"]) == 1
    heldout = Corpus.from_texts([text_path("hamlet")], FileTokenizer(folder / "tokenizer.json"))
    manifest = tiny_manifest()
    data = manifest.settings.data.model_copy(update={"sequence_length": 128, "heldout_tokens": 2048})
    manifest = manifest.model_copy(update={"settings": manifest.settings.model_copy(update={"data": data})})
    loss = loss_elsewhere(manifest, heldout, folder, base, adapter)
    assert loss == pytest.approx(report["heldout"]["after"], abs=1e-3)
    if folder != plain:
        fitted = loss_elsewhere(manifest, heldout, folder, base)
        whole, rounded = (loss_elsewhere(manifest, heldout, plain, other) for other in ("fp32", "nf4"))
        assert fitted - whole < 0.5 * (rounded - whole)


# ---- from a run that goes on


def test_a_run_that_goes_on_gives_a_version_that_all_stages_have() -> None:
    manifest = tiny_manifest(steps=6)
    collected: list[Collected] = []
    digests: dict[tuple[int, int], bytes] = {}

    def watch(swarm: Any, peer: str, moment: Any) -> None:
        if moment.name == "applied":
            version = moment.step + 1
            digests[moment.stage, version] = swarm.peers[peer].host.versions.digest(version)

    async def main() -> None:
        steps = asyncio.Event()
        swarm = tiny_swarm(
            manifest,
            watch=watch,
            emit=lambda event: steps.set() if event.kind == "stepped" and event.step == 2 else None,
        )
        running = asyncio.create_task(swarm.run())
        await steps.wait()
        pool = Pool(swarm.network.transport("guest"), Meter())
        collected.append(await collect_from_run(manifest, swarm.directory, pool))
        pool.close()
        await running

    run(main(), limit=200.0)
    assert 1 <= collected[0].version <= 6
    assert set(collected[0].states) == {0, 1, 2}
    for stage, state in collected[0].states.items():
        assert state_digest(state) == digests[stage, collected[0].version]


def test_a_run_that_nobody_serves_has_nothing_to_give() -> None:
    async def main() -> None:
        swarm = tiny_swarm(tiny_manifest())
        await collect_from_run(swarm.manifest, swarm.directory, Pool(swarm.network.transport("guest"), Meter()))

    with pytest.raises(UnreachableError, match="nobody announces a state of stage 0"):
        run(main(), limit=200.0)


# ---- files


def collected_of(manifest: Manifest, fill: float = 0.5) -> Collected:
    states: dict[int, StageState] = {}
    for stage in range(manifest.stages):
        shapes = trainable_shapes(manifest, stage)
        states[stage] = fresh_state({name: torch.full(shape, fill) for name, shape in shapes.items()})
    return Collected(4, states)


def test_an_adapter_of_some_linear_layers(tmp_path: Path) -> None:
    manifest = tiny_manifest()
    train = manifest.settings.train.model_copy(update={"lora_targets": ("q_proj", "down_proj")})
    manifest = manifest.model_copy(update={"settings": manifest.settings.model_copy(update={"train": train})})
    export_adapter(tmp_path / "a", manifest, collected_of(manifest))
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "down_proj"]
    names = load_file(tmp_path / "a/adapter_model.safetensors")
    assert len(names) == 2 * 2 * TINY.num_hidden_layers
    assert "base_model.model.model.layers.5.mlp.down_proj.lora_B.weight" in names
    assert "version: 4 of 12" in (tmp_path / "a/README.md").read_text()


def test_a_large_model_is_written_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_peer.swarm.model.folder.SHARD_BYTES", 200_000)
    manifest = tiny_manifest(mode="full")
    export_model(tmp_path / "m", manifest, collected_of(manifest), (), dtype="fp32")
    index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    assert set(index["weight_map"]) == {name for stage in range(3) for name in trainable_shapes(manifest, stage)}
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    assert checkpoint is not None
    with checkpoint:
        read = stage_base(manifest.model_copy(update={"weights": checkpoint.weights(None)}), 1, checkpoint)
        assert all(torch.equal(tensor, torch.full_like(tensor, 0.5)) for _, tensor in read)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    manifest = tiny_manifest()
    (tmp_path / "a").mkdir()
    export_adapter(tmp_path / "a", manifest, collected_of(manifest))
    with pytest.raises(UsageError, match="there already"):
        export_adapter(tmp_path / "a", manifest, collected_of(manifest))
    with pytest.raises(UsageError, match="there already"):
        Export(tmp_path / "a/README.md").check()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("swarm_peer.swarm.export.save_file", fail)
    with pytest.raises(StorageError, match="No space left"):
        export_adapter(tmp_path / "a", tiny_manifest(), collected_of(tiny_manifest()))
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_trained_whole_has_no_adapter(tmp_path: Path) -> None:
    manifest = tiny_manifest(mode="full")
    with pytest.raises(UsageError, match="--merge"):
        export_adapter(tmp_path / "a", manifest, collected_of(manifest))
