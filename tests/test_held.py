"""The base of a stage as it is held, and on disk: what was kept is what would be made again, or is made again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from swarm_peer.compression.linear import QuantizedLinear
from swarm_peer.swarm.manifest import Manifest, Weights
from swarm_peer.swarm.model.held import HeldStore
from swarm_peer.swarm.model.names import stage_base_shapes
from swarm_peer.swarm.model.weights import random_base
from swarm_peer.swarm.torch_backend import TorchBackend
from torch import Tensor

from tests.tiny import tiny_manifest

CPU = torch.device("cpu")


def manifest_of(base: str, digest: str = "1" * 64) -> Manifest:
    """A run of some checkpoint: what is read is the random base all the same."""
    return tiny_manifest(base=base).model_copy(update={"weights": Weights(headers=digest)})


class Source:
    """Gives a stage's tensors, and counts how often."""

    def __init__(self, manifest: Manifest, stage: int = 1) -> None:
        self.manifest, self.stage, self.reads = manifest, stage, 0

    def __call__(self) -> Iterator[tuple[str, Tensor]]:
        self.reads += 1
        return random_base(7, self.manifest.shape, stage_base_shapes(self.manifest, self.stage))


def pieces(part: Any) -> list[Tensor]:
    return list(part.state_dict().values()) if isinstance(part, QuantizedLinear) else [part]


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_what_was_made_is_kept_bit_for_bit(base: str, tmp_path: Path) -> None:
    manifest = manifest_of(base)
    source = Source(manifest)
    store = HeldStore(tmp_path)
    made = store.get_or_make(manifest, 1, CPU, source)
    kept = HeldStore(tmp_path).get_or_make(manifest, 1, CPU, source)
    assert source.reads == 1
    assert made.keys() == kept.keys()
    for name, part in made.items():
        assert type(part) is type(kept[name])
        for one, other in zip(pieces(part), pieces(kept[name]), strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
    assert TorchBackend(manifest, 1, kept).lengths == TorchBackend(manifest, 1, source()).lengths


def test_another_run_another_cut_and_another_format_have_files_of_their_own(tmp_path: Path) -> None:
    store = HeldStore(tmp_path)
    for manifest, stage in (
        (manifest_of("nf4"), 1),
        (manifest_of("nf4"), 2),
        (manifest_of("int8"), 1),
        (manifest_of("nf4", "2" * 64), 1),
    ):
        source = Source(manifest, stage)
        store.get_or_make(manifest, stage, CPU, source)
        assert source.reads == 1
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("harm", ["cut", "changed", "emptied"])
def test_a_file_that_was_harmed_is_made_again(harm: str, tmp_path: Path) -> None:
    manifest = manifest_of("nf4")
    source = Source(manifest)
    store = HeldStore(tmp_path)
    store.get_or_make(manifest, 1, CPU, source)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if harm == "changed":
        content[-1] ^= 1
    file.write_bytes({"cut": content[:-9], "changed": content, "emptied": b""}[harm])
    store.get_or_make(manifest, 1, CPU, source)
    store.get_or_make(manifest, 1, CPU, source)
    assert source.reads == 2


def test_the_least_recently_used_is_given_up(tmp_path: Path) -> None:
    manifest = manifest_of("nf4")
    sources = [Source(manifest, stage) for stage in range(3)]
    HeldStore(tmp_path).get_or_make(manifest, 0, CPU, sources[0])
    size = next(tmp_path.iterdir()).stat().st_size
    store = HeldStore(tmp_path, int(2.5 * size))
    store.get_or_make(manifest, 1, CPU, sources[1])
    store.get_or_make(manifest, 0, CPU, sources[0])
    store.get_or_make(manifest, 2, CPU, sources[2])
    store.get_or_make(manifest, 0, CPU, sources[0])
    assert [source.reads for source in sources] == [1, 1, 1]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2.5 * size


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    manifest = manifest_of("nf4")
    source = Source(manifest)
    for _ in range(2):
        HeldStore(tmp_path / "file").get_or_make(manifest, 1, CPU, source)
    assert source.reads == 2


def test_what_took_no_work_is_not_kept(tmp_path: Path) -> None:
    for manifest in (tiny_manifest(base="nf4"), manifest_of("bf16"), manifest_of("auto")):
        HeldStore(tmp_path).get_or_make(manifest, 1, CPU, Source(manifest))
        assert not list(tmp_path.iterdir())
