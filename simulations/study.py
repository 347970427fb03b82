"""Runs a scenario with the swarm's own code on virtual time, and says what came of it.

    Scenario -> Study(scenario, seed).run() -> Outcome

The trainer, peers, routing, recovery and placement are the real ones; simulated are the network (`internet.py`), the
devices (a duration) and the tensors (a size, `sized.py`). While it runs, conservation is checked at every step, and
that each state is the sum of exactly the microbatches of its version.

Errors: `ScenarioError` for a run that can never begin; `ConservationError`.
"""

import asyncio
import random
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from ..errors import ConservationError, ScenarioError
from ..swarm import events
from ..swarm.checkpoint import MemoryCheckpoints
from ..swarm.events import Event
from ..swarm.host import Moment
from ..swarm.keys import Identity, delegate, sign_manifest, sign_term
from ..swarm.manifest import Manifest
from ..swarm.peer import Parts
from ..swarm.plan_command import shape_of, sketched
from ..swarm.sizes import visit_tokens
from .conservation import Conservation
from .happenings import Happenings
from .internet import Access, Downlink, Internet, Uplink
from .machines import Fleet, Stay, make_machines, rate_of
from .scenario import Happening, Scenario
from .sized import SizedArithmetic, SizedBackend, SizedSamples, SizedState, weigher, whole_sum
from .swarm import SimulatedSwarm
from .virtual_time import run

ORGANIZER = Identity.from_seed("organizer")
COORDINATORS = (Identity.from_seed("trainer"), Identity.from_seed("standby"))
MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """`replicas`: on average over the run; `busy`: the share of their time that their devices computed."""

    replicas: float
    busy: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run. `seconds`: of virtual time; `measured`: those from the first Commit to the last, over which
    `tokens_per_second` is; `bound`: what the devices that were there meanwhile would make of it with nothing to wait
    for and perfectly divided work; `recoveries`: seconds from each loss until its work was done by others; `steps`:
    (time, tokens) of every Commit; `bytes_up`, `bytes_down`: of all peers."""

    scenario: str
    seed: int
    seconds: float
    finished: bool
    steps: tuple[tuple[float, int], ...]
    measured: float
    tokens_per_second: float
    bound: float
    step_seconds: float
    stages: tuple[StageOutcome, ...]
    lost: int
    left: int
    moved: int
    went_back: int
    steps_undone: int
    recoveries: tuple[float, ...]
    reissued: int
    bytes_up: float
    bytes_down: float
    happened: tuple[tuple[float, str, int], ...]
    explained: str

    @property
    def kept(self) -> float:
        """The share of the bound."""
        return self.tokens_per_second / self.bound if self.bound else 0.0

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["stages"] = [{"replicas": stage.replicas, "busy": stage.busy} for stage in self.stages]
        return {**fields, "kept": self.kept}


@dataclass
class Study:
    """One run of a scenario; `seed` is the scenario's, if no other is given."""

    scenario: Scenario
    seed: int | None = None
    _steps: list[tuple[float, int]] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)
    _bounds: list[tuple[float, float]] = field(default_factory=list)
    _happened: list[tuple[float, str, int]] = field(default_factory=list)

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
        swarm, fleet, accesses = self._build()
        self._swarm, self._fleet = swarm, fleet
        self._conservation = Conservation(swarm)
        fleet.changed = self._note_bound
        fleet.start()
        happenings = Happenings(swarm, fleet, accesses, random.Random(f"{self._seed}/events"), self._tell)
        happenings.start(self.scenario.events)
        finished = True
        try:
            async with asyncio.timeout(self.scenario.minutes * MINUTE):
                report = await swarm.run()
        except TimeoutError:
            finished = False
            report = swarm.trainer.report() if swarm.is_led else {"faults": [], "ledger": {"reissued": 0}}
        return self._outcome(report, finished=finished)

    def _build(self) -> tuple[SimulatedSwarm, Fleet, dict[str, Access]]:
        scenario, manifest = self.scenario, self._manifest
        place = scenario.coordinator
        accesses = {
            identity.peer_id: Access(
                Uplink(rate_of(place.up)), Downlink(rate_of(place.down)), place.latency / 1000, 0.0, place.region
            )
            for identity in COORDINATORS[: 1 + place.standby]
        }
        distances = {
            (min(distance.between), max(distance.between)): distance.latency / 1000 for distance in scenario.distances
        }
        internet = Internet(self._seed, accesses=accesses, distances=distances, weigher=weigher(manifest))
        delegations = {
            identity: delegate(ORGANIZER, manifest.run_id, identity.public_hex)
            for identity in COORDINATORS[: 1 + place.standby]
        }
        swarm = SimulatedSwarm(
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
            internet=internet,
        )
        fleet = Fleet(swarm, make_machines(scenario, manifest, self._seed), accesses)
        swarm.equip = fleet.equip
        return swarm, fleet, accesses

    def _checkpoints(self) -> MemoryCheckpoints | None:
        manifest, every = self._manifest, self.scenario.coordinator.checkpoint_every
        if not every:
            return None
        backends = [SizedBackend(manifest, stage) for stage in range(manifest.stages)]
        return MemoryCheckpoints(every, lambda stage, state: backends[stage].digest(backends[stage].load(state)))

    # ---- what happens

    def _saw(self, event: Event) -> None:
        name = event.kind
        if isinstance(event, events.Moved) and event.error:
            return
        self._counts[name] = self._counts.get(name, 0) + 1
        if isinstance(event, events.Stepped):
            self._steps.append((self._swarm.now, event.tokens))
            self._conservation.check()
        elif isinstance(event, events.WentBack):
            self._counts["undone"] = self._counts.get("undone", 0) + event.lost

    def _tell(self, happening: Happening, hit: int) -> None:
        self._happened.append((self._swarm.now, happening.kind, hit))

    def _note_bound(self) -> None:
        rates = sum(machine.rate / machine.slowdown for machine in self._fleet.machines if machine.up)
        self._bounds.append((self._swarm.now, rates * visit_tokens(self._manifest)))

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

    # ---- what came of it

    def _outcome(self, report: dict[str, Any], *, finished: bool) -> Outcome:
        now = self._swarm.now
        first, last = (self._steps[0][0], self._steps[-1][0]) if self._steps else (0.0, 0.0)
        measured = last - first
        tokens = sum(tokens for _, tokens in self._steps[1:])
        times = [at for at, _ in self._steps]
        recoveries = [fault["rerouted_s"] for fault in report["faults"] if fault["rerouted_s"] is not None]
        links = {id(machine.access): machine.access for machine in self._fleet.machines}.values()
        return Outcome(
            scenario=self.scenario.title,
            seed=self._seed,
            seconds=now,
            finished=finished,
            steps=tuple(self._steps),
            measured=measured,
            tokens_per_second=tokens / measured if measured else 0.0,
            bound=mean_of(self._bounds, first, last),
            step_seconds=median([after - before for before, after in pairwise(times)] or [0.0]),
            stages=tuple(
                stage_outcome([stay for stay in self._fleet.stays if stay.stage == stage], now)
                for stage in range(self._manifest.stages)
            ),
            lost=self._counts.get("lost", 0),
            left=self._counts.get("left", 0),
            moved=self._counts.get("moved", 0),
            went_back=self._counts.get("went-back", 0),
            steps_undone=self._counts.get("undone", 0),
            recoveries=tuple(recoveries),
            reissued=report["ledger"]["reissued"],
            bytes_up=sum(link.up.carried for link in links),
            bytes_down=sum(link.down.carried for link in links),
            happened=tuple(self._happened),
            explained="" if self._steps else self._explain(),
        )

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


def mean_of(values: list[tuple[float, float]], first: float, last: float) -> float:
    """The mean over a span of time of what changes at (time, value)."""
    if last <= first:
        return 0.0
    ends = [at for at, _ in values[1:]] + [last]
    total = sum(
        value * max(0.0, min(end, last) - max(at, first)) for (at, value), end in zip(values, ends, strict=True)
    )
    return total / (last - first)


def stage_outcome(stays: list[Stay], now: float) -> StageOutcome:
    seconds = sum((now if stay.ended is None else stay.ended) - stay.began for stay in stays)
    worked = sum(stay.worked() for stay in stays)
    return StageOutcome(seconds / now if now else 0.0, worked / seconds if seconds else 0.0)
