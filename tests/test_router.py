"""The emulated internet: real TCP between processes in namespaces of their own, moved by the router as links would."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from swarm_peer.simulations.links import Access, Downlink, Uplink
from swarm_peer.simulations.router import Port, Router

from tests.namespaces import TCP, needs_namespaces

MBIT = 125_000.0

NODE = """
import json, socket, sys, time
from swarm_peer.simulations.namespace import enter_namespace

channel = socket.socket(fileno=int(sys.argv[1]))
tun = enter_namespace(sys.argv[2], 1500, sys.argv[4])
socket.send_fds(channel, [b"tun"], [tun])
if sys.argv[3] == "listen":
    listener = socket.create_server(("0.0.0.0", 5000))
    channel.send(b"listening")
    while True:
        other, _ = listener.accept()
        received = 0
        while data := other.recv(1 << 16):
            received += len(data)
            if received == 1:
                other.sendall(b"x")
        channel.send(json.dumps([received, time.monotonic()]).encode())
while order := channel.recv(100):
    size, began = int(order), time.monotonic()
    with socket.create_connection(("11.77.1.1", 5000), timeout=20) as other:
        connected = time.monotonic()
        other.sendall(b"x")
        other.recv(1)
        answered = time.monotonic()
        other.sendall(bytes(size))
    channel.send(json.dumps([connected - began, answered - connected, answered]).encode())
"""


pytestmark = needs_namespaces


class Node:
    """A process in a namespace of its own."""

    def __init__(self, router: Router, address: str, access: Access, role: str) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(30)
        with theirs:
            command = [sys.executable, "-c", NODE, str(theirs.fileno()), address, role, TCP]
            self.process = subprocess.Popen(command, pass_fds=(theirs.fileno(),))
        _, (tun,), _, _ = socket.recv_fds(self.channel, 10, 1)
        os.set_blocking(tun, False)
        router.attach(Port(socket.inet_aton(address), tun, access, address))

    def told(self) -> list[float]:
        answer: list[float] = json.loads(self.channel.recv(1000))
        return answer

    def close(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.channel.close()


@contextmanager
def two_nodes(near: Access, far: Access) -> Iterator[tuple[Router, Node, Node]]:
    """The router, who sends, and who receives."""
    router = Router()
    router.start()
    nodes = []
    try:
        nodes.append(Node(router, "11.77.1.1", far, "listen"))
        assert nodes[0].channel.recv(100) == b"listening"
        nodes.append(Node(router, "11.77.1.2", near, "send"))
        yield router, nodes[1], nodes[0]
    finally:
        for node in nodes:
            node.close()
        router.close()


def access(up: float = float("inf"), down: float = float("inf"), latency: float = 0.0, loss: float = 0.0) -> Access:
    return Access(Uplink(up), Downlink(down), latency, loss=loss)


def test_a_round_trip_takes_the_latency_of_the_way() -> None:
    with two_nodes(access(latency=0.02), access(latency=0.03)) as (_, sender, receiver):
        trips = []
        for _ in range(5):
            sender.channel.send(b"0")
            connect, echo, _ = sender.told()
            receiver.told()
            trips += [connect, echo]
    assert 0.1 <= min(trips) < 1.0  # more only as far as this machine is late


@pytest.mark.parametrize("which", ["up", "down"])
def test_no_more_comes_than_a_link_lets_through(which: str) -> None:
    near = access(up=8 * MBIT) if which == "up" else access()
    far = access(down=8 * MBIT) if which == "down" else access()
    with two_nodes(near, far) as (router, sender, receiver):
        sender.channel.send(b"2000000")
        _, _, began = sender.told()
        received, ended = receiver.told()
        assert received == 2_000_001
        assert ended - began >= 2_000_000 / (8 * MBIT)
        assert near.up.carried > 2_000_000
        assert far.down.carried > 2_000_000
        assert router.busiest < 1.0


def test_what_is_lost_comes_all_the_same() -> None:
    with two_nodes(access(loss=0.05), access()) as (router, sender, receiver):
        sender.channel.send(b"500000")
        sender.told()
        assert receiver.told()[0] == 500_001
        assert router.lost > 5


def test_a_cut_lets_nothing_through_until_it_heals() -> None:
    with two_nodes(access(), access()) as (router, sender, receiver):
        heal = router.cut(lambda one, other: True)
        began = time.monotonic()
        sender.channel.send(b"0")
        receiver.channel.settimeout(1.0)
        with pytest.raises(TimeoutError):
            receiver.channel.recv(100)
        heal()
        receiver.channel.settimeout(30.0)
        assert receiver.told()[0] == 1
        assert receiver.process.poll() is None
        assert time.monotonic() - began > 1.0
