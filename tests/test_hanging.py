"""A device that hangs while its peer beats on: nobody else could tell it from a slow one, so the peer itself ends."""

from typing import Any

from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.host import Moment

from tests.exact import exact_manifest, exact_swarm
from tests.exact_reference import reference


def test_a_peer_whose_device_hangs_ends_and_others_do_its_work() -> None:
    hung: list[str] = []
    endings: dict[str, str] = {}

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.name, moment.stage, moment.step) == ("backward", 1, 2) and not hung:
            hung.append(peer)
            swarm.devices[peer].hang()
            # The other replica is gone as well: nobody can be asked in its place.
            swarm.kill(next(other for other in swarm.live_at(1) if other != peer))
            swarm.later(200.0, lambda: swarm.start_peer(100, None))

    async def main() -> dict[str, Any]:
        manifest = exact_manifest(steps=4)
        pipeline = manifest.settings.pipeline.model_copy(update={"rebalance": 0.0})  # or somebody would move there
        settings = manifest.settings.model_copy(update={"pipeline": pipeline})
        swarm = exact_swarm(manifest.model_copy(update={"settings": settings}), watch=watch, give_up=None)
        report = await swarm.run()
        endings.update(swarm.endings)
        return report

    report = run(main(), limit=1000.0)
    expected = reference(stages=3, steps=4, batch=4, staleness=1)
    assert [step["loss"] for step in report["steps"]] == expected.losses
    assert endings[hung[0]].startswith("DeviceError: the device has been at one visit for 12")
