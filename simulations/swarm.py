"""A whole swarm in one process on virtual time: the real trainer and peers over a simulated network.

`SimulatedSwarm.run` builds everything from a manifest, trains, and gives the report. Peers can be killed at any
moment; a `Watcher` sees every `Moment` of every peer and decides.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SwarmError
from ..swarm import events
from ..swarm.authority import from_term
from ..swarm.driving import Samples
from ..swarm.host import Moment
from ..swarm.keys import Identity, SignedManifest, SignedTerm
from ..swarm.manifest import Manifest
from ..swarm.peer import Parts, Peer
from ..swarm.trainer import Trainer
from .devices import SimulatedDevice
from .network import MemoryDirectory, MemoryNetwork

Watcher = Callable[["SimulatedSwarm", str, Moment], None]


@dataclass
class SimulatedSwarm:
    """One run. `wanted` gives each peer its stage; `watch` is called with (swarm, peer id, moment)."""

    signed: SignedManifest
    manifest: Manifest
    trainer_identity: Identity
    term: SignedTerm
    parts: Parts
    samples: Samples
    wanted: tuple[int | None, ...]
    seed: int = 0
    latency: tuple[float, float] = (0.001, 0.005)
    durations: Mapping[str, float] | None = None
    watch: Watcher = field(default=lambda swarm, peer, moment: None)
    emit: Callable[[events.Event], None] = field(default=lambda event: None)
    give_up: float | None = 60.0

    def __post_init__(self) -> None:
        self.network = MemoryNetwork(self.seed, self.latency)
        self.directory = MemoryDirectory()
        self.peers: dict[str, Peer] = {}
        self.killed: list[str] = []
        self.endings: dict[str, str] = {}
        self.trainer: Trainer

    async def run(self) -> dict[str, Any]:
        """Trains to the end; the trainer's report."""
        self.trainer = Trainer(
            manifest=self.manifest,
            signature=self.signed.signature,
            term=from_term(self.term),
            transport=self.network.transport(self.trainer_identity.peer_id),
            directory=self.directory,
            arithmetic=self.parts.arithmetic(self.manifest),
            samples=self.samples,
            emit=self.emit,
            give_up=self.give_up,
        )
        for number, stage in enumerate(self.wanted):
            self._start_peer(number, stage)
        report: dict[str, Any] = await self.trainer.run()
        for node in self.network.nodes.values():
            await node.close()
        return report

    def _start_peer(self, number: int, stage: int | None) -> None:
        identity = Identity.from_seed(f"peer {number}")
        transport = self.network.transport(identity.peer_id)
        device = SimulatedDevice(random.Random(f"{self.seed}/{number}"))
        if self.durations is not None:
            device.durations = self.durations
        name = identity.peer_id

        def observe(moment: Moment) -> None:
            self.watch(self, name, moment)

        peer = Peer(transport, self.directory, device, self.parts, observe=observe)
        self.peers[name] = peer
        transport.spawn(self._run_peer(name, peer, stage))

    async def _run_peer(self, name: str, peer: Peer, stage: int | None) -> None:
        try:
            self.endings[name] = await peer.run(self.manifest.run_id, stage)
        except SwarmError as error:
            self.endings[name] = f"{type(error).__name__}: {error}"
        finally:
            # The process ends here, and its streams with it.
            await self.network.nodes[name].close()

    def kill(self, peer: str) -> None:
        """SIGKILL: at once, in the middle of whatever it does."""
        if peer not in self.killed:
            self.killed.append(peer)
            asyncio.get_running_loop().call_soon(self.network.nodes[peer].kill)

    @property
    def now(self) -> float:
        """Virtual time, in seconds."""
        return asyncio.get_running_loop().time()

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls after `seconds` of virtual time."""
        asyncio.get_running_loop().call_later(seconds, call)

    def live_at(self, stage: int) -> list[str]:
        """The peers of a stage that have not been killed, by member number."""
        return [member.peer for member in self.trainer.roster.live(stage) if member.peer not in self.killed]
