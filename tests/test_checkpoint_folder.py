"""Checkpoints on disk, written by runs of the tiny model and resumed from; and what is no checkpoint."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from swarm_peer.errors import CheckpointError, StorageError
from swarm_peer.simulations.devices import DURATIONS
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import events
from swarm_peer.swarm.checkpoint import Checkpoint
from swarm_peer.swarm.checkpoint_folder import CheckpointFolder, find_checkpoint, open_checkpoint
from swarm_peer.swarm.compute import BACKWARD, FORWARD
from swarm_peer.swarm.epochs import Lineage
from swarm_peer.swarm.keys import CHECKPOINT_DOMAIN, Identity
from swarm_peer.swarm.manifest import Manifest

from tests.tiny import TRAINER, tiny_manifest, tiny_swarm

STEPS = 4
SLOW = {**DURATIONS, FORWARD: 1.0, BACKWARD: 2.0}
"""A step takes longer than a donor is busy with the checkpoint of the step before."""


class AtOnce(CheckpointFolder):
    """Without threads, which virtual time does not know."""

    async def digest(self, stage: int, state: bytes) -> bytes:
        from swarm_peer.swarm.checkpoint_folder import _digest

        return _digest(self.manifest, stage, state)

    async def save(self, checkpoint: Checkpoint) -> None:
        self.write(checkpoint)

    async def latest(self, lineage: Lineage) -> Checkpoint | None:
        return self._latest(lineage)


def manifest_of(mode: str, staleness: int, form: str = "fp32") -> Manifest:
    manifest = tiny_manifest(mode=mode, staleness=staleness, steps=STEPS, replicas=1, batch=2)
    optimizer = manifest.settings.optimizer.model_copy(update={"state": form})
    return manifest.model_copy(update={"settings": manifest.settings.model_copy(update={"optimizer": optimizer})})


def trained(manifest: Manifest, **options: Any) -> tuple[dict[str, Any], list[events.Event]]:
    told: list[events.Event] = []

    async def main() -> dict[str, Any]:
        report: dict[str, Any] = await tiny_swarm(manifest, emit=told.append, durations=SLOW, **options).run()
        return report

    return run(main(), limit=400.0), told


@cache
def unbroken(mode: str, staleness: int, form: str) -> dict[str, Any]:
    return trained(manifest_of(mode, staleness, form))[0]


@pytest.mark.parametrize(("mode", "staleness", "form"), [("full", 1, "fp32"), ("lora", 0, "fp32"), ("lora", 1, "8bit")])
def test_a_run_on_disk_is_resumed_to_the_bit(tmp_path: Path, mode: str, staleness: int, form: str) -> None:
    """With one replica a stage sums have the same order again, so that floats are equal to the last bit."""
    manifest = manifest_of(mode, staleness, form)
    trained(manifest, checkpoints=AtOnce(tmp_path, manifest, TRAINER, every=2, keep=9))
    places = sorted(tmp_path.iterdir())
    assert [place.name for place in places] == [f"step-0000000{step}-epoch-0" for step in (2, 4)]
    for place in places:
        checkpoint = open_checkpoint(place)
        report, told = trained(manifest, origin=checkpoint)
        expected = unbroken(mode, staleness, form)
        assert [event.step for event in told if isinstance(event, events.Stepped)] == list(
            range(checkpoint.closed, STEPS)
        )
        for step, wanted in zip(report["steps"], expected["steps"], strict=True):
            assert (step["loss"], step["grad_norm"]) == (wanted["loss"], wanted["grad_norm"])
        assert report["heldout"] == expected["heldout"]
        digests = [set(replica["digests"].values()) for replica in report["replicas"]]
        assert digests == [set(replica["digests"].values()) for replica in expected["replicas"]]
        assert (report["ledger"]["lost"], report["ledger"]["duplicated"]) == (0, 0)


def test_only_the_last_ones_stay(tmp_path: Path) -> None:
    manifest = manifest_of("lora", 1)
    trained(manifest, checkpoints=AtOnce(tmp_path, manifest, TRAINER, every=1, keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003-epoch-0", "step-00000004-epoch-0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a run, at steps 3 and 4."""
    folder = tmp_path_factory.mktemp("checkpoints")
    manifest = manifest_of("lora", 1)
    trained(manifest, checkpoints=AtOnce(folder, manifest, TRAINER, every=3, keep=2))
    return folder


def last(folder: Path) -> Path:
    return find_checkpoint(folder)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a state is truncated": lambda at: cut(at / "stage-0001.safetensors"),
    "a state has a bit flipped": lambda at: flip(at / "stage-0002.safetensors"),
    "a state is gone": lambda at: (at / "stage-0000.safetensors").unlink(),
    "a reduction has a bit flipped": lambda at: flip(at / "reduction-0001.safetensors"),
    "the history is truncated": lambda at: cut(at / "history.binpb"),
    "the index is no JSON": lambda at: (at / "checkpoint.json").write_text("{"),
    "the index is truncated": lambda at: cut(at / "checkpoint.json"),
    "the manifest is another one": lambda at: (at / "manifest.json").write_bytes(manifest_of("full", 0).canonical()),
    "the signature is another one": lambda at: flip(at / "checkpoint.signature"),
    "the step is forged": lambda at: forge(at, step=2),
    "the run is forged": lambda at: forge(at, run="0" * 64),
    "a digest is forged": lambda at: forge(at, digests=["0" * 64] * 3),
    "a file lies elsewhere": lambda at: forge(
        at, files={"../stage-0000.safetensors": {"bytes": 1, "sha256": "0" * 64}}
    ),
}


def forge(at: Path, **changes: Any) -> None:
    """Changes the index and signs it: with a key that nobody has delegated."""
    index = json.loads((at / "checkpoint.json").read_text())
    data = json.dumps({**index, **changes}).encode()
    (at / "checkpoint.json").write_bytes(data)
    (at / "checkpoint.signature").write_bytes(Identity.from_seed("stranger").sign(CHECKPOINT_DOMAIN, data))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_taken(
    tmp_path: Path, whole: Path, damage: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    broken = last(folder)
    assert broken.name == "step-00000004-epoch-0"
    DAMAGES[damage](broken)
    with pytest.raises(CheckpointError, match="step-00000004"):
        open_checkpoint(broken)
    assert open_checkpoint(find_checkpoint(folder)).closed == 3
    shutil.rmtree(folder / "step-00000003-epoch-0")
    with pytest.raises(CheckpointError):
        find_checkpoint(folder)


def test_a_state_that_is_replaced_by_another_ones_is_refused(tmp_path: Path, whole: Path) -> None:
    """Also where its trainer has signed it: what replicas said of it is another digest."""
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    at = last(folder)
    index = json.loads((at / "checkpoint.json").read_text())
    data = json.dumps({**index, "digests": ["0" * 64] * 3}).encode()
    (at / "checkpoint.json").write_bytes(data)
    (at / "checkpoint.signature").write_bytes(TRAINER.sign(CHECKPOINT_DOMAIN, data))
    checkpoint = open_checkpoint(at)
    with pytest.raises(CheckpointError, match="digest that replicas reported"):
        checkpoint.read(0)


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "a file"])
def test_what_is_no_checkpoint_is_said(tmp_path: Path, what: str) -> None:
    path = tmp_path / "here"
    if what == "an empty folder":
        path.mkdir()
    elif what == "a file":
        path.write_text("x")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(path)


def test_a_checkpoint_of_another_run_is_not_gone_back_to(whole: Path) -> None:
    other = manifest_of("full", 1)
    assert AtOnce(whole, other, TRAINER, every=1)._latest(Lineage()) is None
    assert AtOnce(whole, manifest_of("lora", 1), TRAINER, every=1)._latest(Lineage()) is not None


WRITES = """
import resource, sys
from pathlib import Path
from swarm_peer.errors import StorageError
from swarm_peer.swarm.checkpoint_folder import CheckpointFolder, open_checkpoint
from swarm_peer.swarm.manifest import parse_manifest
from tests.tiny import TRAINER
source, target, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
checkpoint = open_checkpoint(source)
folder = CheckpointFolder(target, parse_manifest(checkpoint.signed.canonical), TRAINER, every=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    folder.write(checkpoint)
except StorageError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_disk_that_fills_up_leaves_the_last_good_one(tmp_path: Path, whole: Path, share: float) -> None:
    """No file may grow beyond a limit: writing fails in the middle, as on a full disk."""
    source, folder = last(whole), tmp_path / "target"
    shutil.copytree(whole / "step-00000003-epoch-0", folder / "step-00000003-epoch-0")
    largest = max(path.stat().st_size for path in source.iterdir())
    command = [sys.executable, "-c", WRITES, str(source), str(folder), str(int(share * largest))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 3, done.stderr
    assert "cannot be written" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["step-00000003-epoch-0"]
    assert open_checkpoint(find_checkpoint(folder)).closed == 3


def test_a_checkpoint_that_cannot_be_kept_does_not_end_the_run(tmp_path: Path) -> None:
    manifest = manifest_of("lora", 1)
    (tmp_path / "file").write_text("not a folder")
    folder = AtOnce(tmp_path / "file", manifest, TRAINER, every=2)
    report, told = trained(manifest, checkpoints=folder)
    assert len(report["steps"]) == STEPS
    failed = [event for event in told if isinstance(event, events.CheckpointFailed)]
    assert [event.step for event in failed] == [2, 3, 4]
    assert "cannot be written" in failed[0].error


def test_writing_says_what_is_wrong(tmp_path: Path, whole: Path) -> None:
    checkpoint = open_checkpoint(last(whole))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        AtOnce(tmp_path / "file", manifest_of("lora", 1), TRAINER, every=1).write(checkpoint)
