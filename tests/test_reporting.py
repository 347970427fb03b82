"""What is seen of a peer: lines, JSON, and the panel."""

import io
import json
import logging
import threading
from itertools import groupby

import pytest
from rich.console import Console
from swarm_peer.peer.control_commands import in_words
from swarm_peer.peer.panel import Rates, panel
from swarm_peer.peer.reporting import Detached, JsonLines, Lines, Panel
from swarm_peer.protos import api_pb2 as pb
from swarm_peer.swarm.logs import heed_logs
from swarm_peer.swarm.milestones import PHASES


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def status(**fields: object) -> pb.PeerStatus:
    base = {
        "peer": "12D3KooWabcdefgh",
        "run": "f" * 64,
        "state": "working",
        "stage": 1,
        "stages": 3,
        "hosted": [1],
        "version": 4,
        "slots": 4,
    }
    return pb.PeerStatus(**{**base, **fields})


def drawn(console_width: int = 100, **fields: object) -> list[str]:
    console = Console(file=io.StringIO(), width=console_width)
    console.print(panel(status(**fields), Rates()))
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


# ---- the panel


def test_the_panel_of_a_peer_that_works() -> None:
    assert drawn(
        loss=3.98768,
        visits=183,
        visits_per_second=0.61,
        open=3,
        below=2,
        waits="for abcd1234 of stage 2",
        counted=31,
        credit=37.25,
        sent=84_100_000,
        received=80_000_000,
        link_rate=93e6,
        round_trip=0.041,
        busy=3,
        refused={"FENCED": 2},
    ) == [
        f"swarm-peer · stage 1 of 3 (counted from 0) · run ffffffffffff · abcdefgh {'─' * 27}",
        "state working",
        "version 4 · loss 3.9877",
        "visits 0.00/s, up to 0.61/s alone; 183 so far",
        "queue 3 of 4 open, 2 of them at later stages",
        "waits for abcd1234 of stage 2",
        "credit 37.2 for 31 microbatches that counted",
        "link sent 84.1 MB (0.00 MB/s), received 80.0 MB (0.00 MB/s), 93 Mbit/s, 41 ms to its neighbours",
        "refused busy 3 times, 2 fenced",
        "Ctrl-C leaves when what is open is done; again: at once",
    ]


def test_the_panel_of_a_peer_that_pauses() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(panel(pb.PeerStatus(state="pausing", leaving="it is after 07:00", waits="until 22:00"), Rates()))
    assert isinstance(console.file, io.StringIO)
    assert [line.strip() for line in console.file.getvalue().splitlines()][1:] == [
        "state  pausing: it is after 07:00",
        "waits  until 22:00",
        "Ctrl-C ends it",
    ]


def test_the_panel_before_there_is_a_stage() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(panel(pb.PeerStatus(state="joining"), Rates(), (25_000_000, 100_000_000)))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["swarm-peer", "state", "weights", "Ctrl-C"]
    assert lines[2].endswith("25 of 100 MB".ljust(len(lines[2]) - lines[2].index("25 of")))


def test_words_of_others_are_no_markup_and_break_no_line() -> None:
    lines = drawn(60, waits="[bold]" + "x" * 200, leaving="[red]bed time")
    assert "state working: [red]bed time" in lines
    (waits,) = (line for line in lines if "xxx" in line)
    assert waits.startswith("waits [bold]xxx")
    assert waits.endswith("…")


def test_rates_are_those_of_the_last_half_minute() -> None:
    rates = Rates()
    for second in range(0, 101, 2):
        visits = second if second <= 60 else 60 + 3 * (second - 60)
        rates.see(float(second), status(visits=visits, sent=1000 * second, received=0))
    assert (rates.visits, rates.sent, rates.received) == (3.0, 1000.0, 0.0)


def test_lines_appear_above_the_panel() -> None:
    file = io.StringIO()
    with Panel(logging.INFO, Console(file=file, force_terminal=True, width=100), Clock()) as report:
        report.say("found [run] 12")
        report.say("too fine", logging.DEBUG)
        report.loading(1_000_000, 5_000_000)
        report.show(status(version=7))
        report.loading(5_000_000, 5_000_000)
        report.show(status(version=8))
        report.end("the run is finished")
    written = file.getvalue()
    assert "found [run] 12" in written
    assert "too fine" not in written
    assert "1 of 5 MB" in written
    assert "5 of 5 MB" not in written
    assert written.index("found [run] 12") < written.index("7") < written.rindex("the run is finished")


# ---- lines


def test_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Lines(logging.INFO, clock) as report:
        report.say("ready")
        report.say("deep", logging.DEBUG)
        for _ in range(240):
            clock.now += 0.5
            report.loading(2_000_000, 5_000_000)
            report.show(status(loss=4.0, visits=3, counted=2, credit=2.5))
        report.end("the end")
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("ready", "the end")
    assert lines.count("weights: 2 of 5 MB") == 12
    assert lines.count("version 4, loss 4.0000, 3 visits, 2 microbatches counted, credit 2.5") == 2
    assert len(lines) == 16


def test_a_level_leaves_out_what_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    report = Lines(logging.WARNING, Clock())
    report.say("ready")
    report.say("no disk", logging.WARNING)
    assert capsys.readouterr().out == "no disk\n"


# ---- JSON


def test_events_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with JsonLines(logging.INFO, clock) as report:
        report.say("ready")
        report.say("deep", logging.DEBUG)
        report.loading(1, 10)
        report.loading(2, 10)
        report.loading(10, 10)
        for tick in range(42):
            clock.now += 0.5
            report.show(status(version=4 if tick < 5 else 5))
        report.end("the end")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["said", "loading", "loading", *["status"] * 3, "ended"]
    assert events[0]["text"] == "ready"
    assert events[0]["level"] == "info"
    assert [(event["done"], event["total"]) for event in events[1:3]] == [(1, 10), (10, 10)]
    assert [event["version"] for event in events[3:6]] == [4, 5, 5]
    assert events[3]["loss"] is None
    assert events[3]["hosted"] == [1]
    assert all(event["at"] > 1e9 for event in events)


def test_a_script_is_told_once_when_a_peer_counts_and_again_when_it_comes_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    took = dict.fromkeys(PHASES, 0.25)
    with JsonLines(logging.INFO, Clock()) as report:
        for after in ({}, took, took, {}, {**took, "start": 1.0}):
            report.show(status(counted_after=after))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    counted = [event for event in events if event["event"] == "counted"]
    assert [event["after"] for event in counted] == [2.25, 3.0]
    assert list(counted[0]["phases"].items()) == list(took.items())
    assert events[0]["counted_after"] == {}


def test_status_has_it_in_words() -> None:
    line = "counted after 2.2 s: start 0.2, directory 0.2"
    assert line not in in_words(status())
    assert line in in_words(status(counted_after=dict.fromkeys(PHASES, 0.25)))


# ---- whatever becomes of the terminal


class HeldUp(Lines):
    """A terminal that takes nothing until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.lines: list[str] = []
        self.statuses: list[pb.PeerStatus] = []

    def show(self, status: pb.PeerStatus) -> None:
        self.go_on.wait(60.0)
        self.statuses.append(status)

    def say(self, line: str, level: int = logging.INFO) -> None:
        self.lines.append(line)


def test_a_terminal_that_was_held_up_goes_on_with_what_is_new() -> None:
    terminal = HeldUp()
    with Detached(terminal) as report:
        report.show(status(version=0))
        for version in range(1, 10):
            report.show(status(version=version))
            report.say(f"line {version}")
        terminal.go_on.set()
        report.end("the end")
    assert terminal.lines == [f"line {n}" for n in range(1, 10)] + ["the end"]
    assert [shown.version for shown in terminal.statuses] in ([0, 9], [9])


def test_no_state_is_left_out() -> None:
    """However short it was, and however long the terminal was held up."""
    terminal = HeldUp()
    with Detached(terminal) as report:
        for state in ("working", "working", "leaving", "pausing", "pausing", "ended"):
            report.show(status(state=state))
        terminal.go_on.set()
    assert [state for state, _ in groupby(shown.state for shown in terminal.statuses)] == [
        "working",
        "leaving",
        "pausing",
        "ended",
    ]


# ---- logs


def test_logs_are_told_like_everything_else() -> None:
    root, ours, theirs = logging.getLogger(), logging.getLogger("swarm_peer"), logging.getLogger("hivemind")
    before = root.handlers, root.level, ours.level, theirs.level
    told: list[tuple[str, int]] = []
    try:
        heed_logs("info", lambda line, level: told.append((line, level)))
        logging.getLogger("swarm_peer.swarm.presence").info("ours")
        logging.getLogger("swarm_peer.swarm.presence").debug("ours, deep")
        logging.getLogger("other").info("theirs")
        logging.getLogger("other").warning("theirs, worse")
        logging.getLogger("hivemind.dht").warning("all day long")
        logging.getLogger("hivemind.dht").error("broken")
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        theirs.setLevel(before[3])
    assert told == [
        ("swarm_peer.swarm.presence: ours", logging.INFO),
        ("other: theirs, worse", logging.WARNING),
        ("hivemind.dht: broken", logging.ERROR),
    ]
