"""Processes forked from one that has made the imports: like others, and seen when they end."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from swarm_peer.peer.local_swarm import child_environment
from swarm_peer.peer.zygote import UNKNOWN, ForkedProcess, Zygote, is_possible

from tests.processes import LIMIT_SECONDS, zygote

pytestmark = pytest.mark.skipif(not is_possible(), reason="a zygote needs Linux")


class Forked:
    """Forks the program of `forked_program.py`."""

    def __init__(self, made: Zygote, folder: Path) -> None:
        self.made, self.log = made, folder / "log"

    def start(self, *arguments: str, **variables: str) -> tuple[ForkedProcess, dict[str, Any]]:
        """The process, and what it found."""
        command = ["tests.forked_program", *arguments]
        with self.log.open("ab") as file:
            process = self.made.start("forked", command, stdout=None, stderr=file, env=variables)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())


def ask(process: ForkedProcess, line: str) -> None:
    print(line, file=process.stdin, flush=True)


def end(process: ForkedProcess) -> int:
    process.stdin.close()
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(LIMIT_SECONDS)


@pytest.fixture
def forked(tmp_path: Path) -> Forked:
    made = zygote()
    assert made is not None
    return Forked(made, tmp_path)


def test_a_fork_is_what_the_shell_would_have_started(forked: Forked) -> None:
    first, found = forked.start("a", "b c", COLOUR="red", OMP_NUM_THREADS="2")
    second, other = forked.start(COLOUR="blue", OMP_NUM_THREADS="1")
    assert found["arguments"] == ["a", "b c"]
    assert (found["variables"], other["variables"]) == (
        {"COLOUR": "red", "PATH": None},
        {"COLOUR": "blue", "PATH": None},
    )
    assert (found["threads"], other["threads"]) == (2, 1)
    assert (found["session"], found["alone"]) == (True, True)
    assert found["random"] != other["random"]
    assert found["parent"] == other["parent"] != os.getpid()
    assert found["descriptors"] == other["descriptors"]
    assert Path(f"/proc/{first.pid}/comm").read_text() == "forked\n"
    assert [end(second), end(first)] == [0, 0]


def test_how_it_ended_is_known(forked: Forked) -> None:
    ended, failed, killed, hanging = (forked.start()[0] for _ in range(4))
    assert ended.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        ended.wait(0.01)
    ask(ended, "end 7")
    ask(failed, "fail it broke")
    killed.send_signal(signal.SIGKILL)
    assert [process.wait(LIMIT_SECONDS) for process in (ended, failed, killed)] == [7, 1, -signal.SIGKILL]
    assert "ValueError: it broke" in forked.log.read_text()
    killed.send_signal(signal.SIGTERM)  # to nobody
    assert (killed.poll(), hanging.poll()) == (-signal.SIGKILL, None)
    for process in (ended, failed, killed, hanging):
        end(process)


def test_its_output_may_go_to_a_file(forked: Forked, tmp_path: Path) -> None:
    with (tmp_path / "said").open("wb") as said, forked.log.open("ab") as log:
        process = forked.made.start("forked", ["tests.forked_program"], stdout=said, stderr=log, env={})
    process.stdin.close()
    assert process.wait(LIMIT_SECONDS) == 0
    assert json.loads((tmp_path / "said").read_text())["arguments"] == []


def test_its_children_outlive_a_zygote_and_nothing_is_forked_any_more(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = Zygote(child_environment(), tmp_path / "zygote.log")
    finally:
        signal.signal(signal.SIGINT, before)
    with started as made:
        forked = Forked(made, tmp_path)
        process, found = forked.start()
        assert found["interrupt"], "it does not heed Ctrl-C, which is ignored nowhere here"
        os.kill(found["parent"], signal.SIGKILL)
        while Path(f"/proc/{found['parent']}/exe").exists():
            time.sleep(0.01)
        with pytest.raises(ChildProcessError, match="has ended"):
            forked.start()
        assert process.poll() is None
        ask(process, "end 3")
        assert process.wait(LIMIT_SECONDS) == UNKNOWN
        end(process)


def test_why_a_zygote_could_not_begin_is_said(tmp_path: Path) -> None:
    environment = {**child_environment(), "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": ""}
    (tmp_path / "hivemind.py").write_text("raise ImportError('no hivemind here')\n")
    with (
        Zygote(environment, tmp_path / "zygote.log") as made,
        pytest.raises(ChildProcessError, match="no hivemind here"),
    ):
        Forked(made, tmp_path).start()
