"""What must change to reach a goal."""

import json

import pytest
from swarm_peer.simulations.cli import main
from swarm_peer.simulations.planning import levers_of, plan
from swarm_peer.simulations.scenario import Scenario, parse_scenario

TEXT = """
title = "Slow links"
minutes = 5

[run.model]
name = "tiny"
stages = 2

[run.train]
steps = 6
batch = 8

[run.pipeline]
staleness = 0

[[peers]]
name = "home"
count = 2
forward = 0.1
backward = 0.2
up = [20, 40]
latency = 10
stays = { mean = 600 }
"""


def scenario(*changes: str) -> Scenario:
    return parse_scenario(TEXT, "a test", changes)


def test_levers_are_what_can_be_changed_for_the_better() -> None:
    kinds = [lever.kind for lever in levers_of(scenario())]
    assert kinds == ["codecs", "staleness", "batch", "slots", "count", "speed", "up", "latency", "stays"]
    less = scenario("run.pipeline.staleness=1", "peers.0.up=0", "peers.0.latency=0", 'run.codecs.activations="int4"')
    kinds = [lever.kind for lever in levers_of(less)]
    assert "staleness" not in kinds
    assert "up" not in kinds
    assert "latency" not in kinds
    assert "codecs" in kinds  # of gradients


def test_every_lever_changes_one_thing() -> None:
    before = scenario()
    changed = {lever.kind: lever.pull(before, 2.0) for lever in levers_of(before)}
    groups = {kind: after.peers[0] for kind, (after, _) in changed.items()}
    assert groups["count"].count == 4
    assert groups["up"].up == (40, 80)
    assert groups["latency"].latency == 5
    assert (groups["speed"].forward, groups["speed"].backward) == (0.05, 0.1)
    assert groups["stays"].stays is not None
    assert groups["stays"].stays.mean == 1200
    assert changed["batch"][0].run.train.batch == 16
    assert changed["slots"][0].run.pipeline.slots == 2 * before.run.pipeline.slots
    assert changed["staleness"][0].run.pipeline.staleness == 1
    assert changed["up"][1] == "40 to 80 Mbit/s up for 'home'"
    for kind, (after, _) in changed.items():
        assert (after.run == before.run) == (groups[kind] != before.peers[0])


def test_the_least_that_reaches_the_goal_is_found() -> None:
    asis, *pulled = plan(scenario(), 1e-3, jobs=1)
    assert asis.reached
    assert not pulled
    goal = 1.3 * asis.tokens_per_second
    _, *pulled = plan(scenario(), goal, jobs=2)
    by_change = {found.change.split(" for ")[0].split(" (")[0]: found for found in pulled}
    assert all(found.reached == (found.tokens_per_second >= goal) for found in pulled)
    assert by_change["devices 1.5 times as fast"].reached
    assert not by_change["1.25 ms of latency"].reached


def test_a_plan_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "home-links", "--tokens", "0"]) == 2
    assert "--tokens 0: wanted more than 0" in capsys.readouterr().err
    changes = ["run.model.name=tiny", "run.model.stages=2", "minutes=0.3", "run.train.batch=8", "peers.0.count=6"]
    changes.append("run.data.sequence_length=64")
    asked = [part for change in changes for part in ("--set", change)]
    assert main(["plan", "home-links", *asked, "--tokens", "1", "--json"]) == 0
    assert [found["change"] for found in json.loads(capsys.readouterr().out)] == ["as it is"]
