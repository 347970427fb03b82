"""`swarm-coordinator status`, `top` and `watch` as a person and a script see them, and which coordinator they ask."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from swarm_peer.errors import UsageError
from swarm_peer.swarm import events
from swarm_peer.swarm.api.client import find_coordinator
from swarm_peer.swarm.api.screen import duration, screen
from swarm_peer.swarm.keys import state_folder
from swarm_peer.swarm.local_runs import LocalRun, advertised
from swarm_peer.swarm.run_view import view

from tests.processes import Terminal
from tests.test_api import RUN, Helm, Served
from tests.watched_run import beginning, stepped, told

LIMIT_SECONDS = 120


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("SWARM_PEER_STATE", str(tmp_path))
    made = Served(Helm())
    with advertised(LocalRun(RUN, "tiny", (), os.getpid(), made.place)):
        yield made
    made.close()


def command(*arguments: str) -> tuple[int, str]:
    """(exit code, what it printed), not on a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "swarm_peer.swarm.coordinator_cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    return done.returncode, done.stdout


def test_status_for_people_and_scripts(served: Served) -> None:
    code, output = command("status")
    assert code == 0
    head = " ".join(output.splitlines()[0].split())
    assert head == "training step 1 of 10, stage 1 is the narrowest: 2 replicas, queue 2"
    assert "loss 4.0000 · held out 5.0000 · 200 tokens/s, 20 % of ideal links" in output
    assert "lost 0, duplicated 0" in output
    code, output = command("status", "--json")
    assert code == 0
    assert json.loads(output) == json.loads(json.dumps(view(served.chronicle.state)))


def test_top_is_live_until_q_and_leaves_the_terminal_as_it_was(served: Served) -> None:
    window = Terminal(30, 100, "swarm-coordinator", "top")
    window.until("bottleneck")
    served.emit(events.Paused())
    window.until("paused by the organizer")
    window.type("q")
    assert window.close() == (0, True)
    assert window.written.rstrip().endswith("paused: step 1 of 10, paused by the organizer")


def test_top_ends_at_ctrl_c_and_with_its_run(served: Served) -> None:
    window = Terminal(30, 100, "swarm-coordinator", "top")
    window.until("q leaves")
    window.interrupt()
    assert window.close() == (130, True)
    window = Terminal(30, 100, "swarm-coordinator", "top")
    window.until("q leaves")
    served.emit(events.Concluded(""))
    window.until("all 10 steps are done")
    served.close()
    assert window.close() == (0, True)


def test_top_and_watch_print_lines_where_there_is_no_terminal(served: Served) -> None:
    def lines(name: str) -> "subprocess.Popen[str]":
        program = [sys.executable, "-m", "swarm_peer.swarm.coordinator_cli", name]
        return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    with lines("top") as top, lines("watch") as watch:
        assert top.stdout is not None
        assert watch.stdout is not None
        assert top.stdout.readline().startswith("training: step 1 of 10")
        assert json.loads(watch.stdout.readline())["phase"] == "training"
        served.emit(events.Paused())
        assert top.stdout.readline() == "paused: step 1 of 10, paused by the organizer\n"
        assert json.loads(watch.stdout.readline())["phase"] == "paused"
        served.close()  # it is gone before its run is over
        assert (top.wait(LIMIT_SECONDS), watch.wait(LIMIT_SECONDS)) == (1, 1)


def lines_of(document: dict[str, object], height: int | None, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(screen(document, height))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("height", [10, 14, 20, 60])
def test_the_screen_fits_its_window(height: int, width: int) -> None:
    chronicle = told(*beginning())
    for number in range(7, 40):
        chronicle.emit(events.Joined(number, f"peer{number}", number % 3, name=f"[bold]box[/] {number}"))
    for number in range(1, 5):
        chronicle.emit(events.Lost(number, f"peer{number}", (number - 1) % 3, 1, "it was killed " * 20, 2.0, 1.0, 2))
    document = view(chronicle.state)
    lines = lines_of(document, height, width)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    assert "training" in lines[0]
    if height == 60 and width == 200:
        assert sum("is killed" in line or "was killed" in line for line in lines) == 3
        assert any("[bold]box[/] 7" in line for line in lines)
    assert (any("more" in line for line in lines)) == (height < 60)


def test_the_screen_of_a_run_of_which_nothing_is_known_yet() -> None:
    assert "nothing is known of this run yet" in lines_of(view(told().state), None)[0]


def test_a_stage_without_a_replica_is_seen_where_not_all_fit() -> None:
    chronicle = told(*beginning())
    for number in (3, 6):
        chronicle.emit(events.Lost(number, f"peer{number}", 2, 1, "gone", 2.0))
    assert any("no replica" in line for line in lines_of(view(chronicle.state), 11))


def test_a_step_after_another_changes_the_numbers() -> None:
    chronicle = told(*beginning(), stepped(1, 3.5))
    assert any("loss 3.5000" in line for line in lines_of(view(chronicle.state), None))


def test_durations() -> None:
    assert [duration(at) for at in (0, 80, 600, 7200, 200000)] == ["0 s", "80 s", "10 min", "2 h", "2 d"]


def advertise(run: LocalRun) -> None:
    """As another process of this machine would."""
    folder = state_folder() / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with advertised(run):
        kept = (folder / f"{run.run_id}.{run.pid}.json").read_bytes()
    (folder / f"{run.run_id}.{run.pid}.json").write_bytes(kept)


def test_the_coordinator_that_leads_is_asked_and_no_guess_is_made_where_it_matters(served: Served) -> None:
    assert find_coordinator(None, None).address == served.place
    # A standby of the same run, newer; it is not there any more.
    advertise(LocalRun(RUN, "tiny", (), os.getppid(), "127.0.0.1:1"))
    assert find_coordinator(None, None, changes=True).address == served.place
    advertise(LocalRun("cd" * 32, "tiny", (), os.getppid(), "127.0.0.1:2", "/there/cert.pem"))
    with pytest.raises(UsageError, match=r"2 runs are led on this machine: .*--run"):
        find_coordinator(None, None, changes=True)
    assert find_coordinator(None, RUN, changes=True).address == served.place
    assert find_coordinator(None, "cd" * 32).certificate == Path("/there/cert.pem")
    assert find_coordinator("there:5", None).address == "there:5"
