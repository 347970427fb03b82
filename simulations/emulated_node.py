"""One machine or coordinator of an emulated internet: a process in a network namespace of its own.

`python -m swarm_peer.simulations.emulated_node SOCKET NAME` (or forked, `peer/zygote.py`): it connects to the socket
(SEQPACKET) of whoever emulates, over which `Channel` carries messages, a JSON object each. The first one says who this
is (`Order`); the answer carries its TUN device. When it is told to go it goes about its work: the real peer or
coordinator, libp2p and directory; its device is a duration, its tensors are zeros of the true size.
"""

import asyncio
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EmulationError, SwarmError
from .namespace import INSIDE, enter_namespace
from .nat import Nat

if TYPE_CHECKING:
    from ..swarm.host import Moment
    from ..swarm.peer import Peer
    from ..swarm.succession import Succession

MESSAGE_BYTES = 1 << 20
PORT = 4001
STATUS_SECONDS = 0.5
PORTS = 8
"""Peers of one machine, one after the other, that listen on ports of their own."""


@dataclass(frozen=True, slots=True)
class Order:
    """`scenario`: its file; `machine`: whose peer to run, at which `stage` (None: where it is needed most), or None for
    the coordinator `coordinator`. `folder`: for sockets and logs; `address`: in the emulated network; `tcp`, `nat`: see
    `enter_namespace`; `initial_peers`: whom to ask first."""

    scenario: str
    seed: int
    folder: str
    address: str
    mtu: int
    tcp: str
    initial_peers: tuple[str, ...] = ()
    machine: int | None = None
    stage: int | None = None
    coordinator: int = 0
    leads: bool = False
    term: int = 0
    nat: Nat | None = None

    @property
    def own_address(self) -> str:
        """Where it can listen."""
        return INSIDE if self.nat else self.address

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Channel:
    """Messages between whoever emulates and a node; descriptors may go with them."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @classmethod
    def to(cls, path: str, name: str) -> "Channel":
        """Of the node of this name."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end.connect(path)
        channel = cls(end)
        channel.send({"name": name})
        return channel

    def send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Returns whether or not anybody is there any more."""
        with suppress(OSError):
            socket.send_fds(self._end, [json.dumps(message).encode()], descriptors)

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next one, for which it waits. Raises `EOFError`."""
        text, descriptors, _, _ = socket.recv_fds(self._end, MESSAGE_BYTES, 1)
        if not text:
            raise EOFError
        return self.parse(text), descriptors

    @staticmethod
    def parse(text: bytes) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(text)
        return message

    async def receive_all(self) -> AsyncIterator[dict[str, Any]]:
        """Every message until the other end is closed."""
        self._end.setblocking(False)
        while True:
            try:
                text = await asyncio.get_running_loop().sock_recv(self._end, MESSAGE_BYTES)
            except OSError:
                return
            if not text:
                return
            yield self.parse(text)


def main(arguments: list[str]) -> int:
    path, name = arguments
    channel = Channel.to(path, name)
    told, _ = channel.receive()
    order = Order(**{**told, "initial_peers": tuple(told["initial_peers"])})
    try:
        tun = enter_namespace(order.address, order.mtu, order.tcp, order.nat)
    except EmulationError as error:
        channel.send({"refused": str(error)})
        return 1
    channel.send({"ready": order.address}, (tun,))
    os.close(tun)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to whoever emulates
    from ..swarm.process import run_process

    node = _Node(order, channel)
    return run_process(node.run())


class _Node:
    def __init__(self, order: Order, channel: Channel) -> None:
        from .cast import Cast
        from .scenario import Scenario

        self._order = order
        self._channel = channel
        scenario = Scenario.model_validate_json(Path(order.scenario).read_text(encoding="utf-8"))
        self._cast = Cast.of(scenario, order.seed)
        self._peers: list[Peer] = []
        self._devices: list[Any] = []
        self._slowdown = 1.0
        self._leaves = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._succession: Succession | None = None

    async def run(self) -> int:
        """Does as it is told until its work is done or nobody tells it anything any more."""
        work: asyncio.Task[None] | None = None
        status = asyncio.ensure_future(self._tell_status())
        async for message in self._channel.receive_all():
            if "go" in message and work is None:
                self._order = Order(**{**self._order.to_json(), "initial_peers": tuple(message["go"])})
                work = asyncio.ensure_future(self._work())
                work.add_done_callback(self._say_the_end)
            elif "slowdown" in message:
                self._slowdown = message["slowdown"]
                for device in self._devices:
                    device.slowdown = self._slowdown
            elif "ask" in message and self._succession is not None and self._succession.trainer is not None:
                self._channel.send({"asked": _short(self._succession.trainer.report())})
            elif "leave" in message:
                self._leaves = message["leave"]
                for peer in self._peers:
                    peer.leave(message["leave"])
        status.cancel()
        return 0

    def _say_the_end(self, work: "asyncio.Task[None]") -> None:
        error = None if work.cancelled() else work.exception()
        if error is not None:
            _log(self._order.address, f"ended: {error!r}")
        self._channel.send({"ended": "" if error is None else f"{type(error).__name__}: {error}"})

    async def _work(self) -> None:
        if self._order.machine is None:
            await self._coordinate()
        else:
            await self._serve(self._order.stage)
            while self._tasks:  # it has moved
                await asyncio.wait(self._tasks)

    async def _tell_status(self) -> None:
        while True:
            await asyncio.sleep(STATUS_SECONDS)
            succession = self._succession
            leads = succession is not None and succession.trainer is not None and not succession.follows
            self._channel.send(
                {
                    "worked": [device.worked for device in self._devices],
                    "waits": [0 if peer.host is None else peer.host.queue.waiting for peer in self._peers],
                    "leads": leads,
                }
            )

    # ---- a machine

    async def _serve(self, stage: int | None, replaces: int = 0, serves: Callable[[], None] = lambda: None) -> None:
        """A peer of this machine, to its end."""
        from ..swarm.keys import Identity
        from ..swarm.peer import Parts, Peer
        from ..swarm.process import network_node
        from ..swarm.spill_file import DiskSpill
        from .devices import SimulatedDevice
        from .sized import SizedArithmetic, SizedBackend

        assert self._order.machine is not None
        machine = self._cast.machines[self._order.machine]
        number = len(self._peers)
        name = f"peer {machine.number}" + (f".{number}" if number else "")
        identity = Identity.from_seed(name)
        folder = Path(self._order.folder) / f"{number}"
        device = SimulatedDevice(random.Random(f"{self._order.seed}/{name}"), noise=machine.group.noise)
        device.slowdown = self._slowdown
        spill = DiskSpill(folder / "spill")
        listen = f"/ip4/{self._order.own_address}/tcp/{PORT + number % PORTS}"
        try:
            async with network_node(identity, folder, [listen], self._order.initial_peers) as (transport, directory):
                backend = partial(SizedBackend, whole=True, garbles=machine.garbles(self._order.seed))
                parts = Parts(backend, lambda manifest: SizedArithmetic())
                peer = Peer(transport, directory, device, parts, spill)
                peer.observe = partial(self._watch, peer)
                peer.tell = partial(_log, name)
                self._peers.append(peer)
                self._devices.append(device)

                def placed(stage: int) -> None:
                    device.durations = machine.durations(self._cast.manifest, stage)
                    self._channel.send({"placed": stage, "device": number})

                device.durations = machine.durations(self._cast.manifest, 0)
                peer.placed, peer.ended = placed, lambda: self._channel.send({"gone": number})
                peer.replaces, peer.serves = replaces, serves
                peer.moves = partial(self._move, peer)
                if self._leaves:
                    peer.leave(self._leaves)
                await peer.run(self._cast.manifest.run_id, stage)
        finally:
            spill.close()

    def _watch(self, peer: "Peer", moment: "Moment") -> None:
        from .sized import wrong_sum

        if moment.name != "applied" or peer.host is None:
            return
        state = peer.host.versions.get(peer.host.versions.latest)
        assert state is not None
        wrong = wrong_sum(state, self._cast.manifest.microbatches)
        if wrong:
            self._channel.send({"wrong": f"{peer.transport.peer_id}: {wrong}"})

    def _move(self, peer: "Peer", target: int) -> bool:
        """Another peer of this machine comes, and this one leaves for it."""
        if peer.host is None or peer.leaving:
            return False

        def serves() -> None:
            if not peer.leaving:
                peer.leave(f"it moves to stage {target}")

        moving = asyncio.ensure_future(self._serve(target, peer.host.member, serves))
        self._tasks.add(moving)
        moving.add_done_callback(self._tasks.discard)
        return True

    # ---- a coordinator

    async def _coordinate(self) -> None:
        from ..swarm.keys import delegate, sign_manifest
        from ..swarm.process import network_node
        from ..swarm.succession import Succession
        from .cast import COORDINATORS, ORGANIZER, checkpoints_of
        from .devices import SimulatedDevice
        from .sized import SizedArithmetic, SizedSamples

        order, manifest = self._order, self._cast.manifest
        identity = COORDINATORS[order.coordinator]
        listen = [f"/ip4/{order.address}/tcp/{PORT}"]
        node = network_node(identity, Path(order.folder), listen, order.initial_peers, relays=True)
        async with node as (transport, directory):
            self._succession = Succession(
                manifest=manifest,
                signature=sign_manifest(ORGANIZER, manifest).signature,
                identity=identity,
                delegation=delegate(ORGANIZER, manifest.run_id, identity.public_hex),
                transport=transport,
                directory=directory,
                arithmetic=SizedArithmetic(),
                samples=SizedSamples(manifest),
                emit=self._saw,
                checkpoints=checkpoints_of(self._cast.scenario, manifest, whole=True),
                device=SimulatedDevice(random.Random(f"{order.seed}/{identity.peer_id}")),
                highest=order.term,
                remember=lambda term: self._channel.send({"term": term}),
            )
            report = await self._succession.run(lead=order.leads)
            report = report or self._succession.known_report()
            if report is not None:
                self._channel.send({"report": _short(report)})

    def _saw(self, event: Any) -> None:
        from .books import SEEN

        if event.kind in SEEN:
            self._channel.send({"event": event.to_json()})


def _log(name: str, line: str) -> None:
    print(f"{time.monotonic():.2f} {name}: {line}", file=sys.stderr, flush=True)


def _short(report: Mapping[str, Any]) -> dict[str, Any]:
    """What books need of a report."""
    return {name: report[name] for name in ("faults", "ledger")}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SwarmError as error:
        sys.exit(f"{type(error).__name__}: {error}")
