"""Who moves, and when: one at a time, none twice within its time, no stage is emptied, nothing moves for noise.

Each property of the long runs has a mutant that breaks its rule, and must be found out.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm_peer.swarm import placement, rebalancing
from swarm_peer.swarm.placement import Hosted, place, staying, total_rate, typical_rate
from swarm_peer.swarm.rebalancing import Move, Rebalancer, Settings

from tests.churn import HOUR, Churn, Trace

Rates = Sequence[Sequence[float]]
Stages = list[list[Hosted]]
AT_ONCE = Settings(period=0.0, confirm=0.0)
ASKED_EVERY = 120.0


def stages_of(rates: Rates) -> Stages:
    members = iter(range(1, 10_000))
    return [[Hosted(number := next(members), f"peer {number}", rate, -HOUR) for rate in stage] for stage in rates]


def carry_out(stages: Stages, move: Move, now: float = -HOUR) -> None:
    """The mover arrives, as a new member."""
    mover = next(hosted for hosted in stages[move.source] if hosted.member == move.member)
    stages[move.source].remove(mover)
    newest = max((hosted.member for stage in stages for hosted in stage), default=0)
    stages[move.target].append(dataclasses.replace(mover, member=max(newest, mover.member) + 1, since=now))


def first_move(stages: Stages, settings: Settings = AT_ONCE) -> Move | None:
    return Rebalancer(settings).decide(0.0, stages)


# ---- one decision


def test_from_the_richest_stage_to_the_poorest_and_the_newest_member() -> None:
    assert first_move(stages_of([[1.0] * 4, [1.0] * 2, [1.0] * 6, [1.0] * 3])) == Move(member=12, source=2, target=1)


def test_the_mover_is_the_one_that_makes_the_weaker_of_both_greatest() -> None:
    """4 would leave its source the weaker, 1 brings less than 2 does."""
    assert first_move(stages_of([[2.0], [4.0, 2.0, 1.0]])) == Move(member=3, source=1, target=0)


def test_two_stages_that_are_equally_slow_are_both_helped() -> None:
    """The slowest stage of the run is as slow after the first move as before."""
    stages, rebalancer, moves = stages_of([[1.0], [1.0], [1.0] * 4, [1.0] * 4]), Rebalancer(AT_ONCE), 0
    while move := rebalancer.decide(0.0, stages):
        carry_out(stages, move)
        rebalancer.settled(0.0, move.member, ok=True)
        moves += 1
    assert sorted(len(stage) for stage in stages) == [2, 2, 3, 3]
    assert moves == 2


@pytest.mark.parametrize(("replicas", "moves"), [(2, True), (3, True), (11, True), (40, False)])
def test_one_replica_short_is_worth_a_move_unless_noise_would_be_too(replicas: int, moves: bool) -> None:
    assert bool(first_move(stages_of([[1.0] * replicas, [1.0] * (replicas + 2)]))) == moves


def test_the_only_replica_stays_and_so_do_those_that_others_wait_for() -> None:
    assert first_move(stages_of([[1.0], [9.0]])) is None
    stages = stages_of([[1.0], [3.0, 3.0]])
    assert first_move(stages) is not None
    for change in ({"leaving": True}, {"ready": False}):
        other = dataclasses.replace(stages[1][0], **change)
        assert first_move([stages[0], [other, stages[1][1]]]) is None
        assert first_move([stages[0], [stages[1][0], dataclasses.replace(stages[1][1], **change)]]) is None


def test_a_source_keeps_its_least_number_of_replicas() -> None:
    stages = stages_of([[1.0, 1.0], [4.0, 4.0, 4.0]])
    assert first_move(stages, dataclasses.replace(AT_ONCE, min_replicas=2)) is not None
    assert first_move(stages, dataclasses.replace(AT_ONCE, min_replicas=3)) is None


def test_no_machine_moves_to_a_stage_that_it_hosts_already() -> None:
    stages = stages_of([[1.0], [1.0, 1.0, 1.0]])
    stages[1] = [dataclasses.replace(hosted, besides=(0,)) for hosted in stages[1]]
    assert first_move(stages) is None


def test_an_empty_stage_waits_for_nothing_but_the_mover_before() -> None:
    rebalancer = Rebalancer(Settings(min_replicas=2))
    stages = stages_of([[], [], [1.0, 1.0]])
    move = rebalancer.decide(0.0, stages)
    assert move == Move(member=2, source=2, target=0)
    assert rebalancer.decide(1.0, stages) is None
    carry_out(stages, move)
    rebalancer.settled(2.0, move.member, ok=True)
    assert rebalancer.decide(3.0, stages) is None, "the last replica of the source"
    stages[2] += stages_of([[1.0]] * 9)[8]
    assert rebalancer.decide(4.0, stages) == Move(member=9, source=2, target=1)


def test_a_stage_whose_only_replica_leaves_is_as_good_as_empty() -> None:
    stages = stages_of([[1.0], [1.0, 1.0]])
    stages[0] = [dataclasses.replace(stages[0][0], leaving=True)]
    assert Rebalancer().decide(0.0, stages) == Move(member=3, source=1, target=0)


def test_a_stage_with_too_few_is_not_helped_at_the_cost_of_one_that_has_just_enough() -> None:
    settings = Settings(min_replicas=2)
    assert Rebalancer(settings).decide(0.0, stages_of([[1.0], [1.0, 1.0]])) is None
    assert Rebalancer(settings).decide(0.0, stages_of([[1.0], [1.0, 1.0, 1.0]])) is not None


# ---- time


def ask_until(rebalancer: Rebalancer, stages: Stages, since: float, until: float, every: float = 1.0) -> float | None:
    """When the first move was decided."""
    now = since
    while now <= until:
        if rebalancer.decide(now, stages):
            return now
        now += every
    return None


def test_a_move_comes_a_period_after_the_one_before_and_the_first_a_period_after_the_start() -> None:
    rebalancer, stages = Rebalancer(), stages_of([[1.0] * 2, [1.0] * 9])
    assert ask_until(rebalancer, stages, 0.0, 1000.0) == 300.0
    assert ask_until(rebalancer, stages, 301.0, 5000.0) is None, "the mover has not arrived"
    carry_out(stages, Move(11, 1, 0), now=5000.0)
    rebalancer.settled(5000.0, 11, ok=True)
    assert ask_until(rebalancer, stages, 5000.0, 6000.0) == 5300.0


def restarted() -> float | None:
    """A peer is away for 20 s, long after the last move."""
    rebalancer, whole, without = Rebalancer(), stages_of([[1.0] * 3, [1.0] * 4]), stages_of([[1.0] * 2, [1.0] * 4])
    assert ask_until(rebalancer, whole, 0.0, 1000.0) is None
    began = ask_until(rebalancer, without, 1001.0, 1020.0)
    return began or ask_until(rebalancer, whole, 1021.0, 2000.0)


def test_a_peer_that_is_restarted_moves_nobody() -> None:
    assert restarted() is None
    with patch.object(rebalancing, "Settings", lambda: Settings(confirm=0.0)):
        assert restarted() == 1001.0


def test_stages_to_which_somebody_has_just_come_are_left_alone() -> None:
    for newcomer in (0, 1):
        stages = stages_of([[1.0] * 2, [1.0] * 9])
        stages[newcomer][0] = dataclasses.replace(stages[newcomer][0], since=1000.0)
        assert ask_until(Rebalancer(), stages, 700.0, 2000.0) in (1030.0, 1060.0)


def test_a_mover_that_failed_is_not_chosen_again_at_once() -> None:
    rebalancer, stages, chosen = Rebalancer(), stages_of([[1.0], [1.0] * 4]), list[int]()
    now = 0.0
    while now < 1500.0:
        if move := rebalancer.decide(now, stages):
            chosen.append(move.member)
            rebalancer.settled(now, move.member, ok=False)
        now += 10.0
    assert chosen == [5, 4, 3, 2]


def test_what_is_told_of_others_ends_no_move() -> None:
    rebalancer, stages = Rebalancer(), stages_of([[], [1.0, 1.0, 1.0]])
    assert rebalancer.decide(0.0, stages) == Move(3, 1, 0)
    rebalancer.settled(1.0, 2, ok=True)
    assert rebalancer.decide(2.0, stages) is None
    rebalancer.settled(3.0, 3, ok=False)
    assert rebalancer.decide(4.0, stages) == Move(2, 1, 0)


# ---- any stages


REPLICA = st.builds(
    Hosted,
    member=st.integers(1, 10**6),
    peer=st.just(""),
    rate=st.one_of(st.just(0.0), st.floats(0.5, 8.0)),
    since=st.just(-HOUR),
    ready=st.sampled_from([True, True, True, False]),
    leaving=st.sampled_from([False, False, False, True]),
)


@st.composite
def any_stages(draw: st.DrawFn, replica: st.SearchStrategy[Hosted] = REPLICA) -> Stages:
    stages = draw(st.lists(st.lists(replica, max_size=8), min_size=2, max_size=6))
    numbers = iter(range(1, 100))
    return [
        [dataclasses.replace(hosted, member=(number := next(numbers)), peer=f"peer {number}") for hosted in stage]
        for stage in stages
    ]


@given(any_stages(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_move_spares_its_source_and_is_the_same_for_all(
    stages: Stages, min_replicas: int, shuffle: random.Random
) -> None:
    settings = dataclasses.replace(AT_ONCE, min_replicas=min_replicas)
    move = first_move(stages, settings)
    shuffled = [shuffle.sample(stage, len(stage)) for stage in stages]
    assert first_move(shuffled, settings) == move
    if move is None:
        return
    left = [hosted for hosted in staying(stages[move.source]) if hosted.ready and hosted.member != move.member]
    mover = next(hosted for hosted in stages[move.source] if hosted.member == move.member)
    target = staying(stages[move.target])
    assert mover.ready
    assert not mover.leaving
    assert len(left) >= (min_replicas if target else 1)
    if len(target) >= min_replicas:
        typical = typical_rate([staying(stage) for stage in stages])
        carry_out(changed := [list(stage) for stage in stages], move)
        before, after = total_rate(target, typical), [total_rate(staying(stage), typical) for stage in changed]
        assert min(after[move.source], after[move.target]) > before


SETTLED = st.builds(Hosted, member=st.just(0), peer=st.just(""), rate=st.floats(0.5, 8.0), since=st.just(-HOUR))


@given(any_stages(SETTLED))
def test_there_is_an_end_and_no_single_move_would_gain_more_there(stages: Stages) -> None:
    """The end is looked for by carrying out; that it is one, by trying every move to the slowest stage."""
    rebalancer = Rebalancer(dataclasses.replace(AT_ONCE, settle=0.0))
    for _ in range(100):
        if (move := rebalancer.decide(0.0, stages)) is None:
            break
        carry_out(stages, move)
        rebalancer.settled(0.0, move.member, ok=True)
    else:
        pytest.fail("moves without end")
    totals = [sum(hosted.rate for hosted in stage) for stage in stages]
    target = min(range(len(stages)), key=lambda at: totals[at])
    gains = [
        min(totals[source] - hosted.rate, totals[target] + hosted.rate)
        for source, stage in enumerate(stages)
        for hosted in stage
        if source != target and len(stage) > 1
    ]
    required = AT_ONCE.required_gain(len(stages[target]))
    assert max(gains, default=0.0) <= totals[target] * (1 + required) * (1 + 1e-9)


# ---- a thousand hours


FEW = Trace(machines=6, hours=500, losses=0.3, waves=0.3, back_after_wave=1800, zones=4, skew=4.0)
MORE = Trace(machines=40, hours=500, losses=0.1, waves=0.3, back_after_wave=1800, zones=4)


def churned(make: Callable[[], Rebalancer], hours: float = 500.0) -> list[Churn]:
    """A few uneven machines that load for 90 s, where stages run empty, and more equal ones that are there at once."""
    runs = []
    for trace, stages, loading in ((FEW, 4, 90.0), (MORE, 8, 0.0)):
        policy, trace = make(), dataclasses.replace(trace, hours=hours)
        runs.append(
            Churn(trace, 1, stages, place, policy.decide, policy.settled, loading=loading, tick=60.0).simulate()
        )
    return runs


def violations(runs: Sequence[Churn]) -> set[str]:
    """Judged by what was carried out alone."""
    found = set()
    for run in runs:
        moves, last = sorted(run.moves, key=lambda move: move.began), dict[int, float]()
        if run.emptied:
            found.add("a stage was emptied")
        if any(later.began < earlier.ended for earlier, later in pairwise(moves)):
            found.add("two movers at once")
        for move in moves:
            if move.began - last.get(move.machine, -HOUR) < Settings().settle:
                found.add("moved twice within its time")
            last[move.machine] = move.ended
    return found


def test_a_thousand_hours_of_churn() -> None:
    runs = churned(Rebalancer)
    assert violations(runs) == set()
    few, more = runs
    assert len(few.moves) > 100
    assert 100 < len(more.moves) < more.losses
    assert any(span.slowest == 0 for span in few.spans), "no stage ever ran empty: that proves little"


class TwoAtOnce(Rebalancer):
    """Does not wait for the mover before."""

    def decide(self, now: float, stages: placement.Stages) -> Move | None:
        self._moving = None
        return super().decide(now, stages)


def even_the_last(replicas: Sequence[Hosted], keep: int) -> list[Hosted]:
    return [hosted for hosted in staying(replicas) if hosted.ready]


def test_without_its_rule_each_is_found_out() -> None:
    assert "two movers at once" in violations(churned(TwoAtOnce, hours=50))
    assert "moved twice within its time" in violations(churned(lambda: Rebalancer(Settings(settle=0.0)), hours=50))
    with patch.object(rebalancing, "spared", even_the_last):
        assert "a stage was emptied" in violations(churned(Rebalancer, hours=50))


LEVEL = [[[1.0] * count for count in counts] for counts in ((1, 2, 2, 1), (2, 3, 3), (3, 4, 4, 4), (11, 12))]
"""Of two equal stages, of which one has a replica more, each would be as well off the other way round."""


def measured(stages: Stages, draw: random.Random) -> Stages:
    """Anew for everyone, up to 5 % off either way."""
    return [
        [dataclasses.replace(peer, rate=peer.rate * draw.uniform(0.95, 1.05)) for peer in stage] for stage in stages
    ]


def moves_in_peace(settings: Settings, rates: Rates, seed: int, hours: float) -> list[float]:
    """When somebody moved in a swarm where nobody comes or goes and only measurements differ."""
    rebalancer, stages, draw, times = Rebalancer(settings), stages_of(rates), random.Random(seed), list[float]()
    for call in range(int(hours * HOUR / ASKED_EVERY)):
        now = call * ASKED_EVERY
        if move := rebalancer.decide(now, measured(stages, draw)):
            carry_out(stages, move, now)
            rebalancer.settled(now, move.member, ok=True)
            times.append(now)
    return times


def test_nothing_moves_in_a_thousand_hours_of_noise() -> None:
    for rates in LEVEL:
        assert moves_in_peace(Settings(), rates, seed=1, hours=250) == []


def test_without_hysteresis_noise_moves_peers_for_ever() -> None:
    for rates in LEVEL:
        with patch.object(Settings, "required_gain", lambda settings, replicas: 0.0):
            assert moves_in_peace(Settings(confirm=0.0), rates, seed=1, hours=50) != []
