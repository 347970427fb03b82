"""A real peer asked at its local socket, and leaving its run politely."""

import asyncio
import json
import re
import stat
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from swarm_peer.errors import UnreachableError, UsageError
from swarm_peer.peer.control import Control, serve_control
from swarm_peer.peer.control_commands import in_words
from swarm_peer.peer.local_swarm import LISTEN, Child, LocalSwarm
from swarm_peer.peer.owner import Pause
from swarm_peer.protos import api_pb2 as pb
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.compute import BACKGROUND, FORWARD, ThreadDevice
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.milestones import PHASES
from swarm_peer.swarm.milestones import in_words as in_words_counted

from tests.exact import exact_manifest, exact_swarm
from tests.processes import AT_LEISURE, Home, Terminal, home
from tests.test_api import MANIFEST

FOR_FOUR = MANIFEST.replace("batch = 2", "batch = 8") + "[pipeline]\nmin_replicas = 2\n"
"""Begins with two peers a stage: who came later might be sent away and come again, where a run is too fast for it."""

SERVICE = pb.DESCRIPTOR.services_by_name["Peer"]


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


def test_before_it_hosts_anything(tmp_path: Path) -> None:
    control = Control()
    assert in_words(control.status()) == "finding the run"
    with pytest.raises(UsageError, match="hosts no stage yet"):
        control.limit(slots=3)
    assert not control.leave("bed time")
    assert in_words(control.status()) == "leaving: bed time"


def test_what_is_out_of_reach_is_not_its_socket(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of what the peer does is told as what it is."""
    monkeypatch.setenv("SWARM_PEER_STATE", place.environment["SWARM_PEER_STATE"])

    async def fail() -> None:
        async with serve_control(Control()):
            raise UnreachableError("no trainer")

    with pytest.raises(UnreachableError, match=r"^no trainer$"):
        asyncio.run(fail())


def test_only_the_first_member_has_been_on_its_way_since_the_command() -> None:
    control = Control()
    control.began = 100.0
    first, second = control.set_out(103.0), control.set_out(120.0)
    for milestones in (first, second):
        milestones.reach("credit", 130.0)
    assert (first.took["start"], second.took["start"]) == (3.0, 0.0)


def test_what_it_waits_for_between_two_times_in_a_run() -> None:
    control = Control()
    control.waits = Pause("it is after 07:00", "until 22:00")
    assert in_words(control.status()) == "pausing until 22:00: it is after 07:00"
    assert control.leave("bed time")
    assert control.asked.is_set()
    assert in_words(control.status()) == "ended: bed time"


def test_what_peers_count_is_what_the_run_counts_also_when_the_first_has_ended() -> None:
    """Of two peers of one machine the first leaves: the other's state is shown, and what both have done. All counts
    together are the run's."""
    manifest = exact_manifest(steps=9)
    control = Control()
    members: list[str] = []
    counted: dict[str, tuple[int, int]] = {}
    states: list[str] = []

    def of_machine() -> int:
        return sum(counted[member][1] for member in members)

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if not members:
            members.extend((swarm.live_at(0)[0], swarm.live_at(1)[0]))
            for member in members:
                observe = swarm.peers[member].observe
                control.add(swarm.peers[member])
                swarm.peers[member].observe = observe
        first, second = (swarm.peers[member].host for member in members)
        if moment.name == "forward" and moment.step == 3:
            swarm.peers[members[0]].leave("enough")
        host = swarm.peers[peer].host
        if moment.name == "applied" and host is not None:
            counted[peer] = host.stage, host.counted
            if first is None and second is not None:
                found = control.status()
                states.append(found.state)
                assert (found.stage, list(found.hosted), found.version) == (1, [1], second.versions.latest)
                assert found.counted == of_machine()

    run(exact_swarm(manifest, watch=watch).run(), limit=300.0)
    assert set(states) == {"working"}
    for stage in range(3):
        assert sum(count for at, count in counted.values() if at == stage) == 9 * 4
    ended = control.status()
    assert (ended.state, ended.counted, control.peers) == ("ended", of_machine(), [])


def test_limits_hold_where_it_computes() -> None:
    before = torch.get_num_threads()
    device = ThreadDevice()
    try:
        device.on_both(partial(torch.set_num_threads, before + 1))
        for phase in (FORWARD, BACKGROUND):
            assert asyncio.run(device.run(phase, torch.get_num_threads)) == before + 1
    finally:
        torch.set_num_threads(before)
        device.close()


def test_nobody_is_there_to_ask(place: Home) -> None:
    for command in (("status",), ("leave", "--now")):
        code, output = place.run("swarm-peer", *command)
        assert (code, "no peer of yours runs on this machine" in output) == (2, True), output


def test_peers_are_watched_asked_and_leave(place: Home) -> None:
    """One of them tells all in JSON, one stands in a terminal; both leave politely, and nothing is lost."""
    swarm = place.swarm()
    try:
        swarm.start_coordinator(FOR_FOUR, "--http", "off", "--api", "off")
        _watch_and_let_go(place, swarm)
    finally:
        swarm.close()
        swarm.folder.leave()


def _watch_and_let_go(place: Home, swarm: LocalSwarm) -> None:
    left: list[dict[str, Any]] = []
    teller: Child | None = None
    window: Terminal | None = None
    steps_since_ready = -1
    for event in swarm.events(lambda: None):
        if event["event"] == "listening":
            run, addresses = event["run_id"], event["addresses"]
            for number in (0, 1):
                swarm.start_peer(number, run, addresses, "--stage", str(number), *AT_LEISURE)
            forked, swarm.zygote = swarm.zygote, None  # the next one is to tell what its imports took
            watched = ("--json", "--log-level", "debug")
            teller = swarm.start_peer(2, run, addresses, "--stage", "0", *watched, *AT_LEISURE)
            swarm.zygote = forked
            join = ("join", "--model", "tiny", "--run", run, "--initial-peers", *addresses, "--stages", "1")
            flags = ("--stage", "1", "--listen", LISTEN, "--folder", str(swarm.folder.path), *AT_LEISURE)
            window = Terminal(30, 110, "swarm-peer", *join, *flags, environment=place.environment)
        elif event["event"] == "ready":
            assert teller is not None
            steps_since_ready = 0 if event["peer"] == teller.peer else steps_since_ready
        elif event["event"] == "stepped" and steps_since_ready >= 0:
            steps_since_ready += 1
            if steps_since_ready != 4:
                continue
            assert teller is not None
            _ask(place, teller.process.pid)
            code, output = place.run("swarm-peer", "leave", "--pid", str(teller.process.pid), "--why", "bed time")
            assert (code, "leaving" in output) == (0, True), output
        elif event["event"] == "left":
            left.append(event)
            if len(left) == 2:
                break
            assert window is not None
            _look(window.until(" · loss "))
            window.interrupt()
            window.until("Ctrl-C again goes at once")
        assert event["event"] != "lost", event
    assert teller is not None
    assert window is not None
    assert [event["why"] for event in left] == ["bed time", "its owner ends it"]
    assert left[0]["peer"] == teller.peer
    assert teller.process.wait(60) == 0
    assert window.close() == (0, True)
    assert "left the run: its owner ends it" in window.until("left the run")
    _read([json.loads(line) for line in teller.log.read_text(encoding="utf-8").splitlines()])


def _look(written: str) -> None:
    """What a terminal showed of a peer at work."""
    assert "found run" not in written
    assert "stage 1 of 2" in written
    assert " state  working" in written
    assert "microbatches that counted" in written
    assert written.index("ready") < written.index(" · loss ")


def _read(told: list[dict[str, Any]]) -> None:
    """What a script was told of a peer's whole life."""
    said = [event["text"] for event in told if event["event"] == "said"]
    assert any(text.startswith("hosting stage 0 of 2") for text in said)
    assert any(re.search(r": held: stage 0, step \d+, microbatch \d+$", text) for text in said)
    statuses = [event for event in told if event["event"] == "status"]
    states = [state for state, _ in groupby(status["state"] for status in statuses)]
    assert [state for state in states if state != "leaving"][-2:] == ["working", "ended"]
    last = statuses[-1]
    assert last["leaving"] == "bed time"
    assert last["version"] >= 3
    assert last["loss"] > 0
    assert 0 < last["counted"] <= last["visits"]
    assert last["credit"] > 0
    (counted,) = (event for event in told if event["event"] == "counted")
    assert list(counted["phases"]) == list(PHASES)
    assert counted["phases"]["start"] > 0.1, "it begins with the process, not when the imports are done"
    assert counted["after"] == pytest.approx(sum(counted["phases"].values()), abs=0.01)
    assert [text for text in said if text.startswith("counted after ")] == [in_words_counted(last["counted_after"])]
    assert told[-1]["event"] == "ended"
    assert "left the run: bed time" in told[-1]["text"]


def _ask(place: Home, pid: int) -> None:
    folder = place.folder / "s" / "control"
    path = folder / f"{pid}.sock"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    code, output = place.run("swarm-peer", "status")
    assert (code, "name one with --pid" in output) == (2, True)
    code, output = place.run("swarm-peer", "status", "--pid", str(pid))
    assert (code, output.startswith("working: stage ")) == (0, True), output
    code, output = place.run("swarm-peer", "limit", "--slots", "3", "--pid", str(pid))
    assert (code, "of 3 visits open" in output, "on 1 thread" in output) == (0, True, True), output
    code, output = place.run("swarm-peer", "limit", "--threads", "999", "--pid", str(pid))
    assert (code, "999 threads: this machine has" in output) == (2, True), output
    code, output = place.run("swarm-peer", "logs", "--pid", str(pid))
    assert (code, "hosting stage" in output) == (0, True), output

    with grpc.insecure_channel(f"unix:{path}") as channel:
        service = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(SERVICE.full_name)
        assert {method.name for method in service.methods} == {method.name for method in SERVICE.methods}
        for method in service.methods:
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = make(f"/{SERVICE.full_name}/{method.name}")
            for data, due in (
                (b"\xff\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
                (b"\x0a" + b"x" * (65 << 10), grpc.StatusCode.RESOURCE_EXHAUSTED),
            ):
                with pytest.raises(grpc.RpcError) as refusal:
                    list(call(data, timeout=30)) if method.server_streaming else call(data, timeout=30)
                assert refusal.value.code() == due, method.name
