"""A whole swarm in one process on virtual time: the real trainer and peers over a simulated network.

`SimulatedSwarm.run` builds everything from a manifest, trains, and gives the report of the coordinator that leads at
the end. Peers and coordinators can be killed, frozen, cut off, slowed down and started again at any moment; a `Watcher`
sees every `Moment` of every peer and decides.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import SwarmError
from ..swarm import events
from ..swarm.checkpoint import Checkpoint, Checkpoints
from ..swarm.departures import FAREWELL_SECONDS
from ..swarm.driving import Samples
from ..swarm.host import Moment
from ..swarm.keys import Identity, SignedManifest, SignedTerm
from ..swarm.manifest import Manifest
from ..swarm.peer import Parts, Peer
from ..swarm.succession import Succession
from ..swarm.trainer import Trainer
from .devices import SimulatedDevice
from .directory import MemoryDirectory
from .network import MemoryNetwork, MemoryTransport
from .spill import MemorySpill
from .virtual_time import NOBODY

Watcher = Callable[["SimulatedSwarm", str, Moment], None]


@dataclass
class SimulatedSwarm:
    """One run. `wanted` gives each peer its stage; `watch` is called with (swarm, peer id, moment);
    `disk_bytes` is what the disk of each peer has left; `internet` is the network, if not the simplest one; `equip` is
    called with every peer before it runs, with its device in `devices`."""

    signed: SignedManifest
    manifest: Manifest
    term: SignedTerm
    delegations: Mapping[Identity, bytes]
    parts: Parts
    samples: Samples
    wanted: tuple[int | None, ...]
    seed: int = 0
    latency: tuple[float, float] = (0.001, 0.005)
    durations: Mapping[str, float] | None = None
    disk_bytes: float = float("inf")
    watch: Watcher = field(default=lambda swarm, peer, moment: None)
    emit: Callable[[events.Event], None] = field(default=lambda event: None)
    give_up: float | None = 60.0
    keep: Callable[[Trainer], Awaitable[None]] | None = None
    checkpoints: Checkpoints | None = None
    origin: Checkpoint | None = None
    internet: MemoryNetwork | None = None
    first_heir: int = 0
    """The least number of a peer that takes another one's place; lower ones may be still to come."""

    equip: Callable[[Peer], None] = field(default=lambda peer: None)

    def __post_init__(self) -> None:
        self.network = self.internet or MemoryNetwork(self.seed, self.latency)
        self.directory = MemoryDirectory()
        self.peers: dict[str, Peer] = {}
        self.devices: dict[str, SimulatedDevice] = {}
        self.machines: dict[str, str] = {}
        """By peer: the one that its machine came with first."""

        self.killed: list[str] = []
        self.endings: dict[str, str] = {}
        self.coordinators: dict[str, Succession] = {}
        self._terms: dict[str, int] = {}
        self.numbers: dict[str, tuple[int, int | None]] = {}
        self._report: asyncio.Future[dict[str, Any]]

    async def run(self) -> dict[str, Any]:
        """Trains to the end; the trainer's report."""
        self._report = asyncio.get_running_loop().create_future()
        for number, identity in enumerate(self.delegations):
            self._start_coordinator(identity, lead=number == 0, origin=None if number else self.origin)
        for number, stage in enumerate(self.wanted):
            self.start_peer(number, stage)
        report = await self._report
        for node in self.network.nodes.values():
            await node.close()
        return report

    @property
    def trainer(self) -> Trainer:
        """The trainer of the highest term."""
        trainers = self.trainers
        return trainers[0] if len(trainers) == 1 else max(trainers, key=lambda trainer: trainer.term.number)

    @property
    def is_led(self) -> bool:
        """Whether anybody leads, or has led and not been started again."""
        return bool(self.trainers)

    @property
    def trainers(self) -> list[Trainer]:
        """Of every coordinator that has led, the last."""
        return [coordinator.trainer for coordinator in self.coordinators.values() if coordinator.trainer]

    def _start_coordinator(self, identity: Identity, *, lead: bool, origin: Checkpoint | None = None) -> None:
        transport = self.network.transport(identity.peer_id)
        coordinator = Succession(
            manifest=self.manifest,
            signature=self.signed.signature,
            identity=identity,
            delegation=self.delegations[identity],
            transport=transport,
            directory=self.directory,
            arithmetic=self.parts.arithmetic(self.manifest),
            samples=self.samples,
            emit=self.emit,
            give_up=self.give_up,
            keep=self.keep,
            checkpoints=self.checkpoints,
            origin=origin,
            device=SimulatedDevice(random.Random(f"{self.seed}/{identity.peer_id}")),
            highest=self._terms.get(identity.peer_id, 0),
            remember=lambda term: self._terms.update({identity.peer_id: term}),
        )
        self.coordinators[identity.peer_id] = coordinator
        transport.spawn(self._run_coordinator(coordinator, transport, lead))

    async def _run_coordinator(self, coordinator: Succession, transport: MemoryTransport, lead: bool) -> None:
        try:
            report = await coordinator.run(lead=lead)
            if report is None:
                # Whoever has led has the fuller one, unless it is killed now.
                await asyncio.sleep(FAREWELL_SECONDS + 1.0)
                report = coordinator.known_report()
            if report is not None and not self._report.done():
                self._report.set_result(report)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.fail(error)
        finally:
            await transport.close()

    def start_peer(self, number: int, stage: int | None, replaces: int = 0, machine: str = "") -> Peer:
        """Starts a peer; one of the same number that was killed comes again under its name. `replaces`: the member that
        its machine moves away from; `machine`: the peer that this machine came with first, if it was another."""
        identity = Identity.from_seed(f"peer {number}")
        transport = self.network.transport(identity.peer_id)
        device = SimulatedDevice(random.Random(f"{self.seed}/{number}"))
        self.devices[identity.peer_id] = device
        self.numbers[identity.peer_id] = number, stage
        if self.durations is not None:
            device.durations = self.durations
        name = identity.peer_id
        self.machines[name] = machine or self.machines.get(name, name)

        def observe(moment: Moment) -> None:
            self.watch(self, name, moment)

        peer = Peer(transport, self.directory, device, self.parts, MemorySpill(self.disk_bytes), observe=observe)
        peer.replaces, peer.moves = replaces, lambda target: self._move(peer, target)
        self.peers[name] = peer
        self.endings.pop(name, None)
        self.equip(peer)
        transport.spawn(self._run_peer(name, peer, stage, transport))
        return peer

    def _move(self, peer: Peer, target: int) -> bool:
        """A machine that can host two stages for a while: another peer of it comes, and this one leaves for it."""
        if peer.host is None or peer.leaving:
            return False
        machine = self.machines[peer.transport.peer_id]
        number = max(self.first_heir, len(self.peers))
        while Identity.from_seed(f"peer {number}").peer_id in self.peers:
            number += 1
        heir = self.start_peer(number, target, peer.host.member, machine)
        heir.serves = lambda: None if peer.leaving else peer.leave(f"it moves to stage {target}")
        return True

    async def _run_peer(self, name: str, peer: Peer, stage: int | None, transport: MemoryTransport) -> None:
        try:
            self.endings[name] = await peer.run(self.manifest.run_id, stage)
        except SwarmError as error:
            self.endings[name] = f"{type(error).__name__}: {error}"
        finally:
            # The process ends here, and its streams with it.
            await transport.close()

    def fail(self, error: Exception) -> None:
        """Ends the run with this error: something was seen that must never be."""
        if not self._report.done():
            self._report.set_exception(error)

    # ---- faults

    def kill(self, peer: str, *, silent: bool = False) -> None:
        """SIGKILL: at once, in the middle of whatever it does; `silent`: its machine is switched off."""
        if peer not in self.killed:
            self.killed.append(peer)
            asyncio.get_running_loop().call_soon(partial(self.network.nodes[peer].kill, silent=silent))

    def restart(self, peer: str) -> None:
        """Starts a killed peer or coordinator again under the same name; a coordinator comes back as standby."""
        self.killed.remove(peer)
        if peer in self.numbers:
            self.start_peer(*self.numbers[peer])
        else:
            identity = next(identity for identity in self.delegations if identity.peer_id == peer)
            self._start_coordinator(identity, lead=False)

    def resume(self, peer: str, checkpoint: Checkpoint) -> None:
        """Starts a killed coordinator again, which goes back to a checkpoint."""
        self.killed.remove(peer)
        identity = next(identity for identity in self.delegations if identity.peer_id == peer)
        self._start_coordinator(identity, lead=True, origin=checkpoint)

    def move(self, peer: str, target: int) -> bool:
        """Has the machine of a peer host another stage in its place; says whether it will."""
        return self.peers[peer].moves(target)

    def freeze(self, peer: str) -> None:
        """SIGSTOP."""
        self.network.nodes[peer].freeze()

    def thaw(self, peer: str) -> None:
        """SIGCONT."""
        self.network.nodes[peer].thaw()

    @property
    def now(self) -> float:
        """Virtual time, in seconds."""
        return asyncio.get_running_loop().time()

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls after `seconds` of virtual time, whoever is frozen then."""
        asyncio.get_running_loop().call_later(seconds, call, context=NOBODY)

    def live_at(self, stage: int) -> list[str]:
        """The peers of a stage that have not been killed, by member number."""
        return [member.peer for member in self.trainer.roster.live(stage) if member.peer not in self.killed]
