"""What goes wrong between a peer and the server of a checkpoint: the words, and that nothing half-read is kept."""

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from swarm_peer.errors import ModelError, StorageError, UnreachableError
from swarm_peer.swarm.model import http_files, ranges
from swarm_peer.swarm.model.checkpoint import Checkpoint
from swarm_peer.swarm.model.files import FolderFiles
from swarm_peer.swarm.model.http_files import HttpFiles
from swarm_peer.swarm.model.names import pieces
from swarm_peer.swarm.model.ranges import HEAD_BYTES, Patience, RangeClient
from swarm_peer.swarm.model.weight_cache import WeightCache

from .checkpoints import INDEX, SHAPE, SHARDS, write_checkpoint
from .range_server import RangeServer

PART = 4096


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(http_files, "PART_BYTES", PART)
    write_checkpoint(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as server:
        yield server


class Reader:
    """A checkpoint behind a URL, and what the cache holds of it."""

    def __init__(self, url: str, cache: Path) -> None:
        self.url = url
        self.cache = cache
        self.waits: list[float] = []

    @contextmanager
    def opened(self, **limits: float) -> Iterator[Checkpoint]:
        patience = Patience(**limits)  # type: ignore[arg-type]
        client = RangeClient(self.url, patience=patience, pause=self.waits.append)
        files = HttpFiles(client, self.url, WeightCache(self.cache, 1 << 30))
        try:
            yield Checkpoint(files)
        finally:
            files.close()

    def whole(self) -> dict[str, torch.Tensor]:
        with self.opened() as checkpoint:
            return dict(checkpoint.read(pieces(SHAPE)))

    def check_cache(self, folder: Path) -> None:
        """Every part is whole, under its own name, and its bytes are those of a file there."""
        known = b"".join(path.read_bytes() for path in folder.glob("*.safetensors"))
        for path in self.cache.glob("*"):
            start, stop = map(int, path.name.rpartition(".")[2].split("-"))
            content = path.read_bytes()[:-4]
            assert len(content) == stop - start <= max(PART, 8192)
            assert content in known


@pytest.fixture
def reader(server: RangeServer, tmp_path: Path) -> Reader:
    return Reader(server.url, tmp_path / "cache")


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    return dict(Checkpoint(FolderFiles(folder)).read(pieces(SHAPE)))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_what_came_over_the_network_is_counted_and_the_cache_is_not(server: RangeServer, reader: Reader) -> None:
    counts: list[int] = []
    for _ in range(2):
        served = sum(server.served.values())
        with reader.opened() as checkpoint:
            dict(checkpoint.read(pieces(SHAPE)))
            counts.append(checkpoint.files.received)
        assert counts[-1] == sum(server.served.values()) - served
    assert counts[0] > 10 * counts[1] > 0


def test_dropped_connections_are_taken_up_where_they_broke(folder: Path, server: RangeServer, reader: Reader) -> None:
    server.drops = [20_000, 1000, 0]
    assert same(reader.whole(), read_folder(folder))
    assert server.drops == []
    everything = sum(path.stat().st_size for path in folder.iterdir())
    unread = 8 * 4  # the tensor that no Llama needs
    assert server.bytes_served == everything - unread + HEAD_BYTES, "no byte twice, and a first look at the index"
    assert reader.waits == [0.5, 1.0, 2.0]
    reader.check_cache(folder)


def test_a_server_that_is_busy_is_asked_again(folder: Path, server: RangeServer, reader: Reader) -> None:
    server.statuses = {"config.json": [503, 429], SHARDS[0]: [500, 502]}
    assert same(reader.whole(), read_folder(folder))
    assert reader.waits == [0.5, 1.0, 0.5, 1.0]


def test_a_connection_that_keeps_breaking_ends(folder: Path, server: RangeServer, reader: Reader) -> None:
    server.drops = [20_000, *[0] * 10]
    with pytest.raises(UnreachableError, match=r"cannot reach 127\.0\.0\.1:\d+: check the network, or pass a local"):
        reader.whole()
    assert len(reader.waits) == 4
    reader.check_cache(folder)
    server.drops = []
    served = server.bytes_served
    assert same(reader.whole(), read_folder(folder))
    assert server.bytes_served - served < sum((folder / file).stat().st_size for file in SHARDS) - 4 * PART


def test_a_host_that_nobody_answers_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    reader = Reader(f"http://127.0.0.1:{port}/", tmp_path / "cache")
    with pytest.raises(
        UnreachableError, match=rf"cannot reach 127\.0\.0\.1:{port}: check the network, or pass a local"
    ):
        reader.whole()
    assert not reader.cache.exists()


def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reader = Reader(f"http://127.0.0.1:{silent.getsockname()[1]}/", tmp_path / "cache")
        with pytest.raises(UnreachableError, match="2 attempts"), reader.opened(silence=0.05, attempts=2):
            pass


def spoil_path(folder: Path, server: RangeServer, reader: Reader) -> str:
    reader.url += "elsewhere/"
    return r"elsewhere/config\.json: is not there \(404\); check the name of the model"


def spoil_shard(folder: Path, server: RangeServer, reader: Reader) -> str:
    (folder / SHARDS[1]).unlink()
    return rf"{SHARDS[1]}: is not there \(404\)"


def spoil_end(folder: Path, server: RangeServer, reader: Reader) -> str:
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-100])
    return rf"{SHARDS[1]}: is not a whole safetensors file \(its header wants \d+ bytes, the file has \d+\); fetch it"


def spoil_all(folder: Path, server: RangeServer, reader: Reader) -> str:
    (folder / SHARDS[1]).write_bytes(b"")
    return rf"{SHARDS[1]}: is empty"


def spoil_header(folder: Path, server: RangeServer, reader: Reader) -> str:
    path = folder / SHARDS[1]
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    return r"its header is said to have \d+ bytes"


def spoil_family(folder: Path, server: RangeServer, reader: Reader) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForCausalLM"]}))
    return r"config\.json: architectures is .*Qwen2.*biases on queries"


def spoil_index(folder: Path, server: RangeServer, reader: Reader) -> str:
    (folder / INDEX).unlink()
    return r"has neither model\.safetensors nor"


def spoil_right(folder: Path, server: RangeServer, reader: Reader) -> str:
    server.statuses[SHARDS[0]] = [403]
    return r"the server refuses it \(403\); wanted an address that needs no password"


def spoil_status(folder: Path, server: RangeServer, reader: Reader) -> str:
    server.statuses[SHARDS[0]] = [418]
    return r"the server answered 418; check the address"


def spoil_circle(folder: Path, server: RangeServer, reader: Reader) -> str:
    server.redirect = server.url
    return r"cannot be followed: .*redirects"


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_path,
        spoil_shard,
        spoil_end,
        spoil_all,
        spoil_header,
        spoil_family,
        spoil_index,
        spoil_right,
        spoil_status,
        spoil_circle,
    ],
)
def test_what_a_server_has_wrong_is_said_and_not_kept(
    spoil: Callable[[Path, RangeServer, Reader], str], folder: Path, server: RangeServer, reader: Reader
) -> None:
    words = spoil(folder, server, reader)
    with pytest.raises(ModelError, match=words):
        reader.whole()
    reader.check_cache(folder)


@pytest.mark.parametrize("tags", [True, False])
def test_a_shard_that_changes_under_the_reader(folder: Path, server: RangeServer, reader: Reader, tags: bool) -> None:
    server.tags = tags
    with reader.opened() as checkpoint:
        tensors = checkpoint.read(pieces(SHAPE))
        next(tensors)
        for file in SHARDS:
            path = folder / file
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) + (b"" if tags else b"\0"))
        with pytest.raises(ModelError, match=r"changed while it was read: .*; start again"):
            list(tensors)


def test_without_a_version_nothing_is_kept(folder: Path, server: RangeServer, reader: Reader) -> None:
    server.tags = False
    assert same(reader.whole(), read_folder(folder))
    assert not reader.cache.exists()


def test_a_server_without_ranges_serves_small_files_only(
    folder: Path, server: RangeServer, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ranges = False
    assert same(reader.whole(), read_folder(folder))
    monkeypatch.setattr(ranges, "SMALL_BYTES", 100_000)
    served = server.bytes_served
    with pytest.raises(ModelError, match=r"does not serve byte ranges .*download the model and pass its folder"):
        reader.whole()
    assert server.bytes_served >= served


def test_a_full_disk_says_what_to_do(folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader.whole()
    kept = sorted(reader.cache.iterdir())
    for path in kept[::2]:
        path.unlink()

    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("swarm_peer.swarm.model.weight_cache.os.replace", full)
    with pytest.raises(StorageError, match=r"No space left on device; free some space there, set SWARM_PEER_HOME"):
        reader.whole()
    assert sorted(reader.cache.iterdir()) == kept[1::2]
