"""A real peer asked at its local socket, and leaving its run politely."""

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from swarm_peer.errors import UsageError
from swarm_peer.peer.control import Control
from swarm_peer.peer.control_commands import in_words
from swarm_peer.peer.local_swarm import LocalSwarm
from swarm_peer.protos import api_pb2 as pb
from swarm_peer.swarm.process import SharedFolder

from tests.processes import Home, home
from tests.test_api import MANIFEST

SERVICE = pb.DESCRIPTOR.services_by_name["Peer"]


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


def test_before_it_hosts_anything(tmp_path: Path) -> None:
    control = Control()
    assert in_words(control.status()) == "finding the run"
    with pytest.raises(UsageError, match="hosts no stage yet"):
        control.limit(3)
    assert not control.leave("bed time")
    assert in_words(control.status()) == "leaving: bed time"


def test_nobody_is_there_to_ask(place: Home) -> None:
    for command in (("status",), ("leave", "--now")):
        code, output = place.run("swarm-peer", *command)
        assert (code, "no peer of yours runs on this machine" in output) == (2, True), output


def test_a_peer_is_asked_and_leaves(place: Home) -> None:
    swarm = LocalSwarm("tiny", SharedFolder.temporary(), place.environment)
    try:
        swarm.start_coordinator(MANIFEST, "--http", "off", "--api", "off")
        _ask_and_let_go(place, swarm)
    finally:
        swarm.close()
        swarm.folder.leave()


def _ask_and_let_go(place: Home, swarm: LocalSwarm) -> None:
    left: list[dict[str, Any]] = []
    ready: list[dict[str, Any]] = []
    first = second = None
    for event in swarm.events(lambda: None):
        if event["event"] == "listening":
            swarm.start_peers(4, event["run_id"], event["addresses"])
        elif event["event"] == "stepped" and event["step"] >= 3 and first is None:
            stages = {entry["peer"]: entry["stage"] for entry in ready}
            first = swarm.children["peer-0"]
            second = next(c for c in swarm.children.values() if c.peer and stages[c.peer] != stages[first.peer])
            _ask(place, first.process.pid)
            code, output = place.run("swarm-peer", "leave", "--pid", str(first.process.pid), "--why", "bed time")
            assert (code, "leaving" in output) == (0, True), output
        elif event["event"] == "ready":
            ready.append(event)
        elif event["event"] == "left":
            left.append(event)
            if len(left) == 1:
                assert second is not None
                os.kill(second.process.pid, signal.SIGINT)
            else:
                break
        assert event["event"] != "lost", event
    assert first is not None
    assert second is not None
    assert [event["peer"] for event in left] == [first.peer, second.peer]
    assert [event["why"] for event in left] == ["bed time", "its owner ends it"]
    assert (first.process.wait(60), second.process.wait(60)) == (0, 0)
    assert "left the run: bed time" in swarm.last_words("peer-0")
    assert "Ctrl-C again goes at once" in swarm.last_words(second.name)


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
    assert (code, "of 3 visits open" in output) == (0, True), output
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
