"""The cache of remote weights: what it keeps, what goes first, and what other processes see of it."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from swarm_peer.errors import StorageError, UsageError
from swarm_peer.swarm.model import weight_cache
from swarm_peer.swarm.model.weight_cache import DEFAULT_LIMIT, SPARE_BYTES, WeightCache, limit_from_environment

SIZE = 1000
STORED = SIZE + 4
KEY = "0" * 32


def content(number: int) -> memoryview:
    return memoryview(bytes([number]) * SIZE)


def loaded(cache: WeightCache, start: int) -> bytes | None:
    into = bytearray(SIZE)
    return bytes(into) if cache.load(KEY, start, memoryview(into)) else None


def aged(cache: WeightCache, ages: dict[int, int]) -> None:
    for start, age in ages.items():
        os.utime(cache.folder / f"{KEY}.{start}-{start + SIZE}", (age, age))


def starts(cache: WeightCache) -> set[int]:
    return {int(path.name.split(".")[1].split("-")[0]) for path in cache.folder.iterdir()}


@pytest.fixture
def cache(tmp_path: Path) -> WeightCache:
    return WeightCache(tmp_path / "weights", 10**6)


def test_a_part_comes_back_to_another_reader(cache: WeightCache) -> None:
    cache.store(KEY, 5, content(1))
    assert loaded(WeightCache(cache.folder, 0), 5) == bytes(content(1))
    assert loaded(cache, 6) is None
    cache.forget(KEY, 5, SIZE)
    assert loaded(cache, 5) is None


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"\1" + data[1:], lambda data: data + b"\0"])
def test_a_damaged_part_is_none_and_goes(cache: WeightCache, damage: object) -> None:
    cache.store(KEY, 0, content(7))
    path = next(cache.folder.iterdir())
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert loaded(cache, 0) is None
    assert list(cache.folder.iterdir()) == []


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    before = WeightCache(tmp_path, 3 * STORED)
    for start in (1, 2, 3):
        before.store(KEY, start, content(start))
    aged(before, {1: 100, 2: 300, 3: 200})
    reader = WeightCache(tmp_path, 3 * STORED)
    assert loaded(reader, 1) == bytes(content(1))
    for start in (4, 5, 6):
        reader.store(KEY, start, content(start))
        assert len(starts(reader)) == 3
    assert starts(reader) == {1, 4, 5}, "3, then 2; what this reader used stays, and what does not fit is not kept"


def test_what_another_process_reads_stays(tmp_path: Path) -> None:
    WeightCache(tmp_path, 10**6).store(KEY, 1, content(1))
    cache = WeightCache(tmp_path, STORED)
    with (tmp_path / f"{KEY}.1-{1 + SIZE}").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        cache.store(KEY, 2, content(2))
        assert starts(cache) == {1}
    cache.store(KEY, 2, content(2))
    assert starts(cache) == {2}


def test_a_part_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path / "weights", STORED - 1)
    cache.store(KEY, 0, content(0))
    assert not cache.folder.exists()


def test_what_a_dead_writer_left_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    dead, living = tmp_path / ".writing-dead", tmp_path / ".writing-living"
    dead.write_bytes(b"half")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        WeightCache(tmp_path, 10**6).store(KEY, 0, content(0))
        assert living.exists()
        assert not dead.exists()


def test_a_disk_with_little_left_is_said_and_older_parts_go_first(
    cache: WeightCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    room = {"free": SPARE_BYTES + 2 * STORED}

    def disk_usage(folder: Path) -> usage:
        return usage(room["free"] - sum(path.stat().st_size for path in Path(folder).iterdir()))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    for start in (1, 2):
        cache.store(KEY, start, content(start))
    again = WeightCache(cache.folder, cache.limit)
    again.store(KEY, 3, content(3))
    assert len(starts(again)) == 2
    assert 3 in starts(again)
    room["free"] = SPARE_BYTES
    with pytest.raises(StorageError, match=r"the disk has \d+ MiB left.*SWARM_PEER_HOME.*SWARM_PEER_CACHE_GB=0"):
        again.store(KEY, 4, content(4))
    assert starts(again) == {3}


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        WeightCache(tmp_path / "file" / "weights", 10**6).store(KEY, 0, content(0))


def test_the_limit_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWARM_PEER_CACHE_GB", raising=False)
    assert limit_from_environment() == DEFAULT_LIMIT
    monkeypatch.setenv("SWARM_PEER_CACHE_GB", "1.5")
    assert WeightCache(Path("nowhere")).limit == 1_500_000_000
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("SWARM_PEER_CACHE_GB", wrong)
        with pytest.raises(UsageError, match="SWARM_PEER_CACHE_GB is"):
            limit_from_environment()


WRITER = """
import sys
from pathlib import Path
from swarm_peer.swarm.model.weight_cache import WeightCache
cache, size = WeightCache(Path(sys.argv[1]), 20 * 1004), 1000
for turn in range(30):
    for start in range(30):
        into = bytearray(size)
        found = cache.load("0" * 32, start, memoryview(into))
        assert not found or into == bytes([start]) * size, start
        cache.store("0" * 32, start, memoryview(bytes([start]) * size))
    cache = WeightCache(Path(sys.argv[1]), 20 * 1004)
"""


def test_several_processes_read_and_make_room_at_once(tmp_path: Path) -> None:
    """They agree on whole parts only, and leave no more than the limit and no half-written file."""
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(weight_cache._TEMPORARY)]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * 20 * 1004
