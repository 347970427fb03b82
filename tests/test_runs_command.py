"""Real processes: a peer joins by an invite, and `runs` finds what can be joined, here and from elsewhere."""

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from swarm_peer.swarm.invites import make_invite
from swarm_peer.swarm.keys import Identity

from tests.processes import AT_LEISURE, LIMIT_SECONDS, Home, home

LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0")
MANIFEST = """
seed = {seed}
[model]
name = "tiny"
stages = 1
[train]
steps = 100000
batch = 2
[data]
sequence_length = 32
heldout_tokens = 64
"""


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


def coordinator_of(place: Home, seed: int, *flags: str) -> tuple["subprocess.Popen[str]", dict[str, Any]]:
    """A coordinator that leads, and what it says of where it listens."""
    manifest = place.folder / f"run{seed}.toml"
    manifest.write_text(MANIFEST.format(seed=seed), encoding="utf-8")
    process = place.start("swarm-coordinator", "start", str(manifest), *LISTEN, "--http", "off", "--json", *flags)
    return process, wait_for(process, "listening")


def wait_for(process: "subprocess.Popen[str]", kind: str) -> dict[str, Any]:
    assert process.stdout is not None
    events = (json.loads(line) for line in process.stdout if line.startswith("{"))
    return next(event for event in events if event["event"] == kind)


def runs(place: Home, *arguments: str) -> dict[str, dict[str, Any]]:
    code, output = place.run("swarm-peer", "runs", "--json", *arguments)
    assert code == 0, output
    found = json.loads(output)
    assert found["left_out"] == 0
    return {run["run"]: run for run in found["runs"]}


def test_a_peer_joins_by_invite_and_runs_are_listed_here_and_from_elsewhere(place: Home) -> None:
    file = place.folder / "invite"
    first, listening = coordinator_of(place, 1, "--invite", str(file))
    second, beside = coordinator_of(place, 2, "--initial-peers", *listening["addresses"], "--api", "off")
    assert file.read_text(encoding="ascii") == listening["invite"] + "\n"
    peer = place.start("swarm-peer", "join", str(file), *LISTEN, "--threads", "1", *AT_LEISURE)
    wait_for(first, "stepped")

    on_this_machine = runs(place)
    assert {run: found["here"] for run, found in on_this_machine.items()} == dict.fromkeys(
        (listening["run_id"], beside["run_id"]), True
    )
    known = on_this_machine[listening["run_id"]]
    assert (known["model"], known["replicas"], known["steps"], known["problem"]) == ("tiny", [1], 100000, "")
    assert known["join"] == f"swarm-peer join {listening['invite']}"
    assert "has no API" in on_this_machine[beside["run_id"]]["problem"]
    code, fresh = place.run("swarm-coordinator", "invite", "--run", listening["run_id"])
    assert (code, fresh.startswith("swarm-peer://join/")) == (0, True), fresh

    # Another machine: nothing of what this one keeps is there.
    here, place.environment["SWARM_PEER_STATE"] = place.environment["SWARM_PEER_STATE"], str(place.folder / "elsewhere")
    found = runs(place, fresh.strip())
    deadline = time.monotonic() + LIMIT_SECONDS
    while not found[listening["run_id"]]["step"] and time.monotonic() < deadline:  # the index is told now and then
        found = runs(place, fresh.strip())
    assert set(found) == {listening["run_id"], beside["run_id"]}
    known = found[listening["run_id"]]
    assert (known["model"], known["replicas"], known["problem"], known["here"]) == ("tiny", [1], "", False)
    assert known["step"] > 0
    assert known["join"] == listening["join"]
    assert (found[beside["run_id"]]["replicas"], found[beside["run_id"]]["step"]) == ([0], 0)
    assert {run["organizer"] for run in found.values()} == {known["organizer"]}
    code, table = place.run("swarm-peer", "runs", "--initial-peers", *listening["addresses"])
    assert (code, known["organizer"][:16] in table, known["join"] in table) == (0, True, True), table

    place.environment["SWARM_PEER_STATE"] = here
    assert place.run("swarm-peer", "leave", "--now")[0] == 0  # asked politely, the only replica would stay
    said = peer.communicate(timeout=LIMIT_SECONDS)[0]
    assert f"invited to run {listening['run_id'][:12]} by {known['organizer'][:16]}" in said
    for coordinator in (second, first):
        coordinator.terminate()
        coordinator.communicate(timeout=LIMIT_SECONDS)
    assert place.wait_until_clean() == []


def test_an_invite_to_another_organizers_run_is_refused(place: Home) -> None:
    """Somebody signs an invite of his own to a run that is not his: who follows it is told so and takes no part."""
    coordinator, listening = coordinator_of(place, 1)
    liar = Identity.generate()
    invite = make_invite(liar, listening["run_id"], "tiny", listening["addresses"])
    code, output = place.run("swarm-peer", "join", invite, *LISTEN)
    assert code == 1, output
    assert f"not by {liar.public_hex[:16]}... who invited to it" in output
    assert "hosting stage" not in output
    coordinator.terminate()
    coordinator.communicate(timeout=LIMIT_SECONDS)
    assert place.wait_until_clean() == []
