"""What a machine has moved: by day and run, over restarts and damage, counted by several processes together."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm_peer.errors import StorageError, UsageError
from swarm_peer.peer.traffic import KEPT_DAYS, KEPT_RUNS, Cap, Counts, Traffic

DAY = 86_400.0
RUN, MONTH, TODAY = Cap(1, ""), Cap(1, "month"), Cap(1, "day")


class Calendar:
    """Days of UTC, from 2026-05-30 on."""

    def __init__(self) -> None:
        self.now = 1_780_142_400.0
        assert time.strftime("%Y-%m-%d", time.gmtime(self.now)) == "2026-05-30"

    def __call__(self) -> float:
        return self.now


def traffic_of(folder: Path, calendar: Calendar, run: str = "a", told: list[str] | None = None) -> Traffic:
    return Traffic(folder, run, calendar, time.gmtime, [].append if told is None else told.append)


@pytest.mark.parametrize(
    ("text", "cap", "written"),
    [
        ("50GB", Cap(50 * 10**9), "50 GB"),
        ("50GB/month", Cap(50 * 10**9, "month"), "50 GB a month"),
        ("1.5 GiB / day", Cap(3 << 29, "day"), "1.61 GB a day"),
        ("800MB/DAY", Cap(800 * 10**6, "day"), "800 MB a day"),
        ("100", Cap(100 * 10**9), "100 GB"),
    ],
)
def test_caps_as_people_write_them(text: str, cap: Cap, written: str) -> None:
    assert (Cap.parse(text), str(cap)) == (cap, written)


@pytest.mark.parametrize("text", ["", "/day", "50%", "50GB/week", "50GB/day/month", "-1GB", "0GB", "much", "8iB"])
def test_what_is_no_cap(text: str) -> None:
    with pytest.raises(UsageError, match="data cap is"):
        Cap.parse(text)


def test_over_the_end_of_a_month_and_a_restart(tmp_path: Path) -> None:
    calendar = Calendar()
    first = traffic_of(tmp_path / "state", calendar)
    first.add(100)
    assert [first.used(cap) for cap in (RUN, MONTH, TODAY)] == [100, 100, 100]
    first.save()
    first.add(11)
    first.save()
    calendar.now += DAY
    again = traffic_of(tmp_path / "state", calendar)
    again.save()
    assert [again.used(cap) for cap in (RUN, MONTH, TODAY)] == [111, 111, 0]
    again.add(1000)
    assert [again.used(cap) for cap in (RUN, MONTH, TODAY)] == [1111, 1111, 1000]
    calendar.now += DAY  # 1 June, nothing written yet
    assert [again.used(cap) for cap in (RUN, MONTH, TODAY)] == [1111, 0, 0]
    again.add(5)
    again.save()
    assert [again.used(cap) for cap in (RUN, MONTH, TODAY)] == [1116, 5, 5]
    other = traffic_of(tmp_path / "state", calendar, run="b")
    other.save()
    assert [other.used(cap) for cap in (RUN, MONTH, TODAY)] == [0, 5, 5]
    assert json.loads(other.path.read_text())["days"] == {"2026-05-30": 111, "2026-05-31": 1000, "2026-06-01": 5}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000), st.sampled_from(["add", "save", "restart"]))))
def test_nothing_that_was_saved_is_lost(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[int, int, str]]
) -> None:
    folder, calendar, saved, fresh = tmp_path_factory.mktemp("state"), Calendar(), 0, 0
    traffic = traffic_of(folder, calendar)
    traffic.save()
    for days, count, act in acts:
        calendar.now += days * DAY
        if act == "restart":  # killed: what was not written yet is gone
            traffic, fresh = traffic_of(folder, calendar), 0
            traffic.save()
        traffic.add(count)
        fresh += count
        if act == "save":
            traffic.save()
            saved, fresh = saved + fresh, 0
        assert traffic.used(RUN) == saved + fresh


def test_several_processes_count_together(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from swarm_peer.peer.traffic import Traffic\n"
        "traffic = Traffic(Path(sys.argv[1]), 'a')\n"
        "for _ in range(50): traffic.add(7); traffic.save()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert sum(json.loads((tmp_path / "traffic.json").read_text())["days"].values()) == 3 * 50 * 7


def test_several_threads_count_together(tmp_path: Path) -> None:
    traffic = Traffic(tmp_path, "a")

    def work(_: int) -> None:
        traffic.add(3)
        traffic.save()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(100)))
    assert traffic.used(RUN) == 300


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"days": {}}', '{"days": {"2026-05-30": -1}, "runs": {}}', '{"days": 1, "runs": {}}', "\xff"],
)
def test_a_damaged_file_is_put_aside_and_the_one_before_it_taken(tmp_path: Path, damage: str) -> None:
    calendar, told = Calendar(), list[str]()
    traffic = traffic_of(tmp_path, calendar)
    for count in (100, 10):
        traffic.add(count)
        traffic.save()
    traffic.path.write_bytes(damage.encode("latin-1"))
    again = traffic_of(tmp_path, calendar, told=told)
    again.add(1)
    again.save()
    assert again.used(RUN) == 101  # the last of them is forgotten, not all
    assert (tmp_path / "traffic.json.damaged-1").read_bytes() == damage.encode("latin-1")
    assert "kept as traffic.json.damaged-1" in told[0]
    for path in (traffic.path, traffic._before):
        path.write_text(damage, encoding="latin-1")
    third = traffic_of(tmp_path, calendar)
    third.add(2)
    with pytest.raises(StorageError, match=r"repair it, or remove it to count from nothing"):
        third.save()
    assert third.used(RUN) == 2  # and is written once it can be
    third.path.unlink()
    third.save()
    assert Counts.parse(third.path.read_text()).runs == {"a": 2}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    traffic = traffic_of(tmp_path / "file", Calendar())
    traffic.add(3)
    with pytest.raises(StorageError, match="cannot be kept in"):
        traffic.save()
    assert traffic.used(RUN) == 3


def test_what_is_kept_is_bounded() -> None:
    counts = Counts()
    for number in range(KEPT_RUNS + 10):
        counts.add(1, f"{2000 + number // 28:04}-01-{1 + number % 28:02}", f"run {number}")
        counts.add(1, "2900-01-01", "run 0")
    assert len(counts.runs) == KEPT_RUNS
    assert counts.runs["run 0"] == KEPT_RUNS + 11
    assert len(counts.days) == KEPT_DAYS
    assert counts.of("day", "2900-01-01", "") == KEPT_RUNS + 10
