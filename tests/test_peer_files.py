"""Weights from peers of the run: those of a folder, proven by the manifest's digests, and no other file."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from swarm_peer.errors import ModelError, SwarmError, UnreachableError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.directory import MemoryDirectory
from swarm_peer.simulations.network import MemoryNetwork
from swarm_peer.swarm.directory import Record
from swarm_peer.swarm.exchange import Meter, Pool
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.manifest import Manifest
from swarm_peer.swarm.model.checkpoint import Checkpoint
from swarm_peer.swarm.model.file_serving import is_served, serve_file
from swarm_peer.swarm.model.files import Files, FolderFiles
from swarm_peer.swarm.model.peer_files import PeerFiles
from swarm_peer.swarm.model.weights import stage_base
from swarm_peer.swarm.serving import serve_exchanges

from tests.checkpoints import run_of, write_checkpoint
from tests.processes import LIMIT_SECONDS, home
from tests.test_span import LISTEN, wait_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    with Checkpoint(FolderFiles(folder)) as checkpoint:
        return run_of(checkpoint.weights())


def from_peers(manifest: Manifest, donors: list[Files | None], work: Callable[[PeerFiles], Any]) -> Any:
    """What `work` makes, in a thread, of the files of peers that have these."""

    async def main() -> Any:
        network, directory = MemoryNetwork(latency=(0.0, 0.001)), MemoryDirectory()
        for number, files in enumerate(donors):
            node = network.transport(f"donor {number}")

            async def serve(stream: Any, files: Files | None = files) -> None:
                async def dispatch(incoming: Any, body: Any, payload: bytes) -> None:
                    if isinstance(body, pb.Watch):
                        await Heartbeats(pb.Heartbeat).serve(incoming)
                        return
                    assert isinstance(body, pb.Fetch)
                    await serve_file(incoming, body, files, manifest.run_id)

                await serve_exchanges(stream, Meter(), lambda: 0, dispatch)

            await node.serve(serve)
            record = Record(manifest.run_id, 0, node.peer_id, node.addresses, number, 1)
            await directory.publish(record, 60.0)
        pool = Pool(network.transport("joiner"), Meter())
        files = PeerFiles(manifest, pool, directory, asyncio.get_running_loop())
        try:
            return await asyncio.to_thread(work, files)
        finally:
            pool.close()
            for transport in network.nodes.values():
                await transport.close()

    return asyncio.run(main())


def read(manifest: Manifest, stage: int = 1) -> Callable[[Files], dict[str, torch.Tensor]]:
    def work(files: Files) -> dict[str, torch.Tensor]:
        with Checkpoint(files) as checkpoint:
            return dict(stage_base(manifest, stage, checkpoint))

    return work


@pytest.mark.parametrize("stage", range(3))
def test_what_comes_from_peers_is_what_lies_in_the_folder(folder: Path, manifest: Manifest, stage: int) -> None:
    here = read(manifest, stage)(FolderFiles(folder))
    came = from_peers(manifest, [None, FolderFiles(folder)], read(manifest, stage))
    assert came.keys() == here.keys()
    assert all(torch.equal(came[name], here[name]) for name in here)


def test_files_are_read_in_parts(folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("file_serving", "peer_files"):
        monkeypatch.setattr(f"swarm_peer.swarm.model.{module}.PART_BYTES", 1000)
    here = read(manifest)(FolderFiles(folder))
    came = from_peers(manifest, [FolderFiles(folder), FolderFiles(folder)], read(manifest))
    assert all(torch.equal(came[name], here[name]) for name in here)


def test_no_part_comes_twice_while_tensors_are_read_one_after_the_other(folder: Path, manifest: Manifest) -> None:
    asked: list[tuple[str, int]] = []

    class Counted(FolderFiles):
        def read(self, name: str, start: int, into: memoryview, came: Callable[[int], None]) -> None:
            asked.append((name, start))
            super().read(name, start, into, came)

    def work(files: PeerFiles) -> None:
        read(manifest)(files)
        assert not files._kept, "it has been closed"

    from_peers(manifest, [Counted(folder)], work)
    assert len(asked) == len(set(asked)) <= 4


def test_who_gave_what_was_wrong_is_asked_last(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", seed=1)

    def work(files: PeerFiles) -> list[str]:
        with pytest.raises(ModelError, match="has digest"):
            read(manifest)(files)
        return files._donors

    donors = [FolderFiles(tmp_path / "other"), *[FolderFiles(folder)] * 2]
    assert from_peers(manifest, donors, work) == ["donor 1", "donor 2", "donor 0"]


def test_wrong_weights_are_refused_by_piece(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"layer \d+ has digest"):
        from_peers(manifest, [FolderFiles(tmp_path / "other")], read(manifest))


def test_where_nobody_has_them_a_source_is_asked_for(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--model"):
        from_peers(manifest, [None, FolderFiles(tmp_path / "empty")], read(manifest))
    with pytest.raises(UnreachableError, match="no peer to ask"):
        from_peers(manifest, [], read(manifest))


def test_another_run_gets_nothing(folder: Path, manifest: Manifest) -> None:
    other = manifest.model_copy(update={"nonce": "1" * 32})

    def ask(files: PeerFiles) -> tuple[bool, bool]:
        ours = files.has("config.json")
        files.manifest = other
        return ours, files.has("config.json")

    assert from_peers(manifest, [FolderFiles(folder)], ask) == (True, False)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "tokenizer.json", "a/b.safetensors", "..\\x.safetensors", ".x.safetensors", ""]
)
def test_no_other_file_is_given(name: str, folder: Path, manifest: Manifest) -> None:
    (folder.parent / "secret").write_text("mine")
    (folder / "tokenizer.json").write_text("{}")
    assert not is_served(name)
    assert not from_peers(manifest, [FolderFiles(folder)], lambda files: files.has(name))


def test_who_waits_can_be_told_to_stop(folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_peer.swarm.model.peer_files.POLL_SECONDS", 0.01)

    class StopError(SwarmError):
        pass

    def work(files: PeerFiles) -> None:
        async def never(name: str, part: int) -> tuple[int, bytes]:
            await asyncio.Event().wait()
            raise AssertionError

        def came(count: int) -> None:
            raise StopError

        monkeypatch.setattr(files, "_fetch", never)
        files.read("config.json", 0, memoryview(bytearray(4)), came)

    with pytest.raises(StopError):
        from_peers(manifest, [FolderFiles(folder)], work)


def test_a_volunteer_without_a_model_gets_its_weights_from_the_swarm(folder: Path) -> None:
    with home() as place:
        run = place.folder / "run.toml"
        run.write_text(
            f'[model]\nname = "{folder}"\nstages = 2\nbase = "nf4"\n[train]\nsteps = 2\nbatch = 2\n'
            "[data]\nsequence_length = 16\nheldout_tokens = 32\n",
            encoding="utf-8",
        )
        write_tokenizer(folder)
        coordinator = place.start("swarm-coordinator", "start", str(run), *LISTEN)
        wait_for(coordinator, "    swarm-peer join --run")
        joined = []
        for name, flags in (("one", ("--model", str(folder))), ("two", ())):
            key = ("--identity", str(place.folder / f"{name}.key"), "--stages", "1", "--threads", "1")
            joined.append(place.start("swarm-peer", "join", *flags, *key, *LISTEN))
            wait_for(joined[-1], "ready")
        said = coordinator.communicate(timeout=LIMIT_SECONDS)[0]
        assert coordinator.returncode == 0, said
        assert "4 microbatches, lost 0, duplicated 0" in said
        for process in joined:
            assert process.wait(LIMIT_SECONDS) == 0
            process.communicate()


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"The": 0, "line": 1, "says": 2}, unk_token="line"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
