"""Several stages on one machine: as members of their own on real processes, and how they are started and end."""

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from swarm_peer.errors import FittingError, RefusedError, UnreachableError
from swarm_peer.peer.span import Place, host_stages, nth_address, nth_key
from swarm_peer.swarm.roster import Roster

from tests.processes import AT_LEISURE, LIMIT_SECONDS, Home, home

TWO_DEVICES = "swarm-peer with two devices"
LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0")


def coordinator_of(place: Home, steps: int, replicas: int) -> "subprocess.Popen[str]":
    """A coordinator that can be joined, of a tiny run in three stages."""
    manifest = place.folder / "run.toml"
    manifest.write_text(
        f'[model]\nname = "tiny"\nstages = 3\n[train]\nsteps = {steps}\nbatch = 4\n'
        f"[data]\nsequence_length = 32\nheldout_tokens = 64\n[pipeline]\nmin_replicas = {replicas}\n",
        encoding="utf-8",
    )
    coordinator = place.start("swarm-coordinator", "start", str(manifest), *LISTEN)
    assert coordinator.stdout is not None
    next(line for line in coordinator.stdout if line.strip().startswith("swarm-peer join"))
    return coordinator


def machine_of(place: Home, name: str, stages: int, *more: str, program: str = "swarm-peer") -> "subprocess.Popen[str]":
    flags = ("--stages", str(stages), *LISTEN, "--identity", str(place.folder / f"{name}.key"), "--threads", "1")
    return place.start(program, "join", "--model", "tiny", *flags, *more)


def wait_for(process: "subprocess.Popen[str]", start: str) -> None:
    """Reads what a process says up to a line that starts so."""
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith(start))


def test_two_machines_host_a_model_of_three_stages_and_one_is_killed() -> None:
    with home() as place:
        coordinator = coordinator_of(place, steps=25, replicas=2)
        machines = [machine_of(place, name, 4) for name in ("one", "two")]
        wait_for(coordinator, "step 1")
        machines[0].kill()
        machines[0].communicate(timeout=LIMIT_SECONDS)
        said = coordinator.communicate(timeout=LIMIT_SECONDS)[0]
        assert coordinator.returncode == 0, said
        assert "100 microbatches, lost 0, duplicated 0" in said
        assert "peers a stage: 1 1 1" in said
        other = machines[1].communicate(timeout=LIMIT_SECONDS)[0]
        assert machines[1].returncode == 0, other
        assert "hosts every stage of the run; serving 3" in other
        assert {f"hosting stage {stage} of 3" in other for stage in range(3)} == {True}


def test_a_run_that_goes_on_is_exported_and_evaluated(tmp_path: Path) -> None:
    with home() as place:
        coordinator = coordinator_of(place, steps=100_000, replicas=1)
        machine = machine_of(place, "one", 3, *AT_LEISURE, program=TWO_DEVICES)
        wait_for(coordinator, "step 1")
        code, said = place.run("swarm-coordinator", "export", str(tmp_path / "adapter"))
        measured = place.run("swarm-coordinator", "evaluate", "--json")
        assert place.run("swarm-peer", "leave", "--now")[0] == 0  # asked politely, the only replica would stay
        machine_said = machine.communicate(timeout=LIMIT_SECONDS)[0]
        coordinator.terminate()
        coordinator.communicate(timeout=LIMIT_SECONDS)
        assert code == 0, said
        assert "memory of stages 0 to 1 on cpu (" in machine_said
        assert re.search(r"memory of stage \d on cpu:0 \(", machine_said)
        assert f"written: {tmp_path / 'adapter'}" in said
        assert (tmp_path / "adapter/adapter_model.safetensors").is_file()
        assert measured[0] == 0, measured[1]
        assert 0 < json.loads(measured[1])["bits_per_byte"] < 9
        assert place.wait_until_clean() == []


def started(count: int, fails_at: int, error: Exception) -> tuple[list[str], Any]:
    """What is told, and the outcome, when member `fails_at` cannot start."""
    told: list[str] = []
    over = asyncio.Event()

    async def host(place: Place) -> str:
        if place.number in (fails_at, count - 1):
            over.set()
        if place.number == fails_at:
            raise error
        place.tell("here")
        place.placed(place.number)
        assert place.besides() == list(range(place.number + 1))
        await over.wait()
        return f"the end of {place.number}"

    async def main() -> str:
        return await host_stages(count, host, told.append, ["cpu"])

    try:
        return told, asyncio.run(main())
    except Exception as problem:
        return told, problem


def test_members_are_started_one_after_the_other() -> None:
    assert started(3, -1, RuntimeError()) == (["[1] here", "[2] here", "[3] here"], "the end of 0")
    assert started(1, -1, RuntimeError()) == (["here"], "the end of 0")


def test_where_there_is_no_room_for_one_more_the_others_go_on() -> None:
    told, outcome = started(3, 1, RefusedError("WRONG_STAGE", "it is full", "the trainer"))
    assert told == ["[1] here", "no further stage: it is full; serving 1"]
    assert outcome == "the end of 0"


def test_without_a_first_member_there_is_none() -> None:
    error = UnreachableError("nobody there")
    assert started(3, 0, error) == ([], error)


def dealt(count: int, room: dict[str, int]) -> tuple[list[str], list[str], Any]:
    """Where a machine's stages come to lie whose devices have room for so many, what is told, and the outcome."""
    told: list[str] = []
    hosting: list[str] = []
    full = asyncio.Event()

    async def host(place: Place) -> str:
        if hosting.count(place.device) == room[place.device]:
            if len(hosting) == sum(room.values()):
                full.set()
            raise FittingError(f"{place.device} is full")
        hosting.append(place.device)
        place.placed(place.number)
        if len(hosting) == count:
            full.set()
        await full.wait()
        return "the end"

    try:
        return hosting, told, asyncio.run(host_stages(count, host, told.append, list(room)))
    except FittingError as problem:
        return hosting, told, str(problem)


def test_stages_are_dealt_to_all_devices_alike() -> None:
    assert dealt(4, {"cuda:0": 9, "cuda:1": 9}) == (["cuda:0", "cuda:1", "cuda:0", "cuda:1"], [], "the end")


def test_what_has_no_room_on_one_device_goes_to_another() -> None:
    hosting, told, outcome = dealt(99, {"cuda:0": 1, "cuda:1": 3})
    assert hosting == ["cuda:0", "cuda:1", "cuda:1", "cuda:1"]
    assert told == ["no further stage on cuda:0", "no further stage: cuda:1 is full; serving 4"]
    assert outcome == "the end"
    assert dealt(99, {"cuda:0": 0, "cuda:1": 1})[:2] == (
        ["cuda:1"],
        ["no stage on cuda:0", "no further stage: cuda:1 is full; serving 1"],
    )


def test_where_no_device_has_room_the_machine_hosts_nothing() -> None:
    assert dealt(2, {"cuda:0": 0, "cuda:1": 0}) == ([], ["no stage on cuda:0"], "cuda:1 is full")


@pytest.mark.parametrize(
    ("address", "second"),
    [
        ("/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/tcp/4002"),
        ("/ip4/0.0.0.0/udp/4001/quic", "/ip4/0.0.0.0/udp/4002/quic"),
        ("/ip6/::/tcp/0", "/ip6/::/tcp/0"),
    ],
)
def test_each_member_has_a_port_of_its_own(address: str, second: str) -> None:
    assert nth_address(address, 0) == address
    assert nth_address(address, 1) == second


def test_each_member_has_a_key_of_its_own() -> None:
    assert [nth_key(Path("a/peer.key"), number).name for number in range(3)] == ["peer.key", "peer-2.key", "peer-3.key"]


def test_a_machine_gets_no_stage_twice() -> None:
    roster = Roster("run", 3, 1)
    assert [roster.place(f"p{number}", (), None, range(number)).stage for number in range(3)] == [0, 1, 2]
    assert roster.place("other", (), None).stage == 0
    assert roster.place("p3", (), None, (1, 2)).stage == 0
