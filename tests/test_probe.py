"""What a probe reads of a machine, from files that say so; that it measures at all; what join tells and refuses."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from swarm_peer.errors import FittingError, UsageError
from swarm_peer.peer.cli import main
from swarm_peer.peer.hosting import Hosting, span_like
from swarm_peer.peer.probe import (
    all_memory,
    devices_of,
    free_disk,
    free_memory,
    held_memory,
    link_of,
    measured_flops,
    standing,
    ticks,
    usable_cores,
)
from swarm_peer.swarm.budget import PROCESS_BYTES, budget
from swarm_peer.swarm.machine import Device, Link, Machine, Overrides, Ticks
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.work import pace

from tests.shapes import LLAMA_65B
from tests.tiny import tiny_manifest

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"
AVAILABLE = 8_000_000 * 1024


def system(root: Path, **files: str) -> Path:
    """A folder with the system's files; `/` in a name is written `__`."""
    for name, text in {"proc__meminfo": MEMINFO, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert free_memory(system(tmp_path)) == AVAILABLE


def test_memory_within_a_group_of_version_2(tmp_path: Path) -> None:
    """The narrowest of the groups above counts; what its page cache holds can be dropped."""
    root = system(
        tmp_path,
        **{
            "proc__self__cgroup": "0::/outer/inner\n",
            "sys__fs__cgroup__outer__memory.max": "3000000000\n",
            "sys__fs__cgroup__outer__memory.current": "1500000000\n",
            "sys__fs__cgroup__outer__memory.stat": "anon 1000000000\ninactive_file 500000000\n",
            "sys__fs__cgroup__outer__inner__memory.max": "max\n",
            "sys__fs__cgroup__outer__inner__memory.current": "1500000000\n",
        },
    )
    assert free_memory(root) == 2_000_000_000
    (root / "sys/fs/cgroup/outer/memory.max").write_text("max")
    assert free_memory(root) == AVAILABLE


def test_all_memory_is_what_the_narrowest_group_has(tmp_path: Path) -> None:
    root = system(tmp_path, proc__self__statm="900 200 100 1 0 50 0\n")
    assert all_memory(root) == 16_000_000 * 1024
    assert held_memory(root) == 200 * os.sysconf("SC_PAGE_SIZE")
    system(
        tmp_path,
        **{
            "proc__self__cgroup": "0::/job\n",
            "sys__fs__cgroup__job__memory.max": "3000000000\n",
            "sys__fs__cgroup__job__memory.current": "1500000000\n",
        },
    )
    assert all_memory(root) == 3_000_000_000


STAT = "{} ({}) S {} 1 1 0 -1 4194560 1 2 3 4 {} {} {} {} 20 0 9 0 100 1 1\n"


def test_processor_time_is_split_between_this_process_and_others(tmp_path: Path) -> None:
    """A child, its child, one that has ended, and a stranger with a name that looks like fields."""
    root = system(
        tmp_path,
        proc__stat="cpu  5000 100 900 40000 200 30 70 500 77 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n",
        proc__1__stat=STAT.format(1, "init", 0, 900, 90, 5000, 500),
        proc__20__stat=STAT.format(20, "swarm-peer", 1, 1000, 200, 30, 4),
        proc__21__stat=STAT.format(21, "p2pd) S 1 (", 20, 100, 20, 0, 0),
        proc__22__stat=STAT.format(22, "sh", 21, 7, 3, 0, 0),
        proc__23__stat=STAT.format(23, "x) S 20 1 (", 1, 50_000, 50_000, 0, 0),
        proc__24__stat="24 (gone",
    )
    assert ticks(root, 20) == Ticks(every=46_800, ran=6_100, own=1_364)
    (root / "proc/stat").unlink()
    assert ticks(root, 20) is None


def test_processor_time_of_this_machine_goes_up() -> None:
    before = ticks()
    sum(number * number for number in range(3_000_000))
    after = ticks()
    if before is None or after is None:
        pytest.skip("no /proc here")
    assert 0 < after.own - before.own <= after.ran - before.ran <= after.every - before.every


def test_memory_within_a_group_of_version_1(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        **{
            "proc__self__cgroup": "9:memory:/job\n8:cpu,cpuacct:/job\n",
            "sys__fs__cgroup__memory__job__memory.limit_in_bytes": "4000000000",
            "sys__fs__cgroup__memory__job__memory.usage_in_bytes": "1000000000",
            "sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712",
            "sys__fs__cgroup__memory__memory.usage_in_bytes": "2000000000",
            "sys__fs__cgroup__cpu,cpuacct__job__cpu.cfs_quota_us": "100000",
            "sys__fs__cgroup__cpu,cpuacct__job__cpu.cfs_period_us": "100000",
        },
    )
    assert free_memory(root) == 3_000_000_000
    assert usable_cores(root) == 1


def test_what_the_process_holds_counts_as_its_own(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    assert free_memory(system(tmp_path, proc__self__statm="100 50 10 1 0 20 0")) == AVAILABLE + 50 * page


def test_memory_of_a_system_without_proc(tmp_path: Path) -> None:
    assert free_memory(tmp_path) > 1 << 20


def test_cores_within_a_quota(tmp_path: Path) -> None:
    assert usable_cores(system(tmp_path)) >= 1
    root = system(tmp_path, **{"proc__self__cgroup": "0::/g\n", "sys__fs__cgroup__g__cpu.max": "50000 100000\n"})
    assert usable_cores(root) == 1
    (root / "sys/fs/cgroup/g/cpu.max").write_text("max 100000")
    assert usable_cores(root) == usable_cores()


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.1)
    assert free_disk(tmp_path) > 0


@pytest.mark.parametrize("base", ["nf4", "int8", "fp32"])
def test_a_device_has_a_pace(base: str) -> None:
    torch.set_num_threads(1)
    assert 1e7 < measured_flops(TINY, base, "fp32", "cpu", seconds=0.05) < 1e15


def test_a_block_that_is_too_large_is_measured_in_part() -> None:
    """A 65B block has 0.8 billion weights; 64 MiB of them are made."""
    torch.set_num_threads(1)
    assert measured_flops(LLAMA_65B, "fp32", "fp32", "cpu", seconds=0.05) > 1e7


def test_the_link_is_what_samples_say() -> None:
    guess = Link(1e6, 2e6, 0.5)
    assert link_of([], [], [], guess) == guess
    up = [(1_000_000, 1.0), (1_000_000, 0.5), (1_000_000, 4.0), (0, 1.0), (5, 0.0)]
    assert link_of(up, [], [0.1, 0.2, 0.9], guess) == Link(16e6, 2e6, 0.2)


def test_probe_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_peer.peer.probe_command.probe", lambda *_, **__: standing("cpu", Path("/"), 2))
    assert main(["probe", "--bandwidth", "20/500", "--memory", "600MB", "--length", "64"]) == 0
    printed = capsys.readouterr().out
    assert "RAM 600 MB" in printed
    assert "20 Mbit/s up, 500 down" in printed
    assert "cut into 6" in printed
    assert main(["probe", "--json", "--memory", "100MB"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ram_bytes"] == 100_000_000
    assert found["hosting"][0]["stages"] == 0
    assert "there are 100 MB" in found["hosting"][0]["problem"]


@pytest.mark.parametrize(
    "flags", [["--memory", "lots"], ["--bandwidth", "fast"], ["--stages", "0"], ["--threads", "0"], ["--device", "tpu"]]
)
def test_flags_that_cannot_be(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_peer.peer.probe_command.probe", lambda *_, **__: standing("cpu", Path("/"), 2))
    assert main(["probe", *flags]) == 2
    assert flags[0].lstrip("-") in capsys.readouterr().err


def test_a_budget_is_told_before_a_stage_is_loaded() -> None:
    said: list[str] = []
    hosting = Hosting("tiny", tell=said.append)
    assert hosting.backend(tiny_manifest(), 1, device="cpu").lengths["stage"] > 0
    assert said[0].startswith("memory of stage 1 on cpu")
    assert said[-1].endswith("fits")
    said.clear()
    hosting.backend(tiny_manifest(), 2, device="cpu")
    assert said[0].startswith("memory of stages 1 to 2 on cpu")


def test_how_long_a_visit_takes_is_told_where_it_may_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_peer.peer.hosting.measured_flops", lambda *_: 1e9)
    said: list[str] = []
    said_by_owner = Overrides(device="cpu", bandwidth=(20e6, 500e6))
    Hosting("tiny", said_by_owner, said.append, measures=True).backend(tiny_manifest(), 1, device="cpu")
    assert "at 1 GFLOP/s" in said[-1]
    assert said[-1].endswith("down at 20/500 Mbit/s (as you say)")


def test_devices_share_the_ram_and_the_link_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that compute in the machine's own memory: what one takes, the other has not."""
    alone = budget(tiny_manifest(), range(1, 2), slots=2, recompute=True).ram(Device("cpu", None, 1.0))
    monkeypatch.setattr("swarm_peer.peer.hosting.measured_flops", lambda *_: 1e9)
    said: list[str] = []

    def hosting(ram: int) -> Hosting:
        monkeypatch.setattr(
            "swarm_peer.peer.hosting.standing", lambda name, disk: Machine(ram, (Device(name, None, 1.0),))
        )
        found = Hosting("tiny", Overrides(bandwidth=(20e6, 500e6)), said.append, measures=True)
        found.backend(tiny_manifest(), 1, device="cpu")
        return found

    hosting(2 * alone).backend(tiny_manifest(), 2, device="cpu:0")
    both = pace(tiny_manifest(), range(1, 3), 1e9, Link(20e6, 500e6), recompute=False)
    assert f"{both.up:.2g} s up and {both.down:.2g} s down, all devices together at 20/500 Mbit/s" in said[-1]
    narrow = hosting(alone + (alone - PROCESS_BYTES) // 2)
    with pytest.raises(FittingError):
        narrow.backend(tiny_manifest(), 2, device="cpu:0")
    narrow.release(1)
    narrow.backend(tiny_manifest(), 2, device="cpu:0")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda", ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda:2,cuda:0", ("cuda:0", "cuda:2")),
        ("cpu", ("cpu",)),
        ("cuda:1, cpu", ("cuda:1", "cpu")),
    ],
)
def test_a_peer_computes_on_the_devices_that_its_owner_means(
    said: str | None, meant: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert devices_of(said) == meant


@pytest.mark.parametrize("said", ["tpu", "cuda:3", "cuda:0,", "cuda:0,cuda:9"])
def test_a_device_that_is_not_there_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    with pytest.raises(UsageError, match="this machine has cuda:0, cuda:1, cuda:2, cpu"):
        devices_of(said)


def test_without_cuda_a_peer_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert devices_of(None) == ("cpu",)


def test_what_does_not_fit_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_peer.peer.hosting.stage_base", lambda *_: pytest.fail("weights were read"))
    said: list[str] = []
    hosting = Hosting("tiny", Overrides(memory="200MB", device="cpu"), said.append)
    with pytest.raises(FittingError, match="200 MB"):
        hosting.backend(tiny_manifest(), 1, device="cpu")
    assert not said


def test_memory_that_runs_out_while_loading_is_as_if_it_had_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(*_: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("swarm_peer.peer.hosting.stage_base", runs_out)
    with pytest.raises(FittingError, match="memory ran out while stage 1 was loaded"):
        Hosting("tiny").backend(tiny_manifest(), 1, device="cpu")


@pytest.mark.parametrize(
    ("stages", "span"),
    [([1], range(1, 2)), ([0, 2], range(2)), ([4, 1], range(3, 5)), ([2, 3], range(2, 4)), ([0, 4], range(2))],
)
def test_the_span_that_is_as_large(stages: list[int], span: range) -> None:
    assert span_like(stages, 5) == span
