"""When a run goes on without a lost peer, as it is reported: when another one has done what that one had in hand."""

import json

import pytest
from swarm_peer.swarm.faults import Fault, FaultLog

from tests.chaos.checks import check_promises
from tests.chaos.schedules import Schedule, kill_at
from tests.chaos.virtual import Chaos


def test_what_comes_back_ends_a_fault_once_somebody_else_is_credited_with_it() -> None:
    fault = Fault(4, "peer 4", stage=1, at_step=2, why="", lost_at=10.0, affected=frozenset({(2, 0), (2, 3)}))
    log = FaultLog([fault])
    assert log.done(2, 3, [1], 10.1) == []
    assert log.done(2, 1, [], 10.2) == []
    assert log.done(2, 3, [0], 10.3) == [fault]
    assert fault.rerouted_at == 10.3
    assert log.done(2, 0, [], 10.4) == []


@pytest.mark.parametrize("moment", ["forward", "backward", "held"])
@pytest.mark.parametrize("stage", range(3))
def test_a_run_goes_on_without_a_killed_peer_when_another_has_done_its_visit(stage: int, moment: str) -> None:
    """What a peer has done and the trainer has not heard of is lost with it, too."""
    schedule = Schedule(3, staleness=1, replicas=2, standby=False, faults=(kill_at(moment, stage, 2),))
    chaos = Chaos(schedule)
    check_promises(chaos.simulate(), schedule)
    log = [json.loads(line) for line in chaos.log]
    (lost,) = (event for event in log if event["event"] == "lost")
    (rerouted,) = (event for event in log if event["event"] == "rerouted")
    assert rerouted["peer"] == lost["peer"]
    assert [
        event
        for event in log[log.index(lost) : log.index(rerouted)]
        if event["event"] == "held"
        and event["by"] != lost["peer"]
        and (event["stage"], event["step"], event["index"]) == (stage, rerouted["step"], rerouted["index"])
    ]
