"""A member moves to the stage that needs it, on virtual time, while the run goes on."""

from typing import Any

from swarm_peer.simulations.devices import DURATIONS
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import events
from swarm_peer.swarm.compute import BACKWARD, FORWARD
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.manifest import Manifest

from tests.exact import exact_manifest, exact_swarm
from tests.exact_reference import reference

STEPS = 60
PERIOD = 40.0


def manifest_of(period: float = PERIOD) -> Manifest:
    manifest = exact_manifest(steps=STEPS, replicas=1)
    pipeline = manifest.settings.pipeline.model_copy(update={"rebalance": period})
    return manifest.model_copy(update={"settings": manifest.settings.model_copy(update={"pipeline": pipeline})})


def trained(manifest: Manifest, wanted: tuple[int | None, ...], **options: Any) -> tuple[Any, list[events.Event]]:
    """Visits take a second or so, so that a run of 60 steps lasts for several periods."""
    told: list[events.Event] = []
    durations = {**DURATIONS, FORWARD: 0.4, BACKWARD: 0.8}

    async def main() -> dict[str, Any]:
        swarm = exact_swarm(manifest, wanted=wanted, durations=durations, **{"emit": told.append, **options})
        return await swarm.run()

    report = run(main(), limit=4000.0)
    expected = reference(stages=3, steps=STEPS, batch=4, staleness=1)
    assert [step["loss"] for step in report["steps"]] == expected.losses
    assert (report["ledger"]["lost"], report["ledger"]["duplicated"]) == (0, 0)
    for replica, digest in zip(report["replicas"], expected.digests, strict=True):
        assert set(replica["digests"].values()) == {digest}
    return report, told


def of(told: list[events.Event], kind: type[events.Event]) -> list[Any]:
    return [event for event in told if isinstance(event, kind)]


def test_a_stage_with_three_gives_one_to_a_stage_with_one() -> None:
    report, told = trained(manifest_of(), (0, 1, 2, 0, 0, 1))
    moves = of(told, events.Moved)
    assert [(move.stage, move.target, move.error) for move in moves] == [(0, 2, "")]
    assert [len(replica["digests"]) for replica in report["replicas"]] == [2, 2, 2]
    assert [event.why for event in of(told, events.Left)] == ["it moves to stage 2"]
    # It served its old stage until it served the new one.
    kinds = [type(event) for event in told if isinstance(event, events.Moving | events.Ready | events.Left)]
    moving = kinds.index(events.Moving)
    assert kinds[moving:] == [events.Moving, events.Ready, events.Left]
    assert not of(told, events.Lost)


def test_nothing_moves_in_a_swarm_that_is_even() -> None:
    _, told = trained(manifest_of(), (0, 1, 2, 0, 1, 2))
    assert not of(told, events.Moving)


def test_nothing_moves_where_that_is_turned_off() -> None:
    _, told = trained(manifest_of(0.0), (0, 1, 2, 0, 0, 1))
    assert not of(told, events.Moving)


def test_who_declines_is_not_asked_again() -> None:
    def fix(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        swarm.peers[peer].moves = lambda target: False

    _, told = trained(manifest_of(), (0, 1, 2, 0, 0, 1), watch=fix)
    moves = of(told, events.Moved)
    assert moves
    assert {move.error for move in moves} == {"it declined"}
    assert len({move.member for move in moves}) == len(moves)


def test_a_mover_that_is_lost_at_once_ends_its_move_and_another_one_moves() -> None:
    swarms: list[SimulatedSwarm] = []
    killed: list[str] = []
    told: list[events.Event] = []

    def emit(event: events.Event) -> None:
        told.append(event)
        if isinstance(event, events.Moving) and not killed:
            killed.append(event.peer)
            swarms[0].kill(event.peer)

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        swarms[:] = [swarm]

    trained(manifest_of(), (0, 1, 2, 0, 0, 1, 0), watch=watch, emit=emit)
    moved = of(told, events.Moved)
    assert (moved[0].peer, moved[0].error) == (killed[0], "it was lost")
    assert [(move.stage, move.target, move.error) for move in moved[1:]] == [(0, 2, "")]
