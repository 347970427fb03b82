"""A standby as a real process: the trainer is killed, the standby finishes the run, the killed one comes back."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from swarm_peer.peer.local_swarm import LocalSwarm
from swarm_peer.swarm.process import SharedFolder

from tests.processes import Home, home
from tests.test_agreement import assert_agree, assert_clean

STEPS, BATCH = 48, 20
MANIFEST = f"""
[model]
name = "tiny"
stages = 2
[train]
mode = "full"
steps = {STEPS}
batch = {BATCH}
[data]
sequence_length = 32
[codecs]
activations = "fp32"
gradients = "fp32"
[pipeline]
standby = true
min_replicas = 2
heartbeat = 0.5
silence = 1.5
"""


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


Event = dict[str, Any]
Act = Callable[[LocalSwarm, Event], None]


def run_swarm(place: Home, act: Act) -> list[Event]:
    """A swarm with a standby from its start; `act` sees every event and does what it likes. All events."""
    folder = SharedFolder(place.temporary / "s")
    swarm = LocalSwarm("tiny", folder, place.environment)
    seen = []
    try:
        swarm.start_coordinator(MANIFEST)
        for event in swarm.events(lambda: None):
            seen.append(event)
            if event["event"] == "listening" and event["by"] == "coordinator" and "standby" not in swarm.children:
                swarm.start_standby(event["run_id"], event["addresses"])
                swarm.start_peers(4, event["run_id"], event["addresses"])
            act(swarm, event)
        return seen
    finally:
        swarm.close()
        folder.leave()


def check_report(place: Home, seen: list[Event], by: str) -> None:
    """One coordinator has the report, it is as the reference's, and the other knows that the run is over."""
    ended = [event for event in seen if event["event"] == "ended"]
    assert [(event["by"], event["error"]) for event in ended] == [(by, "")]
    manifest = place.folder / "run.toml"
    manifest.write_text(MANIFEST, encoding="utf-8")
    reference = place.report("reference", "--manifest", str(manifest))
    assert_agree(ended[0]["report"], reference, 1e-3)
    assert_clean(ended[0]["report"], STEPS)
    assert ended[0]["report"]["ledger"]["microbatches"] == BATCH * STEPS


def terms(seen: list[Event]) -> list[tuple[str, int]]:
    return [(event["by"], event["term"]) for event in seen if event["event"] == "leads"]


def test_a_standby_finishes_the_run_of_a_killed_trainer(place: Home) -> None:
    def act(swarm: LocalSwarm, event: Event) -> None:
        if event["event"] == "stepped" and event["step"] == 5:
            swarm.kill(swarm.children["coordinator"])

    seen = run_swarm(place, act)
    assert place.wait_until_clean() == []
    check_report(place, seen, "standby")
    assert terms(seen) == [("coordinator", 1), ("standby", 2)]


def test_a_killed_trainer_comes_back_as_standby_and_leads_again(place: Home) -> None:
    started: list[Event] = []

    def act(swarm: LocalSwarm, event: Event) -> None:
        if event["event"] == "listening":
            started.append(event)
        elif event["event"] == "stepped" and event["step"] == 3 and event["by"] == "coordinator":
            swarm.kill(swarm.children["coordinator"])
        elif event["event"] == "leads" and event["by"] == "standby":
            first = started[0]
            swarm.start_standby(first["run_id"], first["addresses"], name="coordinator")
        elif event["event"] == "follows" and event["term"] == 2:
            swarm.kill(swarm.children["standby"])

    seen = run_swarm(place, act)
    check_report(place, seen, "coordinator")
    assert terms(seen) == [("coordinator", 1), ("standby", 2), ("coordinator", 3)]
    assert started[0]["addresses"][0].split("/p2p/")[1] == started[-1]["addresses"][0].split("/p2p/")[1]


@pytest.mark.slow
def test_a_killed_trainer_without_standby_comes_again_and_leads(place: Home) -> None:
    started: list[Event] = []

    def act(swarm: LocalSwarm, event: Event) -> None:
        if event["event"] == "listening":
            started.append(event)
            if event["by"] == "standby":
                swarm.kill(swarm.children["standby"])
        elif event["event"] == "stepped" and event["step"] == 7 and len(started) == 2:
            swarm.kill(swarm.children["coordinator"])
            swarm.children["coordinator"].process.wait()
            first = started[0]
            swarm.start_standby(first["run_id"], first["addresses"], name="coordinator")

    seen = run_swarm(place, act)
    assert terms(seen) == [("coordinator", 1), ("coordinator", 2)]
    assert next(event["error"] for event in seen if event["event"] == "ended") == ""
