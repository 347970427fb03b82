"""The programs as real processes: libp2p, DHT, SIGKILL, Ctrl-C; agreement with `reference`, and nothing left behind."""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from swarm_peer.peer.cli import main

from tests.processes import LIMIT_SECONDS, Home, home
from tests.test_agreement import assert_agree, assert_clean

STEPS = 12
KILLS = ("--kill", "1@3", "--kill", "0@5")
CELLS = list(product(("lora", "full"), ("0", "1"), ("fp32", "8-bit"), ("unharmed", "killed")))
QUICK = [("lora", "1", "8-bit", "killed")]


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


def shared_memory() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir()}


def agree(place: Home, mode: str, staleness: str, codecs: str, kills: str) -> None:
    flags = ["--steps", str(STEPS), "--train", mode, "--staleness", staleness]
    flags += ["--codec", "fp32"] if codecs == "fp32" else []
    before = shared_memory()
    report = place.report("demo", *flags, *(KILLS if kills == "killed" else ("--replicas", "1")))
    assert place.wait_until_clean() == []
    assert shared_memory() <= before
    assert_agree(report, place.report("reference", *flags), 1e-4 if codecs == "fp32" else 1e-3)
    assert_clean(report, STEPS)
    assert [fault["kind"] for fault in report["faults"]] == (["kill", "kill"] if kills == "killed" else [])
    assert all(fault["rerouted_s"] is None or fault["rerouted_s"] >= 0 for fault in report["faults"])
    assert report["wire"]["tokens"] == STEPS * 8 * 64


@pytest.mark.parametrize(("mode", "staleness", "codecs", "kills"), QUICK)
def test_demo_agrees_with_reference(place: Home, mode: str, staleness: str, codecs: str, kills: str) -> None:
    agree(place, mode, staleness, codecs, kills)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "staleness", "codecs", "kills"), [cell for cell in CELLS if cell not in QUICK])
def test_every_demo_agrees_with_reference(place: Home, mode: str, staleness: str, codecs: str, kills: str) -> None:
    agree(place, mode, staleness, codecs, kills)


def demo_under_way(place: Home) -> "subprocess.Popen[str]":
    """A demo that has committed its first step."""
    process = place.start("swarm-peer", "demo", "--model", "tiny", "--steps", "1000", start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):
            return process
    raise AssertionError(f"the demo ended with {process.wait()} before its first step")


def test_nothing_is_left_after_ctrl_c(place: Home) -> None:
    process = demo_under_way(place)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 130
    assert place.wait_until_clean() == []


def test_nothing_is_left_after_kill_9_of_the_parent(place: Home) -> None:
    process = demo_under_way(place)
    process.kill()
    process.communicate(timeout=LIMIT_SECONDS)
    assert place.wait_until_clean() == []


def test_a_volunteer_joins_by_the_printed_command_and_another_finds_the_run(place: Home) -> None:
    manifest = place.folder / "run.toml"
    manifest.write_text(
        '[model]\nname = "tiny"\nstages = 2\n[train]\nsteps = 2\nbatch = 2\n[data]\nsequence_length = 32\n',
        encoding="utf-8",
    )
    coordinator = place.start("swarm-coordinator", "start", str(manifest), "--listen", "/ip4/127.0.0.1/tcp/0")
    assert coordinator.stdout is not None
    command = next(line for line in coordinator.stdout if line.strip().startswith("swarm-peer join"))
    found = re.fullmatch(r"\s*swarm-peer (join --model tiny --run [0-9a-f]{64} --initial-peers \S+)\s*", command)
    assert found is not None
    first = place.start("swarm-peer", *found[1].split(), "--identity", str(place.folder / "one.key"))
    second = place.start("swarm-peer", "join", "--model", "tiny", "--identity", str(place.folder / "two.key"))
    outputs = [process.communicate(timeout=LIMIT_SECONDS)[0] for process in (first, second, coordinator)]
    assert [process.returncode for process in (first, second, coordinator)] == [0, 0, 0], outputs
    assert "found run" in outputs[1]
    assert "lost 0, duplicated 0" in outputs[2]
    assert place.wait_until_clean() == []


def test_a_volunteer_without_a_run_is_told_what_to_pass(place: Home) -> None:
    code, output = place.run("swarm-peer", "join", "--model", "tiny")
    assert code == 2
    assert "--run" in output
    assert "--initial-peers" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "--model", "tiny", "--kill", "1@99"), "the run ends with step 19"),
        (("demo", "--model", "tiny", "--kill", "1@1", "--kill", "1@2"), "would leave it empty"),
        (("demo", "--model", "tiny", "--kill", "7@1"), "there are stages 0 to 2"),
        (("demo", "--model", "tiny", "--kill", "one"), "expected STAGE@STEP"),
        (("demo", "--model", "no-such-model"), "swarm-peer fetch no-such-model"),
        (("demo", "--model", "tiny", "--stages", "9"), "the model has 6 layers"),
        (("demo", "--model", "tiny", "--steps", "0"), "train.steps"),
    ],
)
def test_a_demo_that_cannot_be_is_refused_at_the_start(
    place: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    for name in ("SWARM_PEER_HOME", "SWARM_PEER_STATE", "TMPDIR"):
        monkeypatch.setenv(name, place.environment[name])
    monkeypatch.setattr(tempfile, "tempdir", None)  # it remembers the folder
    assert main(arguments) in (1, 2)
    assert said in capsys.readouterr().err
    assert place.remains() == []


def test_a_refusal_is_one_line(place: Home) -> None:
    code, output = place.run("swarm-peer", "demo", "--model", "tiny", "--kill", "7@1")
    assert (code, output.count("\n")) == (2, 1), output
    assert place.remains() == []
