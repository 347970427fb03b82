"""Links that peers measure while they serve, over a simulated network with known delays."""

import pytest
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import events, survey
from swarm_peer.swarm.chronicle import Chronicle
from swarm_peer.swarm.events import Event
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.run_view import view

from tests.exact import exact_manifest, exact_swarm


def test_links_are_measured_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(survey, "PAUSE_SECONDS", 1.0)
    pulses: list[events.LinkPulse] = []

    def emit(event: Event) -> None:
        if isinstance(event, events.Pulse):
            pulses.extend(event.links)
        chronicle.emit(event)

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        """Has every peer survey its links, from its first visit on."""
        found = swarm.peers[peer]
        if not found.surveys:
            found.surveys = True
            found._tasks.create_task(found._survey.run())

    chronicle = Chronicle(None, lambda: 0.0, lambda event: None)
    swarm = exact_swarm(exact_manifest(steps=12), watch=watch, emit=emit, latency=(0.05, 0.05))
    run(swarm.run(), limit=300.0)
    stages = {member.number: member.stage for member in swarm.trainer.roster.everyone()}
    by_peer = {member.peer: member.stage for member in swarm.trainer.roster.everyone()}
    assert {stages[link.member] for link in pulses} == {0, 1, 2}
    for link in pulses:
        near, far = stages[link.member], by_peer[link.peer]
        assert far == (near + 1 if near < 2 else 1)
        assert link.round_trip == pytest.approx(0.1, abs=0.02)
        assert link.rate > 0
    shown = view(chronicle.state)["links"]
    assert len(shown) == len({(link.member, link.peer) for link in pulses}) > 6
    assert all(link["relayed"] is False for link in shown.values())
