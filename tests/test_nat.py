"""Peers behind routers that translate addresses: in a scenario, on virtual time, with real processes and iptables."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from swarm_peer.errors import EmulationError, ScenarioError
from swarm_peer.simulations import namespace
from swarm_peer.simulations.cli import main
from swarm_peer.simulations.links import Access
from swarm_peer.simulations.nat import Nat, meet
from swarm_peer.simulations.router import Port, Router
from swarm_peer.simulations.scenario import parse_scenario
from swarm_peer.simulations.study import Study

from tests.namespaces import TCP, needs_iptables
from tests.small_swarm import small_run

PEER = """
forward = 0.1
backward = 0.2
up = 20
down = 100
latency = 20
"""

TEXT = f"""
title = "Behind routers"
minutes = 3
{small_run(4)}
[[peers]]
name = "open"
stage = 0
{PEER}
[[peers]]
name = "home"
count = 2
nat = "cone"
{PEER}
[[peers]]
name = "strict"
nat = "symmetric"
{PEER}
"""

LIMIT = 30
"""Seconds after which a node ends, whatever it does."""

NATS: tuple[Nat, ...] = ("cone", "symmetric")


@pytest.mark.parametrize(
    ("one", "other", "direct"),
    [
        (None, None, True),
        (None, "symmetric", True),
        ("cone", None, True),
        ("cone", "cone", True),
        ("cone", "symmetric", False),
        ("symmetric", "cone", False),
        ("symmetric", "symmetric", False),
    ],
)
def test_who_meets_whom(one: Nat | None, other: Nat | None, direct: bool) -> None:
    assert meet(one, other) is direct
    coordinator = Access()
    near, far = Access(nat=one, host=coordinator), Access(nat=other, host=coordinator)
    assert near.between(far) is (None if direct else coordinator)
    assert near.between(coordinator) is None


def test_who_must_not_meet_sends_through_the_coordinators_link() -> None:
    """With that link thin, the same swarm takes longer."""
    strict = TEXT.replace('nat = "cone"', 'nat = "symmetric"').replace("stage = 0\n", 'stage = 0\nnat = "symmetric"\n')
    thin = strict + "\n[coordinator]\nup = 2\ndown = 2\n"
    texts = strict, thin, thin.replace('nat = "symmetric"\n', "")
    wide, narrow, direct = (Study(parse_scenario(text, "routers")).run() for text in texts)
    assert wide.finished
    assert narrow.finished
    assert direct.finished
    assert narrow.seconds > 1.5 * wide.seconds
    assert narrow.seconds > 1.5 * direct.seconds


@pytest.mark.parametrize("line", ["shared = true", 'relay = "open"'])
def test_a_router_is_each_peers_own(line: str) -> None:
    with pytest.raises(ScenarioError, match="router of its own"):
        parse_scenario(TEXT.replace('nat = "cone"', f'nat = "cone"\n{line}'), "routers")


def test_without_iptables_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EmulationError, match="need the program iptables"):
        namespace._translate("11.77.1.1", "cone")


@needs_iptables
@pytest.mark.parametrize("nat", NATS)
def test_only_answers_come_in(nat: Nat) -> None:
    """The one behind a router calls the other, which cannot call it, and sees its port as it is, or another."""
    router = Router()
    outside, inside = socket.socketpair()
    pids = []
    for address, kind, own in (("11.77.1.1", None, outside), ("11.77.1.2", nat, inside)):
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            _act(address, kind, own, far)
        pids.append(pid)
        _, (tun,), _, _ = socket.recv_fds(near, 100, 1)
        os.set_blocking(tun, False)
        router.attach(Port(socket.inet_aton(address), tun, Access(), address))
        near.close()
        far.close()
    router.start()
    outside.close()
    inside.close()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    router.close()


def _act(address: str, nat: Nat | None, own: socket.socket, channel: socket.socket) -> None:
    """One node, in a process of its own that ends here."""
    signal.alarm(LIMIT)
    problem = "it failed"
    try:
        tun = namespace.enter_namespace(address, 1500, TCP, nat)
        socket.send_fds(channel, [b"here"], [tun])
        problem = _outside(own, "11.77.1.2") if nat is None else _inside(own, nat)
    finally:
        if problem:
            print(f"{address}: {problem}", file=sys.stderr)
        os._exit(bool(problem))


def _outside(own: socket.socket, other: str) -> str:
    listener = socket.create_server(("11.77.1.1", 5000))
    listener.settimeout(10)
    own.sendall(b"ready")
    connection, (host, port) = listener.accept()
    if host != other:
        return f"called from {host}"
    own.sendall(port.to_bytes(2, "big"))
    connection.sendall(b"hello")
    try:
        socket.create_connection((other, 6000), timeout=1)
    except TimeoutError:
        return ""
    finally:
        own.sendall(b".")
    return "it could be called"


def _inside(own: socket.socket, nat: Nat) -> str:
    listener = socket.create_server(("0.0.0.0", 6000))
    own.recv(5)
    with socket.create_connection(("11.77.1.1", 5000), timeout=10, source_address=("0.0.0.0", 7000)) as connection:
        same = int.from_bytes(own.recv(2), "big") == 7000
        if connection.getsockname()[0] != namespace.INSIDE or connection.recv(5) != b"hello":
            return "no answer came"
        own.recv(1)  # until the other one has tried to call
        listener.close()
    return "" if same == (nat == "cone") else "its port is not what it should be"


@needs_iptables
def test_a_swarm_behind_routers_trains(tmp_path: Path) -> None:
    """Some of its four peers can meet only through the coordinator."""
    file, report = tmp_path / "routers.toml", tmp_path / "out.json"
    file.write_text(TEXT)
    arguments = ["emulate", str(file), "--tcp", TCP, "--folder", str(tmp_path / "logs"), "--report", str(report)]
    assert main(arguments) == 0, (tmp_path / "logs" / "log").read_text()[-2000:]
    (told,) = json.loads(report.read_text())
    assert told["finished"]
    assert len(told["steps"]) == 4
    assert told["lost"] == 0
