"""A scenario with real processes over an emulated internet: everybody comes, works, dies and leaves as it says."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from swarm_peer.errors import EmulationError
from swarm_peer.simulations.cli import main
from swarm_peer.simulations.namespace import enter_namespace
from swarm_peer.simulations.router import MOST_BUSY, check_router

from tests.namespaces import TCP, needs_namespaces
from tests.small_swarm import small_run

TEXT = f"""
title = "A small swarm"
minutes = 4
{small_run(8)}
[[peers]]
name = "home"
count = 3
forward = 0.1
backward = 0.2
up = 20
down = 100
latency = 20

[[peers]]
name = "brief"
forward = 0.1
backward = 0.2
sessions = [{{ machine = 0, begin = 0, end = 9 }}, {{ machine = 0, begin = 11 }}]

[[events]]
kind = "slow"
at = 2
seconds = 3
peers = "home"
factor = 0.5

[[events]]
kind = "isolate"
at = 6
seconds = 0.5
peers = "brief"
"""


@needs_namespaces
def test_a_scenario_is_emulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, report = tmp_path / "small.toml", tmp_path / "out.json"
    file.write_text(TEXT)
    before = set(os.listdir("/proc"))
    arguments = ["emulate", str(file), "--tcp", TCP, "--folder", str(tmp_path / "logs"), "--report", str(report)]
    assert main(arguments) == 0, (tmp_path / "logs" / "log").read_text()[-2000:]
    (told,) = json.loads(report.read_text())
    assert told["finished"]
    assert len(told["steps"]) == 8
    assert told["lost"] >= 1
    assert [kind for _, kind, _ in told["happened"]] == ["slow", "isolate"]
    assert told["bytes_up"] > 8 * 8 * 2 * 128 * 576  # an activation and a gradient of each microbatch
    assert all(stage["busy"] > 0 for stage in told["stages"])
    assert 0 < told["router"] < MOST_BUSY
    assert "the router took" in capsys.readouterr().out
    mine = [pid for pid in set(os.listdir("/proc")) - before if pid.isdecimal() and is_node(pid)]
    assert mine == []


def is_node(pid: str) -> bool:
    try:
        return "swarm-node" in Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return False


def test_a_run_whose_router_is_too_busy_is_void() -> None:
    check_router(0.69)
    with pytest.raises(EmulationError, match=r"the router took 71% of a core; above 70% it is late itself"):
        check_router(0.71)


def test_where_it_is_not_allowed_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def unshare(self, flags: int) -> int:
            ctypes.set_errno(1)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *names, **options: Refusing())
    with pytest.raises(EmulationError, match=r"no network namespace .* can be made here: .*It takes Linux and root"):
        enter_namespace("11.77.1.1", 1500)


ENTER = """
import sys
from swarm_peer.simulations.namespace import CHOICE, enter_namespace
enter_namespace("11.77.1.1", 1500, sys.argv[1])
sys.stdout.write(CHOICE.read_text())
"""


@needs_namespaces
def test_machines_find_their_rate_as_they_are_told() -> None:
    """Not as this machine's kernel happens to be set."""
    for tcp in {TCP, "reno"}:
        assert chosen(tcp).stdout.split() == [tcp]
    refused = chosen("carrier-pigeon").stderr
    assert "TCP cannot be carrier-pigeon here" in refused
    assert "this kernel allows " in refused


def chosen(tcp: str) -> subprocess.CompletedProcess[str]:
    """What the TCP of a process in a namespace of its own is, or why it has none."""
    return subprocess.run([sys.executable, "-c", ENTER, tcp], capture_output=True, text=True)
