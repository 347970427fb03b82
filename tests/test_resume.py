"""Real processes: a run is stopped tonight and goes on tomorrow with other peers; a stage loses its last replica."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from swarm_peer.swarm.checkpoint_folder import INDEX, find_checkpoint
from swarm_peer.swarm.coordinator_cli import main as coordinator_cli

from tests.processes import Home, home
from tests.test_agreement import assert_agree, assert_clean

STEPS, BATCH = 16, 8
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
heartbeat = 0.5
silence = 1.5
patience = 0.5
"""


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


def agrees_with_the_reference(place: Home, report: dict[str, Any]) -> None:
    manifest = place.folder / "run.toml"
    manifest.write_text(MANIFEST, encoding="utf-8")
    assert_agree(report, place.report("reference", "--manifest", str(manifest)), 1e-3)
    assert_clean(report, STEPS)
    assert report["ledger"]["microbatches"] == BATCH * STEPS


def test_a_run_is_killed_and_resumed_elsewhere_and_a_stage_is_lost_on_the_way(place: Home) -> None:
    kept = place.folder / "checkpoints"
    swarm = place.swarm("s")
    try:
        swarm.start_coordinator(MANIFEST, "--checkpoint-every", "3", "--checkpoints", str(kept))
        for event in swarm.events(lambda: None):
            if event["event"] == "listening":
                swarm.start_peers(2, event["run_id"], event["addresses"])
            if event["event"] == "checkpointed":
                break
        key = (swarm.folder.path / "organizer.key").read_bytes()
        for child in swarm.children.values():  # in the midst of a step
            swarm.kill(child)
    finally:
        swarm.close()
        swarm.folder.leave()
    step = json.loads((find_checkpoint(kept) / INDEX).read_text())["step"]
    assert 3 <= step < STEPS

    swarm = place.swarm("t")
    (swarm.folder.path / "organizer.key").touch(mode=0o600)
    (swarm.folder.path / "organizer.key").write_bytes(key)
    seen: list[dict[str, Any]] = []
    try:
        swarm.resume_coordinator(kept, "--checkpoint-every", "3", "--checkpoints", str(kept))
        for event in swarm.events(lambda: None):
            seen.append(event)
            if event["event"] == "listening":
                swarm.start_peers(2, event["run_id"], event["addresses"])
                listening = event
            elif event["event"] == "stepped" and event["step"] == step + 4 and "peer-2" not in swarm.children:
                lost = swarm.children["peer-0"]
                swarm.kill(lost)
                swarm.start_peer(2, listening["run_id"], listening["addresses"])
    finally:
        swarm.close()
        swarm.folder.leave()
    back = [(event["step"], event["lost"]) for event in seen if event["event"] == "went-back"]
    assert back[0] == (step, 0)
    assert len(back) == 2
    assert step <= back[1][0] <= step + 4
    assert back[1][1] == step + 5 - back[1][0] or back[1][1] > 0
    waiting = [event for event in seen if event["event"] == "waiting"]
    assert waiting
    ended = [event for event in seen if event["event"] == "ended"]
    assert [event["error"] for event in ended] == [""]
    agrees_with_the_reference(place, ended[0]["report"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--resume", "nowhere"], 1, "nowhere holds no checkpoint"),
        (["--resume", "nowhere", "--standby"], 2, "no manifest, --standby or --run beside it"),
        (["run.toml", "--resume", "nowhere"], 2, "no manifest, --standby or --run beside it"),
        (["run.toml", "--checkpoint-every", "-1"], 2, "wanted a whole number, 0 or more"),
        (["run.toml", "--keep-checkpoints", "0"], 2, "wanted a whole number, 1 or more"),
    ],
)
def test_what_cannot_be_resumed_is_refused_in_a_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = coordinator_cli(["start", *arguments])
    except SystemExit as exited:
        found = int(str(exited.code))
    assert found == code
    assert said in capsys.readouterr().err.replace("\n", " ")
