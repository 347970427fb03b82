"""Routing in a closed loop: the real trainer and peers keep a number of microbatches in flight, on virtual time.

A peer that serves r visits a second takes a third of 1/r seconds for a forward and two thirds for a backward, each
within a fifth of it. Unless told otherwise the whole run is one long step, so that nothing but routing decides how busy
the peers are. A microbatch that is run again counts again: what is measured is how busy they are kept.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.compute import BACKGROUND, BACKWARD, FORWARD
from swarm_peer.swarm.driving import Driver
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.neighbours import POLICIES
from swarm_peer.swarm.routing import Policy
from swarm_peer.swarm.trainer import Trainer

from tests.exact import exact_manifest, exact_swarm

UNEVEN = (1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0)
EVEN = (2.0,) * 8
ONE_WAY_SECONDS = 0.05
SLOTS = 64
WARM_UP_SECONDS = 30.0


@dataclass
class Loop:
    """A swarm of `stages` stages whose replicas serve `rates` visits a second, while it runs, in steps of `batch`
    microbatches. What happens to it is told to `watch`; `served` are the times at which microbatches were issued and
    done."""

    rates: Sequence[float]
    in_flight: int
    stages: int = 1
    batch: int | None = None
    seed: int = 0
    watch: Callable[[str, Moment], None] = field(default=lambda peer, moment: None)
    served: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.swarm: SimulatedSwarm

    def name(self, stage: int, replica: int) -> str:
        return Identity.from_seed(f"peer {replica * self.stages + stage}").peer_id

    def set_rate(self, stage: int, replica: int, rate: float) -> None:
        durations = {FORWARD: 1 / rate / 3, BACKWARD: 2 / rate / 3, BACKGROUND: 0.01}
        self.swarm.devices[self.name(stage, replica)].durations = durations

    def set_rates(self, rates: Sequence[float]) -> None:
        for stage in range(self.stages):
            for replica, rate in enumerate(rates):
                self.set_rate(stage, replica, rate)

    @property
    def capacity(self) -> float:
        """Microbatches a second that the swarm can do at most."""
        return sum(self.rates)


@dataclass(frozen=True, slots=True)
class Served:
    """What came out in the seconds from `since` to `until`: microbatches a second, and percentiles of their seconds."""

    rate: float
    p50: float
    p99: float


Script = Callable[[Loop], Any]
"""What is done to a loop meanwhile: called once all peers have been started, with virtual time at 0."""


def closed_loop(
    loop: Loop,
    *,
    until: float,
    since: float = WARM_UP_SECONDS,
    policies: Mapping[str, Policy] | None = None,
    routing: str = "least-work",
    script: Script = lambda loop: None,
) -> Served:
    """Runs a loop for `until` virtual seconds. `policies` replaces what the names of policies mean."""

    async def timed(driver: Driver, step: int, index: int, version: int) -> None:
        issued = loop.swarm.now
        await drive(driver, step, index, version)
        loop.served.append((issued, loop.swarm.now))

    async def main() -> None:
        microbatches = int(1.2 * loop.capacity * until) + loop.in_flight
        batch = loop.batch or microbatches
        manifest = exact_manifest(
            stages=loop.stages, steps=-(-microbatches // batch), batch=batch, replicas=len(loop.rates), slots=SLOTS
        )
        pipeline = manifest.settings.pipeline.model_copy(update={"routing": routing})
        settings = manifest.settings.model_copy(update={"pipeline": pipeline})
        loop.swarm = exact_swarm(
            manifest.model_copy(update={"settings": settings}),
            seed=loop.seed,
            latency=(ONE_WAY_SECONDS, ONE_WAY_SECONDS),
            watch=lambda swarm, peer, moment: loop.watch(peer, moment),
        )
        running = asyncio.ensure_future(loop.swarm.run())
        await asyncio.sleep(0)
        loop.set_rates(loop.rates)
        script(loop)
        await asyncio.wait([running], timeout=until)
        assert not running.done(), "the run came to its end too early"

    drive = Driver.drive
    with ExitStack() as patches:
        patches.enter_context(patch.object(Driver, "drive", timed))
        patches.enter_context(patch.object(Trainer, "_window", lambda trainer: loop.in_flight))
        patches.enter_context(patch.dict(POLICIES, policies or {}))
        run(main(), limit=10 * until)
    seconds = sorted(done - issued for issued, done in loop.served if since <= done < until)
    assert seconds, "nothing came out"
    return Served(len(seconds) / (until - since), _percentile(seconds, 0.5), _percentile(seconds, 0.99))


def _percentile(ranked: Sequence[float], share: float) -> float:
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
