"""The machines of a scenario as real processes in an emulated internet: each is a node in a namespace of its own, whose
packets the router moves."""

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from ..errors import ConservationError, EmulationError
from ..peer.zygote import ForkedProcess, Zygote
from .books import Books, Look
from .cast import COORDINATORS, Cast
from .emulated_node import MESSAGE_BYTES, PORT, Channel, Order
from .links import Access
from .machines import Machine
from .router import Port, Router
from .world import Undo

LOADED_SECONDS = 120.0
LOOK_SECONDS = 1.0
ENDED_SECONDS = 5.0
LAST_PACKETS_SECONDS = 1.0
"""For which the packets of a process that has ended are still taken: with them its system ends its connections."""

BOOTSTRAPS = 4
MODULE = "swarm_peer.simulations.emulated_node"


def address_of(machine: int) -> str:
    """Of the public internet, as libp2p does not punch holes or relay in a private one. It is seen nowhere else."""
    return f"11.77.{1 + machine // 250}.{1 + machine % 250}"


def coordinator_address(number: int) -> str:
    return f"11.77.0.{1 + number}"


@dataclass(eq=False)
class Node:
    """One process. `order`: whose; `worked` and `waits`: of each of its devices, the seconds of visits so far, and the
    visits that wait."""

    order: Order
    process: ForkedProcess
    access: Access
    worked: list[float] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    leads: bool = False
    ended: bool = False
    going: bool = False
    stays: dict[int, tuple[int, Callable[[], None]]] = field(default_factory=dict)
    """By device: the stage, and what says that it is there no more."""

    end: socket.socket | None = None
    port: Port | None = None
    waiting: list[dict[str, Any]] = field(default_factory=list)

    def send(self, message: dict[str, Any]) -> None:
        """Tells the process, or as soon as it is there."""
        if self.end is None:
            self.waiting.append(message)
            return
        Channel(self.end).send(message)

    def signal(self, number: int) -> None:
        """To the process and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@dataclass
class EmulatedWorld:
    """Implements `world.World`. Made by `emulated`. `folder`: for logs; `sockets`: for sockets, whose names must be
    short; `mtu`: bytes of a packet; `tcp`: see `enter_namespace`."""

    cast: Cast
    books: Books
    folder: Path
    sockets: Path
    mtu: int
    tcp: str
    zygote: Zygote
    log: IO[bytes]
    listener: socket.socket
    starting: float = 0.0

    def __post_init__(self) -> None:
        self.router = Router(self.cast.distances, self.cast.seed)
        self.report: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._began = time.monotonic()
        self._scenario = self.sockets / "scenario.json"
        self._scenario.write_text(self.cast.scenario.model_dump_json(), encoding="utf-8")
        self._machines: dict[int, Node] = {}
        self._coordinators: dict[int, Node] = {}
        self._terms: dict[int, int] = {}
        self._by_name: dict[str, Node] = {}
        self._count = 0
        self._timers: list[asyncio.TimerHandle] = []
        self._news = asyncio.Event()
        self._greeted: dict[socket.socket, Node] = {}
        self._asked: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, call))

    async def begin(self) -> None:
        """Everybody is there and waits; the first coordinator leads; from now on time counts. Raises
        `EmulationError`."""
        self.router.start()
        for number in range(len(self.cast.coordinators)):
            self._coordinators[number] = self._fork(self._order_of_coordinator(number, leads=number == 0))
        for machine in self.cast.machines:
            self._machines[machine.number] = self._fork(self._order_of(machine))
        everybody = [*self._coordinators.values(), *self._machines.values()]
        await self._until(lambda: all(node.end is not None for node in everybody), "not every process has come")
        self._go(self._coordinators[0], [])
        await self._until(lambda: self._coordinators[0].leads, "the coordinator does not lead")
        for number in range(1, len(self.cast.coordinators)):
            self._go(self._coordinators[number], self._bootstraps())
        self._began = time.monotonic()

    async def _until(self, holds: Callable[[], bool], problem: str) -> None:
        try:
            async with asyncio.timeout(LOADED_SECONDS):
                while not holds():
                    if self.report.done():
                        self.report.result()  # raises what has failed
                    for node in self._by_name.values():
                        if node.end is None and node.process.poll() is not None:
                            raise EmulationError(f"a process has ended before it began; see {self.folder / 'log'}")
                    self._news.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._news.wait(), LOOK_SECONDS)
        except TimeoutError as error:
            raise EmulationError(f"{problem} after {LOADED_SECONDS:.0f} s; see {self.folder}") from error

    def look(self) -> Look:
        waiting = [0] * self.cast.manifest.stages
        for node in self._machines.values():
            for device, (stage, _) in node.stays.items():
                waiting[stage] += node.waits[device] if device < len(node.waits) else 0
        return Look(waiting, self.cast.sent)

    # ---- processes

    def _order_of(self, machine: Machine) -> Order:
        return Order(
            str(self._scenario),
            self.cast.seed,
            self._next_folder(),
            address_of(machine.number),
            self.mtu,
            self.tcp,
            machine=machine.number,
            stage=machine.stage,
            nat=machine.group.nat,
        )

    def _order_of_coordinator(self, number: int, *, leads: bool) -> Order:
        return Order(
            str(self._scenario),
            self.cast.seed,
            self._next_folder(),
            coordinator_address(number),
            self.mtu,
            self.tcp,
            coordinator=number,
            leads=leads,
            term=self._terms.get(number, 0),
        )

    def _next_folder(self) -> str:
        self._count += 1
        return str(self.sockets / f"{self._count}")

    def _fork(self, order: Order) -> Node:
        name = Path(order.folder).name
        if order.machine is None:
            access = self.cast.coordinator_accesses[order.coordinator]
        else:
            access = self.cast.machines[order.machine].access
        command = (MODULE, str(self.sockets / "nodes"), name)
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = self.zygote.start("swarm-node", command, stdout=self.log, stderr=self.log, env=env)
        node = self._by_name[name] = Node(order, process, access)
        return node

    def _go(self, node: Node, initial_peers: Sequence[str]) -> None:
        node.going = True
        node.send({"go": list(initial_peers)})

    def _bootstraps(self) -> list[str]:
        """Some of those who are there, coordinators first."""
        found = [
            f"/ip4/{node.order.address}/tcp/{PORT}/p2p/{COORDINATORS[number].peer_id}"
            for number, node in self._coordinators.items()
            if node.going and not node.ended
        ]
        found += [
            f"/ip4/{node.order.address}/tcp/{PORT}/p2p/{self.cast.machines[number].name}"
            for number, node in self._machines.items()
            if node.stays and not node.ended and node.order.nat is None
        ]
        return found[:BOOTSTRAPS]

    def come(self) -> None:
        """A process has connected."""
        end, _ = self.listener.accept()
        end.setblocking(False)
        asyncio.get_running_loop().add_reader(end, partial(self._greet, end))

    def _greet(self, end: socket.socket) -> None:
        """It says its name, is told who it is, and gives its TUN device."""
        loop = asyncio.get_running_loop()
        try:
            text, descriptors, _, _ = socket.recv_fds(end, MESSAGE_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            text, descriptors = b"", []
        message = Channel.parse(text) if text else {}
        node = self._by_name.get(message["name"]) if "name" in message else self._greeted.get(end)
        if not text or node is None or node.ended:
            loop.remove_reader(end)
            end.close()
        elif "name" in message:
            self._greeted[end] = node
            Channel(end).send(node.order.to_json())
        elif "refused" in message:
            self.fail(EmulationError(message["refused"]))
        else:
            os.set_blocking(descriptors[0], False)
            name = Path(node.order.folder).name
            node.port = Port(socket.inet_aton(node.order.address), descriptors[0], node.access, name)
            self.router.attach(node.port)
            node.end = end
            loop.remove_reader(end)
            loop.add_reader(end, partial(self._hear, node))
            for waiting in node.waiting:
                node.send(waiting)
            self._news.set()

    def _hear(self, node: Node) -> None:
        assert node.end is not None
        try:
            text = node.end.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            text = b""
        if not text:
            if node.order.machine is None and not node.ended:
                self.fail(EmulationError(f"a coordinator has died; see {self.folder / 'log'}"))
            self._gone(node)
            return
        self._told(node, Channel.parse(text))

    def _told(self, node: Node, message: dict[str, Any]) -> None:
        self._news.set()
        if "worked" in message:
            node.worked, node.waits = message["worked"], message["waits"]
            node.leads = message["leads"]
        elif "placed" in message:
            assert node.order.machine is not None
            self._left_stage(node, message["device"])
            stay = self._begin_stay(node, message["device"], message["placed"])
            node.stays[message["device"]] = (message["placed"], stay)
        elif "gone" in message:
            self._left_stage(node, message["gone"])
        elif "event" in message:
            self.books.see(message["event"])
        elif "term" in message:
            self._terms[node.order.coordinator] = message["term"]
        elif "wrong" in message:
            self.fail(ConservationError(message["wrong"]))
        elif "asked" in message:
            if not self._asked.done():
                self._asked.set_result(message["asked"])
        elif "report" in message:
            if not self.report.done():
                self.report.set_result(message["report"])
        elif "ended" in message:
            if message["ended"] and node.order.machine is None:
                self.fail(EmulationError(f"a coordinator has ended: {message['ended']}"))
            self._gone(node)

    def _begin_stay(self, node: Node, device: int, stage: int) -> Callable[[], None]:
        assert node.order.machine is not None

        def worked() -> float:
            return node.worked[device] if device < len(node.worked) else 0.0

        before = worked()
        machine = self.cast.machines[node.order.machine]
        return self.books.begin_stay(machine, stage, lambda: worked() - before)

    def _left_stage(self, node: Node, device: int) -> None:
        node.stays.pop(device, (0, lambda: None))[1]()

    def _gone(self, node: Node, *, silently: bool = False) -> None:
        """It runs nothing any more; its process ends, if it has not, and with `silently` no packet says so."""
        if node.ended:
            return
        node.ended, node.leads = True, False
        for device in list(node.stays):
            self._left_stage(node, device)
        if node.end is not None:
            asyncio.get_running_loop().remove_reader(node.end)
            node.end.close()
        if node.port is not None:
            if silently:
                self.router.detach(node.port)
            else:
                asyncio.get_running_loop().call_later(LAST_PACKETS_SECONDS, self.router.detach, node.port)
        node.signal(signal.SIGKILL)
        node.process.stdin.close()

    async def last_report(self) -> dict[str, Any] | None:
        """What the coordinator that leads would report now, if one does and answers."""
        for node in self._coordinators.values():
            if node.leads:
                node.send({"ask": True})
                with suppress(TimeoutError):
                    return await asyncio.wait_for(asyncio.shield(self._asked), ENDED_SECONDS)
        return None

    def fail(self, error: Exception) -> None:
        self._news.set()
        if not self.report.done():
            self.report.set_exception(error)

    def close(self) -> None:
        """Ends every process, and the router. Nothing happens to machines any more."""
        for timer in self._timers:
            timer.cancel()
        for node in self._by_name.values():
            self._gone(node)
        for node in self._by_name.values():
            with suppress(subprocess.TimeoutExpired):
                node.process.wait(ENDED_SECONDS)
        self.router.close()

    # ---- machines

    def start(self, machine: Machine) -> None:
        node = self._machines[machine.number]
        if node.ended or node.going:
            node = self._machines[machine.number] = self._fork(self._order_of(machine))
        if machine.slowdown != 1.0:
            node.send({"slowdown": machine.slowdown})
        self._go(node, self._bootstraps())

    def kill(self, machine: Machine) -> None:
        self._gone(self._machines[machine.number])

    def switch_off(self, machine: Machine) -> None:
        self._gone(self._machines[machine.number], silently=True)

    def leave(self, machine: Machine) -> None:
        self._machines[machine.number].send({"leave": "its session is over"})

    def runs(self, machine: Machine) -> bool:
        node = self._machines[machine.number]
        return node.going and not node.ended

    def freeze(self, machine: Machine) -> Undo:
        node = self._machines[machine.number]
        node.signal(signal.SIGSTOP)
        return lambda: node.signal(signal.SIGCONT)

    def set_pace(self, machine: Machine) -> None:
        self._machines[machine.number].send({"slowdown": machine.slowdown})

    def hosts(self, stage: int) -> list[Machine]:
        return [
            self.cast.machines[number]
            for number, node in self._machines.items()
            if any(hosted == stage for hosted, _ in node.stays.values())
        ]

    # ---- links

    def isolate(self, machines: Sequence[Machine]) -> Undo:
        inside = {socket.inet_aton(address_of(machine.number)) for machine in machines}
        return self.router.cut(lambda sender, receiver: sender.address in inside or receiver.address in inside)

    def part(self, region: str) -> Undo:
        return self.router.cut(
            lambda sender, receiver: (sender.access.region == region) != (receiver.access.region == region)
        )

    def stop_coordinator(self) -> Undo | None:
        leading = [number for number, node in self._coordinators.items() if node.leads]
        if not leading:
            return None
        number = leading[0]
        self._gone(self._coordinators[number])

        def again() -> None:
            node = self._coordinators[number] = self._fork(self._order_of_coordinator(number, leads=False))
            self._go(node, self._bootstraps())

        return again


@contextmanager
def emulated(cast: Cast, books: Books, folder: Path, sockets: Path, mtu: int, tcp: str) -> Iterator[EmulatedWorld]:
    """The machines of a scenario, whose processes end with the block. Raises `EmulationError`."""
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("ab"))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(str(sockets / "nodes"))
        listener.listen(len(cast.machines) + len(cast.coordinators))
        zygote = stack.enter_context(Zygote(os.environ, folder / "log"))
        world = EmulatedWorld(cast, books, folder, sockets, mtu, tcp, zygote, log, listener)
        stack.callback(world.close)
        loop = asyncio.get_running_loop()
        loop.add_reader(listener, world.come)
        stack.callback(loop.remove_reader, listener)
        yield world
