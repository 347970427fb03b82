"""Routing: who may be chosen at all, whom each policy chooses, and what it is worth with the real trainer and peers."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm import loads, routing
from swarm_peer.swarm.bans import FIRST_SECONDS, LONGEST_SECONDS, Ban
from swarm_peer.swarm.directory import SEQUENCE_BITS, Record
from swarm_peer.swarm.least_work import forecasts, least_work
from swarm_peer.swarm.loads import MAX_SECONDS, Load, Pace
from swarm_peer.swarm.round_robin import round_robin
from swarm_peer.swarm.routing import Place, Policy, Wiring

from tests.closed_loop import EVEN, UNEVEN, Loop, closed_loop

Change = Callable[[Wiring], Wiring]


def record(peer: str, incarnation: int = 1, published: int = 1, **says: float) -> Record:
    plain = Record("run", 1, peer, (), incarnation << SEQUENCE_BITS | published, 1)
    return replace(plain, **says)


def wiring(*peers: str) -> Wiring:
    return routing.observe(Wiring(), [record(peer) for peer in peers], 0.0)


def shares(state: Wiring, picks: int, policy: Policy = round_robin, now: float = 0.0) -> Counter[str]:
    """Whom a caller calls in turn; every call ends at once."""
    draw, chosen = random.Random(0), Counter[str]()
    for _ in range(picks):
        replica = routing.choose(state, policy, (), now, draw)
        assert replica is not None
        state = routing.called(state, replica.peer, now)
        state = routing.moved(state, replica.peer, Place.SENT, None)
        chosen[replica.peer] += 1
    return chosen


def chosen(state: Wiring, policy: Policy = least_work, excluded: tuple[str, ...] = (), now: float = 0.0) -> str | None:
    replica = routing.choose(state, policy, excluded, now, random.Random(0))
    return None if replica is None else replica.peer


def load(service: float, backlog: float = 0.0, below: float = 0.0) -> Load:
    return Load(service / 3, service * 2 / 3, backlog, below)


# ---- round-robin


def test_a_peer_twice_as_fast_gets_twice_as_much() -> None:
    state = wiring("fast", "slow")
    for _ in range(20):
        state = routing.succeeded(routing.succeeded(state, "fast", 0.5), "slow", 1.0)
    assert shares(state, 300)["fast"] == pytest.approx(200, abs=2)


def test_a_newcomer_is_neither_starved_nor_flooded() -> None:
    state, draw = wiring("a", "b"), random.Random(0)
    for _ in range(100):
        replica = routing.choose(state, round_robin, (), 0.0, draw)
        assert replica is not None
        state = routing.called(state, replica.peer, 0.0)
    joined = routing.observe(state, [record("a"), record("b"), record("c")], 0.0)
    assert shares(joined, 30)["c"] == pytest.approx(10, abs=2)


def test_a_peer_that_was_banned_is_not_owed_what_it_missed() -> None:
    state = routing.failed(wiring("a", "b"), "a", 0.0, 0.0)
    for _ in range(100):
        state = routing.called(state, "b", 1.0)
    forgiven = routing.succeeded(state, "a", 1.0)
    assert shares(forgiven, 20, now=1.0)["a"] == pytest.approx(10, abs=2)


# ---- who may be chosen


def test_a_failed_peer_is_banned_until_the_ban_is_over() -> None:
    state = routing.failed(wiring("a", "b"), "a", 0.0, 0.0)
    assert shares(state, 20) == {"b": 20}
    assert shares(state, 20, now=FIRST_SECONDS)["a"] == 10


def test_a_record_ends_a_ban_only_if_it_is_of_a_new_incarnation() -> None:
    state = routing.failed(wiring("a", "b"), "a", 0.0, 0.0)
    spoke = routing.observe(state, [record("a", published=2), record("b")], 0.1)
    assert shares(spoke, 20) == {"b": 20}
    again = routing.observe(state, [record("a", incarnation=2), record("b")], 0.1)
    assert shares(again, 20)["a"] == 10


def test_bans_grow_and_are_forgiven() -> None:
    ban, now, lengths = Ban(), 0.0, []
    for _ in range(10):
        ban = ban.after_failure(now, now)
        lengths.append(ban.until - now)
        now = ban.until
    assert lengths[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert lengths[-1] == LONGEST_SECONDS
    successes = 0
    while ban.on_probation:
        ban, successes = ban.after_success(), successes + 1
    assert successes == 4
    assert ban == Ban()


def test_calls_from_before_a_ban_are_one_failure() -> None:
    once = Ban().after_failure(0.0, 5.0)
    assert once.after_failure(1.0, 5.1) == once
    assert once.after_failure(once.until, once.until + 1).strikes == 2


def test_a_peer_on_probation_gets_one_call_at_a_time() -> None:
    state = routing.failed(wiring("a", "b"), "a", 0.0, 0.0)
    state = routing.called(state, "a", FIRST_SECONDS)
    for _ in range(20):
        assert chosen(state, round_robin, now=FIRST_SECONDS) == "b"
        state = routing.called(state, "b", FIRST_SECONDS)
    state = routing.succeeded(routing.moved(state, "a", Place.SENT, None), "a", 1.0)
    assert chosen(state, round_robin, now=FIRST_SECONDS) == "a"


def test_the_only_replica_is_tried_though_it_is_banned() -> None:
    alone = routing.failed(wiring("a"), "a", 0.0, 0.0)
    assert chosen(alone) == "a"
    both = routing.failed(routing.failed(wiring("a", "b"), "b", 0.0, 0.0), "a", 0.0, 1.0)
    assert chosen(both) == "b"
    assert routing.choose(Wiring(), least_work, (), 0.0, random.Random(0)) is None


def test_a_tried_peer_is_taken_only_when_nobody_else_is_left() -> None:
    assert chosen(wiring("a", "b"), round_robin, excluded=("a",)) == "b"
    assert chosen(wiring("a"), round_robin, excluded=("a",)) == "a"


@pytest.mark.parametrize("policy", [round_robin, least_work])
def test_a_hedge_goes_only_to_somebody_else_who_is_well(policy: Policy) -> None:
    draw = random.Random(0)
    assert routing.another(wiring("a"), policy, ("a",), 0.0, draw) is None
    beside = routing.another(wiring("a", "b"), policy, ("a",), 0.0, draw)
    assert beside is not None
    assert beside.peer == "b"
    banned = routing.failed(wiring("a", "b"), "b", 0.0, 0.0)
    assert routing.another(banned, policy, ("a",), 0.0, draw) is None


def test_a_peer_that_left_the_directory_is_not_chosen() -> None:
    assert shares(routing.observe(wiring("a", "b"), [record("b")], 0.0), 5) == {"b": 5}
    assert shares(routing.gone(wiring("a", "b"), "a"), 5) == {"b": 5}


def test_choices_depend_on_the_state_alone() -> None:
    state = wiring("a", "b", "c")
    assert shares(state, 50) == shares(Wiring(dict(state.replicas)), 50)


# ---- least work


def told(state: Wiring, **said: Load) -> Wiring:
    for peer, load in said.items():
        state = routing.accepted(routing.told(state, peer, load, 0.0), peer, 0.1)
    return state


def test_the_callees_queue_counts() -> None:
    state = told(wiring("a", "b"), a=load(1.0, backlog=2.0), b=load(1.0, backlog=1.0))
    assert chosen(state) == "b"


def test_what_comes_below_counts() -> None:
    state = told(wiring("a", "b"), a=load(1.0, below=1.0), b=load(1.0, backlog=0.5, below=0.1))
    assert chosen(state) == "b"


def test_the_link_counts() -> None:
    state = told(wiring("a", "b"), a=load(1.0), b=load(1.0))
    for _ in range(50):
        state = routing.accepted(state, "a", 0.5)
    assert chosen(state) == "b"


def test_own_calls_are_known_before_the_callee_says_so() -> None:
    state = told(wiring("a", "b"), a=load(1.0), b=load(1.0))
    state = routing.called(state, "a", 0.0)
    assert chosen(state) == "b"


def test_own_calls_are_not_counted_twice() -> None:
    state = routing.called(told(wiring("a"), a=load(1.0)), "a", 0.0)
    state = routing.moved(state, "a", Place.SENT, Place.AHEAD)
    state = routing.told(state, "a", load(1.0, backlog=3.0), 0.0)
    (forecast,) = forecasts(list(state.replicas.values()), 0.0)
    assert forecast.ahead == pytest.approx(3.0)
    state = routing.moved(state, "a", Place.AHEAD, Place.RETURNING)
    (forecast,) = forecasts(list(state.replicas.values()), 0.0)
    assert forecast.ahead == pytest.approx(2.0 + 2 / 3)


def test_what_was_said_long_ago_fades() -> None:
    state = told(wiring("a", "b"), a=load(10.0, backlog=20.0), b=load(1.0))
    assert chosen(state) == "b"
    later = [forecast.own for forecast in forecasts(list(state.replicas.values()), 500.0)]
    assert later[0] == pytest.approx(later[1], rel=1e-3)


def test_a_peer_that_claims_more_than_it_does_is_believed_less() -> None:
    state = told(wiring("honest", "liar"), honest=load(1.0), liar=load(0.01))
    assert chosen(state) == "liar"
    for _ in range(60):
        expected = forecasts(list(state.replicas.values()), 0.0)[1].own
        state = routing.compared(state, "liar", 5.0, expected)
        assert state.replicas["liar"].excess <= routing.MAX_EXCESS
    assert state.replicas["liar"].excess == routing.MAX_EXCESS


def test_a_record_says_something_of_peers_that_were_never_called() -> None:
    records = [record("idle", throughput=1.0, queue=0), record("busy", throughput=1.0, queue=5)]
    assert chosen(routing.observe(Wiring(), records, 0.0)) == "idle"


@pytest.mark.parametrize(
    "message",
    [pb.Load(forward=2**32 - 1, backward=2**32 - 1, backlog=2**32 - 1, below=2**32 - 1), pb.Load(backward=1)],
)
def test_what_comes_from_the_wire_is_bounded(message: pb.Load) -> None:
    found = loads.from_message(message)
    assert found is not None
    assert all(0 <= said <= MAX_SECONDS for said in (found.forward, found.backward, found.backlog, found.below))
    assert loads.from_message(pb.Load(backlog=5)) is None


def test_a_record_is_bounded_too() -> None:
    state = routing.observe(Wiring(), [record("a", throughput=5e-324, queue=1 << 60)], 0.0)
    said = state.replicas["a"].load
    assert said is not None
    assert max(said.service, said.backlog, state.replicas["a"].others) <= MAX_SECONDS


def test_a_peers_pace_follows_its_device() -> None:
    pace = Pace()
    assert pace.throughput == 0.0
    for _ in range(60):
        pace = pace.measured("forward", 0.1).measured("backward", 0.3).measured("background", 9.0)
    assert pace.throughput == pytest.approx(2.5)
    assert loads.from_message(loads.to_message(pace.load(2, 1, 0.25))) == Load(0.1, 0.3, 1.1, 0.25)


# ---- the targets, with the real trainer and peers in a closed loop


@pytest.mark.parametrize(("in_flight", "share"), [(16, 0.92), (32, 0.95), (64, 0.95)])
def test_uneven_peers_are_kept_busy(in_flight: int, share: float) -> None:
    served = closed_loop(Loop(UNEVEN, in_flight), until=70.0)
    assert served.rate >= share * sum(UNEVEN)
    # Nothing waits much longer than if all devices were one.
    assert served.p99 < 1.5 * in_flight / sum(UNEVEN)


def test_callers_that_know_of_each_other_only_by_the_wire_beat_round_robin() -> None:
    ours = [closed_loop(Loop(UNEVEN, 32, stages=2, seed=seed), until=70.0) for seed in range(3)]
    theirs = [
        closed_loop(Loop(UNEVEN, 32, stages=2, seed=seed), until=70.0, routing="round-robin") for seed in range(3)
    ]
    assert sum(served.rate for served in ours) > 1.05 * sum(served.rate for served in theirs)
    assert sum(served.p99 for served in ours) < 0.8 * sum(served.p99 for served in theirs)


def test_a_hanging_peer_costs_its_own_share_only() -> None:
    def hang(loop: Loop) -> None:
        loop.swarm.later(10.0, loop.swarm.devices[loop.name(0, 3)].hang)

    served = closed_loop(Loop(EVEN, 32), until=100.0, since=70.0, script=hang)
    assert served.rate >= 0.95 * 7 / 8 * sum(EVEN)
