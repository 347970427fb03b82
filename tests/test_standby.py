"""A standby as a real process: the trainer is killed, the standby finishes the run, the killed one comes back; and what
coordinators keep of a run on disk."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from swarm_peer.errors import DataError, TrustError
from swarm_peer.peer.local_swarm import LocalSwarm
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.directory import MemoryDirectory
from swarm_peer.simulations.network import MemoryNetwork
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.coordinator_cli import main as coordinator_cli
from swarm_peer.swarm.coordinator_state import CoordinatorState
from swarm_peer.swarm.directory import TRAINER_STAGE, Record
from swarm_peer.swarm.first_contact import ask_for_manifest
from swarm_peer.swarm.freezing import prepare, take_up
from swarm_peer.swarm.keys import Identity, SignedManifest, sign_manifest
from swarm_peer.swarm.manifest import PROTOCOL_VERSION, parse_settings
from swarm_peer.swarm.messages import pack
from swarm_peer.swarm.transport import Stream

from tests.processes import Home, home
from tests.test_agreement import assert_agree, assert_clean
from tests.tiny import ORGANIZER, tiny_manifest

BATCH = 10
FEW, MANY = 20, 48
"""Steps of a run that changes hands once, and of one that does so twice."""

MANIFEST = f"""
[model]
name = "tiny"
stages = 2
[train]
mode = "full"
steps = STEPS
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


def manifest_of(steps: int) -> str:
    return MANIFEST.replace("STEPS", str(steps))


def run_swarm(place: Home, act: Act, steps: int) -> list[Event]:
    """A swarm with a standby from its start; `act` sees every event and does what it likes. All events."""
    swarm = place.swarm("s")
    seen = []
    try:
        swarm.start_coordinator(manifest_of(steps))
        for event in swarm.events(lambda: None):
            seen.append(event)
            if event["event"] == "listening" and event["by"] == "coordinator" and "standby" not in swarm.children:
                swarm.start_standby(event["run_id"], event["addresses"])
                swarm.start_peers(4, event["run_id"], event["addresses"])
            act(swarm, event)
        return seen
    finally:
        swarm.close()
        swarm.folder.leave()


def check_report(place: Home, seen: list[Event], by: str, steps: int) -> None:
    """One coordinator has the report, it is as the reference's, and the other knows that the run is over."""
    ended = [event for event in seen if event["event"] == "ended"]
    assert [(event["by"], event["error"]) for event in ended] == [(by, "")]
    manifest = place.folder / "run.toml"
    manifest.write_text(manifest_of(steps), encoding="utf-8")
    reference = place.report("reference", "--manifest", str(manifest))
    assert_agree(ended[0]["report"], reference, 1e-3)
    assert_clean(ended[0]["report"], steps)
    assert ended[0]["report"]["ledger"]["microbatches"] == BATCH * steps


def terms(seen: list[Event]) -> list[tuple[str, int]]:
    return [(event["by"], event["term"]) for event in seen if event["event"] == "leads"]


def test_a_standby_finishes_the_run_of_a_killed_trainer(place: Home) -> None:
    def act(swarm: LocalSwarm, event: Event) -> None:
        if event["event"] == "stepped" and event["step"] == 5:
            swarm.kill(swarm.children["coordinator"])

    seen = run_swarm(place, act, FEW)
    assert place.wait_until_clean() == []
    check_report(place, seen, "standby", FEW)
    assert terms(seen) == [("coordinator", 1), ("standby", 2)]


@pytest.mark.slow  # the schedule on real processes (`chaos/test_real.py`) has one come back as well
def test_a_killed_trainer_comes_back_as_standby_and_leads_again(place: Home) -> None:
    started: list[Event] = []

    def act(swarm: LocalSwarm, event: Event) -> None:
        if event["event"] == "listening":
            started.append(event)
        elif len(started) == 2 and event["event"] == "stepped" and event["step"] == 3:
            swarm.kill(swarm.children["coordinator"])
        elif event["event"] == "leads" and event["by"] == "standby":
            first = started[0]
            swarm.start_standby(first["run_id"], first["addresses"], name="coordinator")
        elif event["event"] == "follows" and event["term"] == 2:
            swarm.kill(swarm.children["standby"])

    seen = run_swarm(place, act, MANY)
    check_report(place, seen, "coordinator", MANY)
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

    seen = run_swarm(place, act, MANY)
    assert terms(seen) == [("coordinator", 1), ("coordinator", 2)]
    assert next(event["error"] for event in seen if event["event"] == "ended") == ""


# ---- what is kept


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_PEER_STATE", str(tmp_path))
    return tmp_path


RUN = "ab" * 32


def test_a_dead_coordinators_place_is_taken_and_a_living_ones_is_not(state: Path) -> None:
    with CoordinatorState.claim(RUN) as first:
        first.keep_term(3)
        with CoordinatorState.claim(RUN) as second:
            assert second.identity != first.identity
            assert second.term() == 0
    with CoordinatorState.claim(RUN) as third, CoordinatorState.claim(RUN) as fourth:
        assert (third.identity, third.term()) == (first.identity, 3)
        assert fourth.identity == second.identity
    with CoordinatorState.claim("cd" * 32) as other:
        assert other.identity not in (first.identity, second.identity)


def test_a_term_never_goes_back_and_a_broken_one_is_not_guessed(state: Path) -> None:
    with CoordinatorState.claim(RUN) as place:
        place.keep_term(5)
        place.keep_term(2)
        assert place.term() == 5
        (place.folder / "term").write_text("5x")
        with pytest.raises(TrustError, match="does not hold a number"):
            place.term()


def test_what_is_kept_is_its_owners_alone_and_survives(state: Path) -> None:
    manifest = tiny_manifest()
    signed = sign_manifest(ORGANIZER, manifest)
    with CoordinatorState.claim(manifest.run_id) as place:
        assert (place.manifest(), place.delegation(), place.met()) == (None, None, ())
        place.keep_manifest(signed)
        place.keep_delegation(b"word")
        place.keep_met(["/ip4/127.0.0.1/tcp/1"])
    with CoordinatorState.claim(manifest.run_id) as again:
        assert (again.manifest(), again.delegation(), again.met()) == (signed, b"word", ("/ip4/127.0.0.1/tcp/1",))
        (again.folder / "manifest.signature").write_bytes(b"0" * 64)
        with pytest.raises(TrustError, match="not signed"):
            again.manifest()
    files = [path for path in state.rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_a_run_that_is_over_is_forgotten_and_said_to_be_over(state: Path) -> None:
    with CoordinatorState.claim(RUN) as place:
        place.over = True
    with CoordinatorState.claim(RUN) as later:
        assert later.over
        assert later.identity != place.identity


def test_a_standby_believes_only_the_organizers_signature() -> None:
    manifest = tiny_manifest()
    genuine = sign_manifest(ORGANIZER, manifest)
    answers = {
        "liar": pb.Welcome(manifest=genuine.canonical, signature=bytes(64)),
        "another run's": pb.Welcome(manifest=genuine.canonical[:-1], signature=genuine.signature),
        "no trainer": pb.Busy(),
        "trainer": pb.Welcome(manifest=genuine.canonical, signature=genuine.signature),
    }

    async def main() -> SignedManifest:
        network, directory = MemoryNetwork(0, (0.001, 0.005)), MemoryDirectory()
        for sequence, (name, answer) in enumerate(reversed(answers.items())):
            identity = Identity.from_seed(name)
            transport = network.transport(identity.peer_id)

            async def serve(stream: Stream, answer: Any = answer) -> None:
                await stream.receive()
                await stream.send(pack(answer))
                await asyncio.sleep(1.0)

            await transport.serve(serve)
            record = Record(manifest.run_id, TRAINER_STAGE, identity.peer_id, (), sequence, PROTOCOL_VERSION)
            await directory.publish(record, 60.0)
        standby = network.transport(Identity.from_seed("standby").peer_id)
        return await ask_for_manifest(standby, directory, manifest.run_id)

    assert run(main(), limit=30.0) == genuine


def test_a_standby_has_the_runs_texts_or_none(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_PEER_HOME", place.environment["SWARM_PEER_HOME"])
    manifest = prepare(parse_settings(manifest_of(FEW)), organizer="0" * 64, nonce="0" * 32).manifest
    assert take_up(manifest).samples().microbatch(3, 1) == take_up(manifest).samples().microbatch(3, 1)
    text = place.folder / "c/texts/shakespeare.txt"
    text.write_text(text.read_text(encoding="utf-8") + "!", encoding="utf-8")
    with pytest.raises(DataError, match="bring the same file"):
        take_up(manifest)


def test_a_run_id_is_no_path(state: Path) -> None:
    with pytest.raises(TrustError, match="not a run id"):
        CoordinatorState.claim("../" * 8)


@pytest.mark.parametrize(
    "arguments",
    [
        ["start"],
        ["start", "--standby"],
        ["start", "--standby", "--run", RUN],
        ["start", "run.toml", "--run", RUN],
        ["start", "run.toml", "--standby", "--run", RUN, "--initial-peers", "/ip4/127.0.0.1/tcp/1"],
    ],
)
def test_a_command_that_says_too_little_or_too_much_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert coordinator_cli(arguments) == 2
    assert "--standby" in capsys.readouterr().err
