"""Runs a scenario with the swarm's own code on virtual time, and says what came of it.

    Scenario -> Study(scenario, seed).run() -> Outcome

The trainer, peers, routing, recovery and placement are the real ones; simulated are the network (`internet.py`), the
devices (a duration) and the tensors (a size, `sized.py`). While it runs, conservation is checked at every step, and
that each state is the sum of exactly the microbatches of its version.

Errors: `ScenarioError` for a run that can never begin; `ConservationError`.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConservationError, ScenarioError
from ..swarm.checkpoint import MemoryCheckpoints
from ..swarm.events import Event, Stepped
from ..swarm.host import Moment
from ..swarm.keys import Identity, delegate, sign_manifest, sign_term
from ..swarm.manifest import Manifest
from ..swarm.peer import Parts
from ..swarm.plan_command import shape_of, sketched
from .account import SEEN, Account
from .conservation import Conservation
from .fleet import Fleet
from .happenings import Happenings
from .internet import Access, Downlink, Internet, Uplink
from .machines import Machine, make_machines, rate_of
from .outcome import MINUTE, Outcome
from .scenario import Scenario
from .simulated_world import SimulatedWorld
from .sized import SizedArithmetic, SizedBackend, SizedSamples, SizedState, weigher, whole_sum
from .swarm import SimulatedSwarm
from .virtual_time import run

ORGANIZER = Identity.from_seed("organizer")
COORDINATORS = (Identity.from_seed("trainer"), Identity.from_seed("standby"))


@dataclass
class Study:
    """One run of a scenario; `seed` is the scenario's, if no other is given."""

    scenario: Scenario
    seed: int | None = None

    def run(self) -> Outcome:
        """Simulates it. Raises `ScenarioError`, `ConservationError` and whatever the run raises."""
        self._seed = self.scenario.seed if self.seed is None else self.seed
        self._manifest = manifest_of(self.scenario, self._seed)
        self._check_that_it_can_begin()
        return run(self._main(), limit=self.scenario.minutes * MINUTE + 60.0)

    def _check_that_it_can_begin(self) -> None:
        needed = self._manifest.stages * self._manifest.settings.pipeline.min_replicas
        come = sum(group.count for group in self.scenario.peers)
        if come < needed:
            raise ScenarioError(
                f"{self.scenario.title}: the run begins with {needed} peers ({self._manifest.stages} stages, "
                f"{self._manifest.settings.pipeline.min_replicas} replicas each), but {come} ever come"
            )

    async def _main(self) -> Outcome:
        machines = make_machines(self.scenario, self._manifest, self._seed)
        accesses, distances = coordinator_accesses(self.scenario), distances_of(self.scenario)
        swarm = self._swarm = self._build(accesses, distances)
        self._conservation = Conservation(swarm)
        account = self._account = Account(self.scenario, self._manifest, self._seed, machines, lambda: swarm.now)
        fleet = Fleet(SimulatedWorld(swarm, machines, accesses, account), machines, account.note)
        fleet.start()
        Happenings(fleet, random.Random(f"{self._seed}/events"), account.tell).start(self.scenario.events)
        finished = True
        try:
            async with asyncio.timeout(self.scenario.minutes * MINUTE):
                report = await swarm.run()
        except TimeoutError:
            finished = False
            report = swarm.trainer.report() if swarm.is_led else NO_REPORT
        links = distinct_accesses(machines)
        return account.outcome(
            report,
            finished=finished,
            bytes_up=sum(link.up.carried for link in links),
            bytes_down=sum(link.down.carried for link in links),
            explained="" if account.steps else self._explain(),
        )

    def _build(self, accesses: dict[str, Access], distances: dict[tuple[str, str], float]) -> SimulatedSwarm:
        scenario, manifest = self.scenario, self._manifest
        delegations = {
            identity: delegate(ORGANIZER, manifest.run_id, identity.public_hex)
            for identity in coordinators_of(scenario)
        }
        return SimulatedSwarm(
            signed=sign_manifest(ORGANIZER, manifest),
            manifest=manifest,
            delegations=delegations,
            term=sign_term(COORDINATORS[0], manifest.run_id, 1, delegations[COORDINATORS[0]]),
            parts=Parts(backend=SizedBackend, arithmetic=lambda manifest: SizedArithmetic()),
            samples=SizedSamples(manifest),
            wanted=(),
            seed=self._seed,
            watch=self._watch,
            emit=self._saw,
            give_up=None,
            checkpoints=self._checkpoints(),
            internet=Internet(self._seed, accesses=accesses, distances=distances, weigher=weigher(manifest)),
        )

    def _checkpoints(self) -> MemoryCheckpoints | None:
        manifest, every = self._manifest, self.scenario.coordinator.checkpoint_every
        if not every:
            return None
        backends = [SizedBackend(manifest, stage) for stage in range(manifest.stages)]
        return MemoryCheckpoints(every, lambda stage, state: backends[stage].digest(backends[stage].load(state)))

    def _saw(self, event: Event) -> None:
        if event.kind in SEEN:
            self._account.see(event.to_json())
        if isinstance(event, Stepped):
            self._conservation.check()

    def _watch(self, swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        """Each state is the sum of every microbatch of every step below its version, once."""
        host = swarm.peers[peer].host
        if moment.name != "applied" or host is None:
            return
        state: SizedState | None = host.versions.get(host.versions.latest)
        assert state is not None
        due = whole_sum(state.version, self._manifest.microbatches)
        if state.value != due:
            swarm.fail(ConservationError(f"{peer} has {state.value} at version {state.version}; {due} is due"))

    def _explain(self) -> str:
        """Why not one step was made."""
        if not self._swarm.is_led:
            return "no coordinator ever led"
        roster, needed = self._swarm.trainer.roster, self._manifest.settings.pipeline.min_replicas
        lacking = [stage for stage in range(self._manifest.stages) if len(roster.live(stage)) < needed]
        if lacking:
            return f"stages {lacking} never had the {needed} replicas that the run begins with"
        return f"the first step was not done within {self.scenario.minutes:g} minutes"


def manifest_of(scenario: Scenario, seed: int) -> Manifest:
    """The run of a scenario. Raises `ManifestError`, `ModelError`."""
    settings = scenario.run.model_copy(update={"seed": seed})
    sketch = sketched(settings, shape_of(settings.model.name))
    return sketch.model_copy(update={"organizer": ORGANIZER.public_hex, "weights": None})


NO_REPORT: dict[str, Any] = {"faults": [], "ledger": {"reissued": 0}}
"""Of a run that nobody ever led."""


def coordinators_of(scenario: Scenario) -> tuple[Identity, ...]:
    """The one that leads first, and the standby if there is one."""
    return COORDINATORS[: 1 + scenario.coordinator.standby]


def coordinator_accesses(scenario: Scenario) -> dict[str, Access]:
    """How each coordinator is attached, by its peer id."""
    place = scenario.coordinator
    return {
        identity.peer_id: Access(
            Uplink(rate_of(place.up)), Downlink(rate_of(place.down)), place.latency / 1000, 0.0, place.region
        )
        for identity in coordinators_of(scenario)
    }


def distances_of(scenario: Scenario) -> dict[tuple[str, str], float]:
    """Seconds between two regions, by both their names in order."""
    return {(min(each.between), max(each.between)): each.latency / 1000 for each in scenario.distances}


def distinct_accesses(machines: Sequence[Machine]) -> list[Access]:
    """The links of all machines; one that several share, once."""
    return list({id(machine.access): machine.access for machine in machines}.values())
