"""What a caller is told of a visit, and when; virtual time."""

import asyncio
from collections.abc import Callable

import pytest
from swarm_peer.errors import FailedError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.visits import RELAY_SECONDS, Attachment, Visit, VisitKey, VisitTable

from tests.exact import check_counts

Did = Callable[[Visit], None]


def entry(stage: int, phase: pb.Phase, member: int = 7) -> pb.PathEntry:
    return pb.PathEntry(stage=stage, member=member, peer=f"peer {member}", begun=1, phase=phase)


def told(*deeds: Did) -> tuple[float, list[tuple[int, int]]]:
    """When the caller of a visit of stage 0, whose path it knows, is told of what is done to it now; (stage, phase)."""

    async def main() -> tuple[float, list[tuple[int, int]]]:
        visit = Visit(VisitKey(0, pb.TRAIN, 0, 0), entry(0, pb.FORWARD), pb.Run(last=2), b"")
        visit.below = {1: entry(1, pb.QUEUED)}
        attachment = visit.attach((1,))
        attachment.take()
        for deed in deeds:
            deed(visit)
        async with asyncio.timeout(10):
            await attachment.changed.wait()
        return asyncio.get_running_loop().time(), [(entry.stage, entry.phase) for entry in attachment.take()]

    return run(main())


def test_an_own_phase_is_told_at_once() -> None:
    assert told(lambda visit: visit.enter(pb.BACKWARD)) == (0.0, [(0, pb.BACKWARD)])


def test_waiting_below_is_told_with_what_comes_soon() -> None:
    assert told(lambda visit: visit.enter(pb.BELOW)) == (RELAY_SECONDS, [(0, pb.BELOW)])
    both = (lambda visit: visit.enter(pb.BELOW), lambda visit: visit.hear([entry(1, pb.QUEUED, member=8)]))
    assert told(*both) == (0.0, [(0, pb.BELOW), (1, pb.QUEUED)])


@pytest.mark.parametrize("phase", [pb.FORWARD, pb.BELOW, pb.BACKWARD, pb.HELD])
def test_another_phase_of_a_stage_below_is_not_told(phase: pb.Phase) -> None:
    with pytest.raises(TimeoutError):
        told(lambda visit: visit.hear([entry(1, phase)]))


@pytest.mark.parametrize("stage", [1, 2])
def test_another_holder_below_is_told_at_once(stage: int) -> None:
    assert told(lambda visit: visit.hear([entry(stage, pb.FORWARD, member=8)])) == (0.0, [(stage, pb.FORWARD)])


def test_an_own_phase_takes_along_what_waits() -> None:
    deeds: tuple[Did, ...] = (lambda visit: visit.enter(pb.BELOW), lambda visit: visit.enter(pb.RETURNED))
    assert told(*deeds) == (0.0, [(0, pb.RETURNED)])


def test_entries_of_the_own_stage_those_above_and_those_beyond_the_last_are_ignored() -> None:
    with pytest.raises(TimeoutError):
        told(lambda visit: visit.hear([entry(0, pb.HELD), entry(3, pb.HELD)]))


def test_nothing_is_due_once_it_has_been_taken() -> None:
    async def main() -> bool:
        attachment = Attachment((1,), ())
        attachment.mention([entry(1, pb.FORWARD)])
        attachment.take()
        await asyncio.sleep(2 * RELAY_SECONDS)
        return attachment.changed.is_set()

    assert not run(main())


def test_a_table_counts_its_open_visits_by_phase() -> None:
    """Through all that can happen to one: phases, an end, another beginning, a failure, and what comes late."""
    table = VisitTable(slots=4)

    def counts() -> dict[pb.Phase, int]:
        check_counts(table)
        return {phase: count for phase, count in table.phases.items() if count}

    visits = [Visit(VisitKey(0, pb.TRAIN, 0, index), entry(1, pb.QUEUED), pb.Run(last=2), b"") for index in range(3)]
    for visit in visits:
        table.add(visit)
    assert counts() == {pb.QUEUED: 3}
    visits[0].enter(pb.FORWARD)
    visits[1].enter(pb.BACKWARD)
    assert counts() == {pb.QUEUED: 1, pb.FORWARD: 1, pb.BACKWARD: 1}
    visits[1].end()
    visits[2].end(FailedError(1, "NON_FINITE", "it did not work"))
    visits[2].end(FailedError(1, "NON_FINITE", "it did not work"))
    visits[2].enter(pb.BACKWARD)
    assert counts() == {pb.FORWARD: 1}
    table.reopen(visits[1], pb.Run(last=2, lacking=[2]))
    assert counts() == {pb.FORWARD: 1, pb.BACKWARD: 1}
    visits[1].enter(pb.BELOW)
    table.rebadge(9)
    assert counts() == {pb.FORWARD: 1, pb.BELOW: 1}
    visits[1].hear([entry(2, pb.QUEUED, member=5)])
    visits[0].hear([entry(2, pb.QUEUED, member=6)])
    assert table.waiting_below() == (1, "peer 5")
    visits[0].enter(pb.BELOW)
    assert table.waiting_below() == (2, "peer 6"), "of two that have as many the last by name"
    visits[0].hear([entry(2, pb.FORWARD, member=5)])
    assert table.waiting_below() == (2, "peer 5")
    assert counts() == {pb.BELOW: 2}
    visits[1].end()
    visits[0].end()
    assert counts() == {}
    assert table.waiting_below() == (0, "")
