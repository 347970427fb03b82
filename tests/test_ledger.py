"""The ledger's rules, one by one."""

from swarm_peer.swarm.ledger import Ledger, first_gap


def complete_ledger() -> Ledger:
    """Step 0 of 2 stages and 3 microbatches: stage 0 by member 1, stage 1 by members 2 and 3."""
    ledger = Ledger(stages=2, microbatches=3)
    ledger.open(0)
    for index in range(3):
        assert ledger.credit(0, 0, index, 1)
        assert ledger.credit(0, 1, index, 2 if index else 3)
    return ledger


def test_the_first_live_holder_is_credited_and_no_other() -> None:
    ledger = complete_ledger()
    assert not ledger.credit(0, 0, 1, 9)
    assert ledger.holder(0, 0, 1) == 1


def test_a_stage_is_complete_when_every_index_has_its_holder() -> None:
    ledger = complete_ledger()
    assert ledger.complete(0, [0, 1])
    ledger.void(0, 1, [2], member=2)
    assert not ledger.complete(0, [1])
    assert ledger.complete(0, [0])
    assert ledger.missing(0, 2) == [1]
    assert ledger.missing_indices(0, [0, 1]) == [2]


def test_void_takes_only_from_the_member_that_lacks_it() -> None:
    ledger = complete_ledger()
    ledger.void(0, 1, [0], member=2)
    assert ledger.complete(0, [1])


def test_a_lost_member_loses_every_open_credit() -> None:
    ledger = complete_ledger()
    ledger.open(1)
    ledger.credit(1, 1, 2, 2)
    assert sorted(ledger.lose(2)) == [(0, 1), (0, 2), (1, 2)]
    assert ledger.missing(0, 0) == []
    assert ledger.missing(0, 1) == [1]


def test_settled_work_is_not_lost_with_its_member() -> None:
    ledger = complete_ledger()
    ledger.settle(0, [1])
    assert ledger.lose(2) == []
    assert ledger.missing(0, 1) == []
    ledger.reopen(0, [1], live={1, 3})
    assert ledger.missing(0, 1) == [1]
    assert ledger.missing(0, 0) == []


def test_a_closed_step_takes_no_credit() -> None:
    ledger = complete_ledger()
    ledger.close(0)
    assert not ledger.is_open(0)
    assert not ledger.credit(0, 0, 0, 5)
    assert ledger.lose(1) == []


def test_the_first_gap_is_contiguous() -> None:
    assert first_gap([0, 1, 2]) == (0, 2)
    assert first_gap([1, 3, 4]) == (1, 1)
