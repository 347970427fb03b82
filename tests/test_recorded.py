"""Runs that have been as scenarios, and tables of sessions."""

from pathlib import Path

import pytest
from swarm_peer.errors import ScenarioError, StorageError
from swarm_peer.simulations.cli import main
from swarm_peer.simulations.recorded import scenario_of
from swarm_peer.simulations.scenario import load_scenario, parse_scenario
from swarm_peer.simulations.study import Study
from swarm_peer.swarm import events
from swarm_peer.swarm.event_log import EventLog, read_log

RUN = """
title = "A run"
minutes = 10

[run.model]
name = "tiny"
stages = 2

[run.train]
steps = 20
batch = 8

[run.pipeline]
rebalance = 0
min_replicas = 2

[[peers]]
name = "fast"
count = 3
forward = 0.1
backward = 0.2
latency = 30

[[peers]]
name = "slow"
forward = 0.3
backward = 0.5
sessions = [{ machine = 0, begin = 0, end = 12 }]

[[peers]]
name = "late"
forward = 0.2
backward = 0.3
sessions = [{ machine = 0, begin = 6.5, end = 16, leaves = true }]
"""


def test_a_run_that_has_been_goes_again_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    was = Study(parse_scenario(RUN, "a test"), log=tmp_path / "events").run()
    file = tmp_path / "again.toml"
    assert main(["from-log", str(tmp_path / "events"), str(file)]) == 0
    assert "swarm-sim run" in capsys.readouterr().out
    scenario = load_scenario(file)
    again = Study(scenario).run()
    assert len(scenario.peers) == 5
    assert (was.lost, was.left) == (again.lost, again.left) == (1, 1)
    assert again.finished
    assert again.tokens_per_second == pytest.approx(was.tokens_per_second, rel=0.1)
    assert again.bound == pytest.approx(was.bound, rel=0.05)


def test_a_coordinator_that_comes_again_does_not_double_its_peers(tmp_path: Path) -> None:
    stop = '\n[[events]]\nkind = "stop"\nat = 10\nseconds = 2\n'
    Study(parse_scenario(RUN + stop, "a test"), log=tmp_path / "whole").run()
    killed = EventLog(tmp_path / "killed")  # a process that is killed says nothing any more
    for record in read_log(tmp_path / "whole").records:
        if not isinstance(record.event, events.Lost):
            killed.append(record.event, record.at)
    killed.close()
    again = parse_scenario(scenario_of(tmp_path / "killed"), "again")
    sessions = [session for group in again.peers for session in group.sessions]
    assert len(sessions) == 5
    assert sum(session.end is None for session in sessions) == 3
    assert sum(session.leaves for session in sessions) == 1


def test_a_log_that_says_too_little_makes_no_scenario(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no events are in"):
        scenario_of(tmp_path)
    log = EventLog(tmp_path / "events")
    log.append(events.Leads(1), 0.0)
    log.close()
    with pytest.raises(ScenarioError, match="does not hold the beginning of a run"):
        scenario_of(tmp_path / "events")
    Study(parse_scenario(RUN, "a test", ["peers.0.loads=1000", "minutes=0.2"]), log=tmp_path / "other").run()
    with pytest.raises(ScenarioError, match="no peer ever said how long a visit takes"):
        scenario_of(tmp_path / "other")


def with_trace(folder: Path, table: str) -> Path:
    """A scenario whose slow peers come and go as the table says."""
    (folder / "sessions.csv").write_text(table)
    file = folder / "run.toml"
    file.write_text(RUN.replace("sessions = [{ machine = 0, begin = 0, end = 12 }]", 'trace = "sessions.csv"'))
    return file


def test_sessions_come_from_a_table(tmp_path: Path) -> None:
    scenario = load_scenario(with_trace(tmp_path, "machine,begin,end,leaves\n0,0,9.5,yes\n1,3,12,\n0,14.4,,no\n"))
    assert scenario.peers[1].count == 2
    assert [session.model_dump() for session in scenario.peers[1].sessions] == [
        {"machine": 0, "begin": 0.0, "end": 9.5, "leaves": True, "stage": None},
        {"machine": 1, "begin": 3.0, "end": 12.0, "leaves": False, "stage": None},
        {"machine": 0, "begin": 14.4, "end": None, "leaves": False, "stage": None},
    ]
    outcome = Study(scenario, seed=1).run()
    assert outcome.finished
    assert (outcome.lost, outcome.left) == (1, 2)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("machine,begin\n0,0\n", r"sessions.csv:1: wanted the columns machine, begin, end, leaves, stage, got machine"),
        ("machine,begin,end\n0,0,5\nx,0,5\n", r"sessions.csv:3: machine: 'x' is none"),
        ("machine,begin,end\n0,soon,5\n", r"sessions.csv:2: begin: 'soon' is none"),
        ("machine,begin,end,leaves\n0,0,5,perhaps\n", r"sessions.csv:2: leaves: 'perhaps' is none"),
        ("machine,begin,end\n0,0\n", r"sessions.csv:2: as many columns are wanted as there are names"),
        ("machine,begin,end\n0,7,5\n", r"run.toml:\d+: peers.1.sessions.0: a session that begins at 7 ends at 5"),
        ("machine,begin,end\n0,-1,5\n", r"run.toml:\d+: peers.1.sessions.0.begin: Input should be greater than"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, table: str, problem: str) -> None:
    with pytest.raises(ScenarioError, match=problem):
        load_scenario(with_trace(tmp_path, table))


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = with_trace(tmp_path, "")
    (tmp_path / "sessions.csv").unlink()
    with pytest.raises(ScenarioError, match=r"sessions.csv: cannot be read"):
        load_scenario(file)
