"""The machines of a scenario on virtual time: each takes its device and link with it, and hosts a simulated peer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations

from ..swarm.compute import BACKGROUND, BACKWARD, FORWARD
from ..swarm.peer import Peer
from .books import Books, Look
from .links import Access
from .machines import Machine
from .sized import SizedBackend
from .swarm import SimulatedSwarm
from .world import START_SECONDS, Undo


@dataclass(eq=False)
class _Cut:
    """Between whom nothing goes through, and the pairs of names (in order) of which that has been seen to."""

    is_cut: Callable[[str, str], bool]
    pairs: dict[tuple[str, str], None] = field(default_factory=dict)


@dataclass
class SimulatedWorld:
    """Implements `world.World`. `accesses`: of every node of the network, by name; peers are added as they come."""

    swarm: SimulatedSwarm
    machines: Sequence[Machine]
    accesses: dict[str, Access]
    books: Books
    starting: float = START_SECONDS
    _stays: dict[str, Callable[[], None]] = field(default_factory=dict)
    """By peer: says that it is at its stage no more."""

    _cuts: list["_Cut"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_name = {machine.name: machine for machine in self.machines}
        self.swarm.equip = self._equip

    @property
    def now(self) -> float:
        return self.swarm.now

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.swarm.later(seconds, call)

    def _equip(self, peer: Peer) -> None:
        """A peer takes its machine's device and link before it runs."""
        name = peer.transport.peer_id
        machine = self._by_name[self.swarm.machines[name]]
        self.accesses[name] = machine.access
        for cut in self._cuts:
            for other in self.accesses:
                if other != name:
                    self._apply(cut, name, other)
        device = self.swarm.devices[name]
        if machine.group.garbage:
            spoiling = partial(SizedBackend, garbles=machine.garbles(self.swarm.seed))
            peer.parts = replace(peer.parts, backend=spoiling)
        device.noise, device.slowdown = machine.group.noise, machine.slowdown

        def placed(stage: int) -> None:
            device.durations = machine.durations(self.swarm.manifest, stage)
            self._gone(name)
            before = device.worked
            self._stays[name] = self.books.begin_stay(machine, stage, lambda: device.worked - before)

        device.durations = {FORWARD: 0.0, BACKWARD: 0.0, BACKGROUND: 0.0}
        peer.placed, peer.ended = placed, partial(self._gone, name)

    def _gone(self, name: str) -> None:
        self._stays.pop(name, lambda: None)()

    def look(self) -> Look:
        waiting = [0] * self.swarm.manifest.stages
        for peer in self.swarm.peers.values():
            if peer.host is not None and peer.transport.peer_id in self._stays:
                waiting[peer.host.stage] += peer.host.queue.waiting
        return Look(waiting, sum({id(machine.access): machine.access.up.carried for machine in self.machines}.values()))

    # ---- machines

    def start(self, machine: Machine) -> None:
        if machine.name in self.swarm.killed:
            self.swarm.killed.remove(machine.name)
        self.swarm.start_peer(machine.number, machine.stage)

    def _peers_of(self, machine: Machine) -> list[str]:
        """The peers that it runs now."""
        swarm = self.swarm
        return [
            name
            for name, first in swarm.machines.items()
            if first == machine.name and name not in swarm.killed and name not in swarm.endings
        ]

    def kill(self, machine: Machine) -> None:
        self._kill(machine, silent=False)

    def switch_off(self, machine: Machine) -> None:
        self._kill(machine, silent=True)

    def _kill(self, machine: Machine, *, silent: bool) -> None:
        for name in self._peers_of(machine):
            self.swarm.kill(name, silent=silent)
            self._gone(name)

    def leave(self, machine: Machine) -> None:
        for name in self._peers_of(machine):
            self.swarm.peers[name].leave("its session is over")

    def runs(self, machine: Machine) -> bool:
        return bool(self._peers_of(machine))

    def freeze(self, machine: Machine) -> Undo:
        frozen = self._peers_of(machine)
        for name in frozen:
            self.swarm.freeze(name)

        def thaw() -> None:
            for name in frozen:
                self.swarm.thaw(name)

        return thaw

    def set_pace(self, machine: Machine) -> None:
        for name in self._peers_of(machine):
            self.swarm.devices[name].slowdown = machine.slowdown

    def hosts(self, stage: int) -> list[Machine]:
        if not self.swarm.is_led:
            return []
        numbers = {self._by_name[self.swarm.machines[peer]].number for peer in self.swarm.live_at(stage)}
        return [self.machines[number] for number in sorted(numbers)]

    # ---- links

    def isolate(self, machines: Sequence[Machine]) -> Undo:
        inside = {machine.name for machine in machines}

        def is_cut(one: str, other: str) -> bool:
            here, there = self.swarm.machines.get(one, one), self.swarm.machines.get(other, other)
            return here != there and (here in inside or there in inside)

        return self._cut(is_cut)

    def part(self, region: str) -> Undo:
        def is_cut(one: str, other: str) -> bool:
            return (self.accesses[one].region == region) != (self.accesses[other].region == region)

        return self._cut(is_cut)

    def _cut(self, is_cut: Callable[[str, str], bool]) -> Undo:
        """Between all pairs of nodes of which it is true, also of those that come later."""
        cut = _Cut(is_cut)
        self._cuts.append(cut)
        for one, other in combinations(sorted(self.accesses), 2):
            self._apply(cut, one, other)

        def heal() -> None:
            self._cuts.remove(cut)
            for pair in cut.pairs:
                if not any(pair in another.pairs for another in self._cuts):
                    self.swarm.network.heal(*pair)

        return heal

    def _apply(self, cut: "_Cut", one: str, other: str) -> None:
        pair = min(one, other), max(one, other)
        if pair not in cut.pairs and cut.is_cut(one, other):
            cut.pairs[pair] = None
            if not self.swarm.network.is_cut(one, other):
                self.swarm.network.cut(one, other)

    def stop_coordinator(self) -> Undo | None:
        if not self.swarm.is_led:
            return None
        name = self.swarm.trainer.transport.peer_id
        if name in self.swarm.killed:
            return None
        self.swarm.kill(name)
        return partial(self.swarm.restart, name)
