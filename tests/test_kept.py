"""What visits have sent: in memory, then on disk, then gone, in that order; and a file that leaves nothing behind."""

import asyncio
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from swarm_peer.errors import StorageError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.spill import MemorySpill
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.extents import Extents
from swarm_peer.swarm.host import StageHost
from swarm_peer.swarm.kept import KeptStore
from swarm_peer.swarm.spill_file import DiskSpill
from swarm_peer.swarm.visits import VisitKey

from tests.chaos.checks import check_promises
from tests.chaos.schedules import Schedule, kill_at
from tests.chaos.virtual import Chaos

OUTPUT, INPUT_GRADIENT = pb.Fetch.OUTPUT, pb.Fetch.INPUT_GRADIENT


def visit(step: int, index: int = 0) -> VisitKey:
    return VisitKey(0, pb.TRAIN, step, index)


# ---- space in a file


@pytest.mark.parametrize("seed", range(20))
def test_pieces_never_overlap_and_all_space_comes_back(seed: int) -> None:
    draw = random.Random(seed)
    limit = 1000
    space = Extents(limit)
    taken: list[tuple[int, int]] = []
    refused = 0
    for _ in range(500):
        if taken and draw.random() < 0.45:
            space.give_back(*taken.pop(draw.randrange(len(taken))))
            continue
        length = draw.randint(1, 200)
        offset = space.take(length)
        if offset is None:
            refused += 1
            used = [False] * limit
            for begin, size in taken:
                used[begin : begin + size] = [True] * size
            assert "." * length not in "".join("x" if is_used else "." for is_used in used)
            continue
        taken.append((offset, length))
        ordered = sorted(taken)
        assert all(left[0] + left[1] <= right[0] for left, right in pairwise(ordered))
        assert ordered[-1][0] + ordered[-1][1] <= space.end <= limit
    assert refused
    for piece in taken:
        space.give_back(*piece)
    assert (space.end, space.take(limit)) == (0, 0)


# ---- the store


def test_the_newest_are_in_memory_older_ones_on_disk_the_oldest_gone() -> None:
    async def body() -> None:
        store = KeptStore(memory_bytes=20, spill_bytes=30, file=MemorySpill())
        for step in range(7):
            await store.put(visit(step), OUTPUT, bytes([step]) * 10)
        assert (store.in_memory, store.on_disk, store.spilled, store.evicted) == (20, 30, 5, 2)
        found = [await store.get(visit(step), OUTPUT) for step in range(7)]
        assert found == [None, None, *(bytes([step]) * 10 for step in range(2, 7))]
        assert await store.get(visit(6), INPUT_GRADIENT) is None

    run(body())


def test_without_a_file_and_for_what_is_too_large_for_it_the_oldest_go_at_once() -> None:
    async def body() -> None:
        for file, spill_bytes in ((None, 1000), (MemorySpill(), 9)):
            store = KeptStore(10, spill_bytes, file)
            await store.put(visit(0), OUTPUT, bytes(10))
            await store.put(visit(1), OUTPUT, bytes(10))
            assert (store.in_memory, store.on_disk, store.evicted) == (10, 0, 1)
            assert [await store.get(visit(step), OUTPUT) for step in range(2)] == [None, bytes(10)]

    run(body())


def test_memory_is_within_its_bound_again_when_put_returns_and_nothing_is_missing_meanwhile() -> None:
    async def body() -> None:
        store = KeptStore(10, 1000, MemorySpill(seconds=1.0))
        puts = [asyncio.ensure_future(store.put(visit(step), OUTPUT, bytes([step]) * 10)) for step in range(4)]
        done: set[int] = set()
        while len(done) < len(puts):
            await asyncio.sleep(0.5)
            done = {step for step, put in enumerate(puts) if put.done()}
            assert store.in_memory <= 10 * (1 + len(puts) - len(done))
            assert [await store.get(visit(step), OUTPUT) for step in range(4)] == [bytes([n]) * 10 for n in range(4)]
        assert (store.in_memory, store.spilled) == (10, 3)

    run(body())


def test_what_is_closed_while_it_is_being_written_leaves_nothing() -> None:
    async def body() -> None:
        store = KeptStore(0, 1000, MemorySpill(seconds=1.0))
        putting = asyncio.ensure_future(store.put(visit(0), OUTPUT, bytes(10)))
        await asyncio.sleep(0.5)
        store.close(0, 1)
        await putting
        assert (store.in_memory, store.on_disk, store.evicted) == (0, 0, 0)
        assert await store.get(visit(0), OUTPUT) is None

    run(body())


def test_closing_and_dropping_let_go_of_memory_and_disk() -> None:
    async def body() -> None:
        file = MemorySpill()
        store = KeptStore(20, 1000, file)
        for step in range(3):
            for kind in (OUTPUT, INPUT_GRADIENT):
                await store.put(visit(step), kind, bytes(10))
        store.close(0, 1)
        assert [await store.get(visit(0), kind) for kind in (OUTPUT, INPUT_GRADIENT)] == [None, None]
        assert await store.get(visit(1), OUTPUT) == bytes(10)
        store.drop(visit(2))
        assert await store.get(visit(2), INPUT_GRADIENT) is None
        assert store.in_memory == 0
        store.clear()
        assert (store.on_disk, len(file._data)) == (0, 0)

    run(body())


def test_a_full_disk_means_eviction_until_a_step_is_closed() -> None:
    async def body() -> None:
        file = MemorySpill(capacity=25)
        store = KeptStore(10, 1000, file)
        for step in range(5):
            await store.put(visit(step), OUTPUT, bytes([step]) * 10)
        # Two fit on the disk; the third did not, and from then on older ones make room.
        assert (store.in_memory, store.on_disk) == (10, 20)
        assert [await store.get(visit(step), OUTPUT) is not None for step in range(5)] == [
            False,
            True,
            False,
            True,
            True,
        ]
        file.capacity = 1000
        store.close(0, 1)
        for step in range(5, 8):
            await store.put(visit(step), OUTPUT, bytes(10))
        assert store.on_disk > 20

    run(body())


def test_what_comes_back_changed_from_the_disk_is_not_used() -> None:
    async def body() -> None:
        file = MemorySpill()
        store = KeptStore(0, 1000, file)
        await store.put(visit(0), OUTPUT, bytes(10))
        file._data[3] ^= 1
        assert await store.get(visit(0), OUTPUT) is None
        assert (store.evicted, store.on_disk) == (1, 0)

    run(body())


# ---- a real disk


@asynccontextmanager
async def disk(folder: Path) -> AsyncIterator[DiskSpill]:
    file = DiskSpill(folder)
    try:
        yield file
    finally:
        file.close()
        file.close()


def on_a_disk(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(body)


def test_the_file_is_the_owner_s_and_has_no_name(tmp_path: Path) -> None:
    async def body() -> None:
        async with disk(tmp_path / "spill") as file:
            store = KeptStore(0, 1 << 20, file)
            data = [os.urandom(100_000) for _ in range(3)]
            for step, sent in enumerate(data):
                await store.put(visit(step), OUTPUT, sent)
            assert [await store.get(visit(step), OUTPUT) for step in range(3)] == data
            found = os.fstat(file._file)
            assert (stat.S_IMODE(found.st_mode), found.st_nlink, found.st_size) == (0o600, 0, 300_000)
            assert list((tmp_path / "spill").iterdir()) == []
            assert not os.get_inheritable(file._file)
            store.close(0, 3)
            await file.write(0, b"")
            assert os.fstat(file._file).st_size == 0

    on_a_disk(body())


def test_a_disk_that_takes_no_more_is_a_typed_error_and_an_eviction(tmp_path: Path) -> None:
    async def body() -> None:
        async with disk(tmp_path) as file:
            store = KeptStore(0, 1 << 20, file)
            await store.put(visit(0), OUTPUT, bytes(4096))
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
            try:
                with pytest.raises(StorageError, match="cannot be kept on disk"):
                    await file.write(4096, bytes(4096))
                await store.put(visit(1), OUTPUT, bytes(4096))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert store.evicted == 1
            assert await store.get(visit(0), OUTPUT) == bytes(4096)

    on_a_disk(body())


def test_a_folder_that_cannot_be_written_and_data_that_changed_are_typed_errors(tmp_path: Path) -> None:
    async def body() -> None:
        blocked = tmp_path / "a file"
        blocked.write_text("")
        async with disk(blocked / "folder") as file:
            with pytest.raises(StorageError):
                await file.write(0, b"data")
            with pytest.raises(StorageError):
                await file.read(0, 4, 0)
        async with disk(tmp_path) as file:
            checksum = await file.write(0, b"data")
            assert await file.read(0, 4, checksum) == b"data"
            await file.write(0, b"date")
            with pytest.raises(StorageError, match="other bytes"):
                await file.read(0, 4, checksum)
            with pytest.raises(StorageError, match="other bytes"):
                await file.read(0, 400, checksum)

    on_a_disk(body())


KILLED = """
import asyncio, os, sys
from pathlib import Path
from swarm_peer.swarm.spill_file import DiskSpill

async def main():
    file = DiskSpill(Path(sys.argv[1]))
    await file.write(0, bytes(1 << 20))
    print("written", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


def test_a_killed_process_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


# ---- in a run


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize(("spilled", "disk"), [(0, 0), (1, 1), (16, 16), (16, 2)])
@pytest.mark.parametrize("stage", range(3))
def test_a_run_is_exact_whatever_was_evicted(
    monkeypatch: pytest.MonkeyPatch, stage: int, spilled: int, disk: int, staleness: int
) -> None:
    """A killed peer's work is run again with the help of neighbours that keep nothing, or only on disk."""
    stores: list[KeptStore] = []
    begin = KeptStore.__init__

    def remember(self: KeptStore, *arguments: Any) -> None:
        begin(self, *arguments)
        stores.append(self)

    again = 0
    attachable = StageHost._attachable

    async def count(self: StageHost, key: VisitKey, *arguments: Any) -> Any:
        nonlocal again
        known = await attachable(self, key, *arguments)
        finished = self.visits.get(key)
        again += known is None and finished is not None and self.gradients.holds(key.epoch, key.step, key.index)
        return known

    monkeypatch.setattr(KeptStore, "__init__", remember)
    monkeypatch.setattr(StageHost, "_attachable", count)
    faults = (kill_at("held", stage, step=1, nth=3), kill_at("held", stage, step=3, nth=3))
    schedule = Schedule(2, staleness, 3, standby=False, faults=faults, visits=1, spilled=spilled, disk=disk)
    chaos = Chaos(schedule)
    check_promises(chaos.simulate(), schedule)
    assert len(chaos.done) == 2
    assert bool(sum(store.evicted for store in stores)) == (disk < 16)
    # With room for all on the disk nothing is computed again but what was lost; with none, the neighbours' too.
    assert again == 0 if disk == 16 else again > 0 or disk > 0
    assert bool(sum(store.spilled for store in stores)) == bool(disk)
