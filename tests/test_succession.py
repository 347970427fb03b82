"""Who leads, and with what, after a term is over."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from swarm_peer.errors import FencedError
from swarm_peer.simulations.devices import SimulatedDevice
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.checkpoint import Checkpoint
from swarm_peer.swarm.epochs import Lineage
from swarm_peer.swarm.succession import Succession, _Over
from swarm_peer.swarm.trainer import Trainer

from tests.exact import exact_manifest


class Overtaken(Succession):
    """Every term is overtaken; `began` says of each whether it had begun by then. `led`: with what each was led."""

    began: list[bool]
    led: list[Checkpoint | None]

    async def _lead(self) -> dict[str, Any]:
        self.led.append(self._back_to if self._begins else None)
        led = SimpleNamespace(
            origin=self._back_to,
            began=self.began.pop(0),
            fenced_by=None,
            beginning=SimpleNamespace(lineage=self.lineage),
            closed_marker=lambda: 0,
            past=lambda step: [],
        )
        self.trainer = cast(Trainer, led)
        self._begins, self._back_to = False, None
        raise FencedError("another leads")

    async def _follow(self) -> None:
        if not self.began:
            raise _Over


@pytest.mark.parametrize(
    ("began", "resumed"),
    [
        ((False, False, True), (True, True, True)),  # the peers knew a higher term than the checkpoint did
        ((True, False, True), (True, False, False)),  # the run has gone on from there: nothing goes back to it
    ],
)
def test_a_run_is_resumed_from_a_checkpoint_once(began: tuple[bool, ...], resumed: tuple[bool, ...]) -> None:
    manifest = exact_manifest(replicas=1)
    pipeline = manifest.settings.pipeline.model_copy(update={"standby": True})
    manifest = manifest.model_copy(update={"settings": manifest.settings.model_copy(update={"pipeline": pipeline})})
    origin = cast(Checkpoint, SimpleNamespace(lineage=Lineage(), term=SimpleNamespace(number=1)))
    nothing = cast(Any, None)
    succession = Overtaken(
        manifest=manifest,
        signature=b"",
        identity=nothing,
        delegation=b"",
        transport=nothing,
        directory=nothing,
        arithmetic=nothing,
        samples=nothing,
        emit=lambda event: None,
        origin=origin,
        device=cast(SimulatedDevice, None),
    )
    succession.began, succession.led = list(began), []
    assert run(succession.run(lead=True), limit=60.0) is None
    assert tuple(checkpoint is origin for checkpoint in succession.led) == resumed
