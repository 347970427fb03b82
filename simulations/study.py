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
from pathlib import Path
from typing import Any

from ..errors import ConservationError
from ..swarm.chronicle import Chronicle
from ..swarm.event_log import EventLog
from ..swarm.events import Event, Stepped
from ..swarm.host import Moment
from ..swarm.keys import delegate, sign_manifest, sign_term
from ..swarm.peer import Parts
from .books import SEEN, Books
from .cast import COORDINATORS, ORGANIZER, Cast, checkpoints_of
from .conservation import Conservation
from .fleet import Fleet
from .happenings import Happenings
from .internet import Internet
from .links import Access
from .outcome import MINUTE, Outcome
from .scenario import Scenario
from .simulated_world import SimulatedWorld
from .sized import SizedArithmetic, SizedBackend, SizedSamples, SizedState, weigher, wrong_sum
from .swarm import SimulatedSwarm
from .virtual_time import VirtualTimeLoop, run

NO_REPORT: dict[str, Any] = {"faults": [], "ledger": {"reissued": 0}}
"""Of a run that nobody ever led."""

LONG, LONG_STEPS = 120.0, 5
"""Seconds, and times a usual step, without a step after which a run stands still."""


@dataclass
class Study:
    """One run of a scenario; `seed` is the scenario's, if no other is given. `log`: a folder for its events, as a
    coordinator keeps them. `befalls`: the seed of what befalls the machines, if it is not that of the run."""

    scenario: Scenario
    seed: int | None = None
    log: Path | None = None
    befalls: int | None = None
    callbacks: int = field(default=0, init=False)
    """Of its loop, until the run was over."""

    def run(self) -> Outcome:
        """Simulates it. Raises `ScenarioError`, `ConservationError`, `StorageError` and whatever the run raises."""
        self._cast = Cast.of(self.scenario, self.seed)
        log = None if self.log is None else EventLog(self.log)
        self._chronicle = Chronicle(log, lambda: self._swarm.now, self._saw) if log else None
        try:
            return run(self._main(), limit=self.scenario.minutes * MINUTE + 60.0)
        finally:
            if self._chronicle is not None:
                self._chronicle.close()

    async def _main(self) -> Outcome:
        cast = self._cast
        names = [identity.peer_id for identity in cast.coordinators]
        accesses = dict(zip(names, cast.coordinator_accesses, strict=True))
        swarm = self._swarm = self._build(accesses)
        self._conservation = Conservation(swarm)
        books = self._books = Books(self.scenario, cast.manifest, cast.seed, cast.machines, lambda: swarm.now)
        world = SimulatedWorld(swarm, cast.machines, accesses, books)
        books.look, fleet = world.look, Fleet(world, cast.machines, books.note)
        fleet.start()
        befalls = cast.seed if self.befalls is None else self.befalls
        Happenings(fleet, random.Random(f"{befalls}/events"), books.tell).start(self.scenario.events)
        self._fleet = fleet
        running = asyncio.ensure_future(swarm.run())
        hopeless = asyncio.ensure_future(self._lose_hope())
        await asyncio.wait(
            (running, hopeless), timeout=self.scenario.minutes * MINUTE, return_when=asyncio.FIRST_COMPLETED
        )
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        self.callbacks = loop.ran
        finished = running.done()
        report = running.result() if finished else swarm.trainer.report() if swarm.is_led else NO_REPORT
        explained = "" if finished else hopeless.result() if hopeless.done() else self._explain()
        return books.outcome(
            report,
            finished=finished,
            bytes_up=cast.sent,
            bytes_down=sum(link.down.carried for link in cast.accesses),
            explained=explained,
        )

    def _build(self, accesses: dict[str, Access]) -> SimulatedSwarm:
        cast, manifest = self._cast, self._cast.manifest
        delegations = {
            identity: delegate(ORGANIZER, manifest.run_id, identity.public_hex) for identity in cast.coordinators
        }
        return SimulatedSwarm(
            signed=sign_manifest(ORGANIZER, manifest),
            manifest=manifest,
            delegations=delegations,
            term=sign_term(COORDINATORS[0], manifest.run_id, 1, delegations[COORDINATORS[0]]),
            parts=Parts(backend=SizedBackend, arithmetic=lambda manifest: SizedArithmetic()),
            samples=SizedSamples(manifest),
            wanted=(),
            seed=cast.seed,
            first_heir=len(cast.machines),
            watch=self._watch,
            emit=self._saw if self._chronicle is None else self._chronicle.emit,
            give_up=None,
            checkpoints=checkpoints_of(self.scenario, manifest),
            internet=Internet(cast.seed, accesses=accesses, distances=cast.distances, weigher=weigher(manifest)),
        )

    def _saw(self, event: Event) -> None:
        if event.kind in SEEN:
            self._books.see(event.to_json())
        if isinstance(event, Stepped):
            self._conservation.check()

    def _watch(self, swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        host = swarm.peers[peer].host
        if moment.name != "applied" or host is None:
            return
        state: SizedState | None = host.versions.get(host.versions.latest)
        assert state is not None
        wrong = wrong_sum(state, self._cast.manifest.microbatches)
        if wrong:
            swarm.fail(ConservationError(f"{peer}: {wrong}"))

    async def _lose_hope(self) -> str:
        """Returns when too few machines are left for the run ever to go on: why."""
        settings = self._cast.manifest.settings
        while True:
            await asyncio.sleep(MINUTE)
            replicas = 1 if self._books.steps else settings.pipeline.min_replicas
            needed = self._cast.manifest.stages * replicas
            if not self._fleet.expected and self._fleet.up < needed:
                at = self._swarm.now / MINUTE
                return (
                    f"after {at:.0f} min {self._fleet.up} machines are left, nobody else comes, and {needed} are needed"
                )

    def _explain(self) -> str:
        """Why not one step was made, or no more for long; "" if it just takes its time."""
        swarm, steps, manifest = self._swarm, self._books.steps, self._cast.manifest
        if not swarm.is_led:
            return "no coordinator ever led"
        roster = swarm.trainer.roster
        if steps:
            usual = (steps[-1][0] - steps[0][0]) / max(1, len(steps) - 1)
            if swarm.now - steps[-1][0] <= max(LONG, LONG_STEPS * usual):
                return ""
            empty = [stage for stage in range(manifest.stages) if not roster.live(stage)]
            why = f"; stages {empty} have no replica" if empty else ""
            return f"no step was done after {steps[-1][0] / MINUTE:.1f} min{why}"
        needed = manifest.settings.pipeline.min_replicas
        lacking = [stage for stage in range(manifest.stages) if len(roster.live(stage)) < needed]
        if lacking:
            return f"stages {lacking} never had the {needed} replicas that the run begins with"
        return f"the first step was not done within {self.scenario.minutes:g} minutes"
