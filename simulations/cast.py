"""Who takes part in a scenario with a seed: its run, its coordinators, its machines. The same in a simulation and in
each process of an emulation, which all work it out for themselves."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ScenarioError
from ..swarm.checkpoint import MemoryCheckpoints
from ..swarm.keys import Identity
from ..swarm.manifest import Manifest
from ..swarm.plan_command import sketch_of
from .links import Access, Downlink, Uplink
from .machines import Machine, make_machines, rate_of
from .scenario import Scenario
from .sized import SizedBackend

ORGANIZER = Identity.from_seed("organizer")
COORDINATORS = (Identity.from_seed("trainer"), Identity.from_seed("standby"))


@dataclass(frozen=True, slots=True)
class Cast:
    scenario: Scenario
    seed: int
    manifest: Manifest
    machines: Sequence[Machine]
    coordinator_accesses: Sequence[Access]
    """How each coordinator is attached: a link of its own."""

    @classmethod
    def of(cls, scenario: Scenario, seed: int | None = None) -> "Cast":
        """With the scenario's own seed, if no other is given. Raises `ScenarioError` for a run that can never begin,
        `ManifestError`, `ModelError`."""
        seed = scenario.seed if seed is None else seed
        manifest = manifest_of(scenario, seed)
        _check_that_it_can_begin(scenario, manifest)
        machines = make_machines(scenario, manifest, seed)
        accesses = [_coordinator_access(scenario) for _ in range(1 + scenario.coordinator.standby)]
        for machine in machines:
            if machine.group.relay is not None:
                relays = [other.access for other in machines if other.group.name == machine.group.relay] or accesses
                machine.access.relay = relays[machine.number % len(relays)]
            machine.access.nat, machine.access.host = machine.group.nat, accesses[0]
        return cls(scenario, seed, manifest, machines, accesses)

    @property
    def coordinators(self) -> tuple[Identity, ...]:
        """The one that leads first, and the standby if there is one."""
        return COORDINATORS[: 1 + self.scenario.coordinator.standby]

    @property
    def distances(self) -> dict[tuple[str, str], float]:
        """Seconds between two regions, by both their names in order."""
        return {(min(each.between), max(each.between)): each.latency / 1000 for each in self.scenario.distances}

    @property
    def accesses(self) -> list[Access]:
        """The links of all machines; one that several share, once."""
        return list({id(machine.access): machine.access for machine in self.machines}.values())

    @property
    def sent(self) -> float:
        """Bytes of all machines so far."""
        return sum(access.up.carried for access in self.accesses)


def _check_that_it_can_begin(scenario: Scenario, manifest: Manifest) -> None:
    replicas = manifest.settings.pipeline.min_replicas
    pinned: Counter[int] = Counter()
    anywhere = 0
    for group in scenario.peers:
        if group.stage is None:
            anywhere += group.count
        else:
            pinned[group.stage] += group.count
    lacking = sum(max(0, replicas - pinned[stage]) for stage in range(manifest.stages))
    if anywhere < lacking:
        come = anywhere + sum(pinned.values())
        where = f", {sum(pinned.values())} of them to stages of their own choice" if pinned else ""
        raise ScenarioError(
            f"{scenario.title}: the run begins with {manifest.stages * replicas} peers ({manifest.stages} stages, "
            f"{replicas} replicas each), but {come} ever come{where}"
        )


def _coordinator_access(scenario: Scenario) -> Access:
    place = scenario.coordinator
    return Access(Uplink(rate_of(place.up)), Downlink(rate_of(place.down)), place.latency / 1000, 0.0, place.region)


def checkpoints_of(scenario: Scenario, manifest: Manifest, *, whole: bool = False) -> MemoryCheckpoints | None:
    """Where the scenario's checkpoints go, if it makes any; `whole`: as `SizedBackend` has it."""
    every = scenario.coordinator.checkpoint_every
    if not every:
        return None
    backends = [SizedBackend(manifest, stage, whole=whole) for stage in range(manifest.stages)]
    return MemoryCheckpoints(every, lambda stage, state: backends[stage].digest(backends[stage].load(state)))


def manifest_of(scenario: Scenario, seed: int) -> Manifest:
    """The run of a scenario. Raises `ManifestError`, `ModelError`."""
    settings = scenario.run.model_copy(update={"seed": seed})
    sketch = sketch_of(settings)
    return sketch.model_copy(update={"organizer": ORGANIZER.public_hex, "weights": None})
