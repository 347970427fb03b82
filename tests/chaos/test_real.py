"""Seeded fault schedules on real processes: `python -m tests.chaos real`, as a person runs it."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.real_faults import DISTURBANCES, JOIN, LEAVE, LOSE, TRAINER_KILL, Pace, draw_real
from tests.processes import Home, home

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the proxies need all of 127.0.0.0/8")

LIMIT_SECONDS = 1800.0
"""Only reached by a hang: a run that is not at its end in time says so itself."""


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


def carried_out(place: Home, seed: int, minutes: float) -> dict[str, int]:
    """Runs a seed; how many faults of each kind there were."""
    command = [sys.executable, "-m", "tests.chaos", "real", str(seed), "--minutes", str(minutes)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, env=place.environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.processes() == []
    return {kind: int(count) for count, kind in re.findall(r"(\d+) x ([a-z -]+)", done.stdout)}


def test_a_short_schedule(place: Home) -> None:
    counts = carried_out(place, seed=1, minutes=0.7)
    assert counts["trainer kill"] == counts["leave"] == counts["left"] == 1, counts
    assert counts["kill"] >= 1


@pytest.mark.slow
def test_five_minutes(place: Home) -> None:
    counts = carried_out(place, seed=2, minutes=5)
    assert counts["trainer kill"] == 2
    assert counts["kill"] >= 8
    assert counts["leave"] >= 2
    assert counts["join"] >= 1
    assert counts["moved"] >= 1
    assert counts["lose"] == 1
    assert counts["went-back"] >= 1
    assert sum(counts.get(kind, 0) for kind in DISTURBANCES) >= 15


def test_the_same_seed_draws_the_same_faults() -> None:
    faults = draw_real(7, 300.0)
    assert faults == draw_real(7, 300.0) != draw_real(8, 300.0)
    kinds = Counter(fault.kind for fault in faults)
    assert (kinds[TRAINER_KILL], kinds[LEAVE], kinds[JOIN], kinds[LOSE]) == (2, 4, 2, 1)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(0 < fault.at < 300 for fault in faults)


def test_a_short_run_has_a_trainer_kill_and_a_leave_whatever_the_pace() -> None:
    kinds = Counter(fault.kind for fault in draw_real(7, 40.0, Pace(trainer=600, leave=600)))
    assert (kinds[TRAINER_KILL], kinds[LEAVE], kinds[JOIN], kinds[LOSE]) == (1, 1, 0, 0)
