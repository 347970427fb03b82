"""Runs a scenario with real processes over an emulated internet, in real time, and says what came of it.

    Scenario -> Emulation(scenario, seed).run() -> Outcome

Real are the processes, libp2p, the directory, TCP and every byte; emulated are the links (`router.py`), and the devices
are durations (`emulated_node.py`). The same file as `Study` takes, the same sessions and events.

Errors: `EmulationError` where it is not allowed, and when the router was too busy for the outcome to count;
`ScenarioError`, `ConservationError`.
"""

import asyncio
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import EmulationError
from ..peer import zygote
from .books import Books
from .cast import Cast
from .emulated_world import EmulatedWorld, emulated
from .fleet import Fleet
from .happenings import Happenings
from .namespace import TCP
from .outcome import MINUTE, Outcome
from .router import check_router
from .scenario import Scenario
from .study import NO_REPORT

PACKET_BYTES = 1500


@dataclass
class Emulation:
    """One run of a scenario; `seed` is the scenario's, if no other is given; `folder`: where logs stay; `tcp`: the
    congestion control of all machines, one that the kernel has."""

    scenario: Scenario
    seed: int | None = None
    folder: Path | None = None
    mtu: int = PACKET_BYTES
    tcp: str = TCP

    def run(self) -> Outcome:
        """Emulates it, which takes as long as the run does."""
        if sys.platform != "linux" or not zygote.is_possible():
            raise EmulationError("an internet can be emulated on Linux only: it takes network namespaces")
        cast = Cast.of(self.scenario, self.seed)
        with tempfile.TemporaryDirectory(prefix="swarm-sim-") as made:
            folder = self.folder or Path(made)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                return asyncio.run(self._main(cast, folder, Path(made)))
            except (OSError, ChildProcessError) as error:
                raise EmulationError(f"the processes of {self.scenario.title!r} cannot be run: {error}") from error

    async def _main(self, cast: Cast, folder: Path, sockets: Path) -> Outcome:
        books = Books(self.scenario, cast.manifest, cast.seed, cast.machines, lambda: world.now)
        with emulated(cast, books, folder, sockets, self.mtu, self.tcp) as world:
            await world.begin()
            books.look, fleet = world.look, Fleet(world, cast.machines, books.note)
            fleet.start()
            Happenings(fleet, random.Random(f"{cast.seed}/events"), books.tell).start(self.scenario.events)
            finished = True
            try:
                async with asyncio.timeout(self.scenario.minutes * MINUTE):
                    report = await world.report
            except TimeoutError:
                finished, report = False, await world.last_report() or NO_REPORT
            return self._outcome(world, books, report, finished=finished)

    def _outcome(self, world: EmulatedWorld, books: Books, report: dict[str, object], *, finished: bool) -> Outcome:
        busiest = world.router.busiest
        check_router(busiest)
        return books.outcome(
            report,
            finished=finished,
            bytes_up=world.cast.sent,
            bytes_down=sum(link.down.carried for link in world.cast.accesses),
            explained="" if books.steps else "no step was done",
            router=busiest,
        )
