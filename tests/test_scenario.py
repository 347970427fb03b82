"""Scenarios: what they hold, and that an error in one names file, line and key."""

from pathlib import Path

import pytest
from swarm_peer.errors import ScenarioError
from swarm_peer.simulations.scenario import known_scenarios, load_scenario, parse_scenario
from swarm_peer.simulations.toml_lines import line_of

SMALL = """\
title = "Three of a kind"
minutes = 1

[run.model]
name = "tiny"
stages = 3

[[peers]]
name = "some"
count = 3
forward = 0.1
backward = 0.2

[[events]]
kind = "kill"
at = 5
peers = "some"
share = 0.3
"""


@pytest.mark.parametrize("file", known_scenarios(), ids=lambda file: file.stem)
def test_what_comes_with_the_package_can_be_read(file: Path) -> None:
    scenario = load_scenario(Path(file.stem))
    assert scenario.title
    assert scenario.about
    assert sum(group.count for group in scenario.peers) >= scenario.run.model.stages


def test_a_scenario_is_read() -> None:
    scenario = parse_scenario(SMALL, "small.toml")
    (group,), (event,) = scenario.peers, scenario.events
    assert (group.count, group.forward, group.latency) == (3, 0.1, 10.0)
    assert (event.kind, event.at, event.share) == ("kill", 5, 0.3)
    assert scenario.run.pipeline.staleness == 1


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("minutes = 1", "minutes = 0", "bad.toml:2: minutes: Input should be greater than 0 (got 0)"),
        ("minutes = 1", "minute = 1", "bad.toml:2: minute: Extra inputs are not permitted"),
        ("stages = 3", "stages = -3", "bad.toml:6: run.model.stages: Input should be greater than 0"),
        ("count = 3", 'count = "many"', "bad.toml:10: peers.0.count: Input should be a valid integer"),
        ("forward = 0.1\n", "", "bad.toml:8: peers.0: forward and backward are given together"),
        ("at = 5", "at = -5", "bad.toml:16: events.0.at: Input should be greater than or equal to 0"),
        ("at = 5", "at = 5\nevery = [9, 3]", "bad.toml:14: events.0: [9.0, 3.0]: the lower number comes first"),
        ('kind = "kill"', 'kind = "explode"', "bad.toml:15: events.0.kind: Input should be"),
        ('peers = "some"', 'peers = "others"', "which is no group of peers: some"),
        ('peers = "some"', "", "bad.toml:14: events.0: kill needs peers or a region"),
        (
            "forward = 0.1",
            "forward = 0.1\nup = [9, 3]",
            "bad.toml:8: peers.0: [9.0, 3.0]: the lower number comes first",
        ),
        ("forward = 0.1", "forward = 0.1\nstage = 3", "some host stage 3 of 3"),
        ("minutes = 1", "minutes =", "bad.toml: not TOML: Invalid value (at line 2"),
    ],
)
def test_a_bad_scenario_names_file_line_and_key(old: str, new: str, problem: str) -> None:
    assert old in SMALL
    with pytest.raises(ScenarioError) as raised:
        parse_scenario(SMALL.replace(old, new, 1), "bad.toml")
    assert problem in str(raised.value)


def test_keys_are_set_otherwise() -> None:
    changes = ["run.pipeline.staleness=0", "peers.0.count=7", "title=Seven", "coordinator.up=100"]
    scenario = parse_scenario(SMALL, "small.toml", changes)
    assert scenario.run.pipeline.staleness == 0
    assert scenario.peers[0].count == 7
    assert scenario.title == "Seven"
    assert scenario.coordinator.up == 100


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("staleness", "wanted key=value"),
        ("peers.3.count=7", "peers.3.count: there is no such place"),
        ("peers.x.count=7", "peers.x.count: there is no such place"),
        ("title.count=7", "title.count: there is no such place"),
        ("run.pipeline.staleness=2", "run.pipeline.staleness: Input should be 0 or 1 (got 2)"),
    ],
)
def test_a_bad_change_is_named(change: str, problem: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        parse_scenario(SMALL, "small.toml", [change])
    assert problem in str(raised.value)


def test_a_file_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ScenarioError, match=r"nowhere\.toml: cannot be read.*home-links"):
        load_scenario(Path("nowhere.toml"))


def test_a_key_is_found_on_its_line() -> None:
    text = 'a = 1\n[b]\nc.d = 2 # e = 3\n[[f]]\ng = 1\n[[f]]\n"h i" = 2\n[f.j]\nk = 3\n'
    places = {
        ("a",): 1,
        ("b",): 2,
        ("b", "c", "d"): 3,
        ("f",): 4,
        ("f", 0, "g"): 5,
        ("f", 1): 6,
        ("f", 1, "h i"): 7,
        ("f", 1, "j", "k"): 9,
        ("f", 1, "j", "missing"): 8,
        ("missing",): 1,
    }
    assert {path: line_of(text, path) for path in places} == places


def test_a_relay_is_another_group_or_the_coordinator() -> None:
    for name in ("nobody", "some"):
        with pytest.raises(ScenarioError, match=f"some are reached through '{name}', which is no other group"):
            parse_scenario(SMALL, "s.toml", [f"peers.0.relay={name}"])
    assert parse_scenario(SMALL, "s.toml", ["peers.0.relay=coordinator"]).peers[0].relay == "coordinator"
