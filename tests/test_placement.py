"""Where a joiner goes: to the stage that makes the run fastest, and to none for the sake of noise."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm_peer.swarm import placement
from swarm_peer.swarm.placement import NOISE, Hosted, place, staying, total_rate, typical_rate

Rates = list[list[float]]
LAYOUTS = st.lists(st.lists(st.floats(0.5, 8.0), min_size=1, max_size=12), min_size=1, max_size=8)
COUNTS = st.lists(st.integers(0, 6), min_size=2, max_size=8)


def stages_of(rates: Rates) -> list[list[Hosted]]:
    members = iter(range(1, 1000))
    return [[Hosted(number := next(members), f"peer {number}", rate) for rate in stage] for stage in rates]


def todays_rule(counts: list[int], besides: set[int]) -> int:
    """As without rates: the fewest replicas, ties the lowest."""
    return min((at for at in range(len(counts)) if at not in besides), key=lambda at: (counts[at], at))


@given(COUNTS, st.sets(st.integers(0, 6), max_size=1), st.integers(1, 3))
def test_without_any_measurement_the_fewest_replicas_decide_then_the_lowest(
    counts: list[int], besides: set[int], min_replicas: int
) -> None:
    stages = stages_of([[0.0] * count for count in counts])
    assert place(stages, besides, min_replicas) == todays_rule(counts, besides)


@given(LAYOUTS)
def test_no_other_stage_would_make_the_run_faster_beyond_what_can_be_measured(rates: Rates) -> None:
    """Tried one by one, with a joiner like the mean of all."""
    stages = stages_of(rates)
    joiner = typical_rate(stages)

    def throughput(chosen: int) -> float:
        return min(sum(stage) + (joiner if at == chosen else 0) for at, stage in enumerate(rates))

    assert throughput(place(stages)) >= max(map(throughput, range(len(rates)))) / (1 + NOISE)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_stage_with_nobody_comes_before_one_whose_only_replica_is_about_to_go(rate: float) -> None:
    going = [[Hosted(1, "peer 1", rate, leaving=True)], [], [Hosted(2, "peer 2", rate)]]
    assert place(going) == 1
    assert place(going[:1] + going[2:]) == 0


def test_fast_replicas_need_a_joiner_less_than_slow_ones() -> None:
    assert place(stages_of([[4.0, 4.0], [1.0, 1.0, 1.0]])) == 1


@given(st.lists(st.integers(1, 12), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_noise_of_equal_replicas_never_puts_a_joiner_where_there_are_more(
    counts: list[int], draw: random.Random
) -> None:
    stages = stages_of([[draw.uniform(0.95, 1.05) for _ in range(count)] for count in counts])
    assert counts[place(stages)] == min(counts)


MORE_BUT_MEASURED_SLOWER = stages_of([[1.05] * 12, [0.95] * 13])


def test_a_stage_with_more_replicas_that_measure_a_few_per_cent_less_gets_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert place(MORE_BUT_MEASURED_SLOWER) == 0
    monkeypatch.setattr(placement, "NOISE", 0.0)
    assert place(MORE_BUT_MEASURED_SLOWER) == 1


def test_of_many_replicas_one_more_is_not_taken_for_noise() -> None:
    """A tenth of the sum is more than one of 40: the fewer, faster ones would be joined again and again."""
    assert place(stages_of([[1.1] * 38, [1.0] * 39])) == 1


def test_a_stage_below_its_least_or_with_nobody_comes_first() -> None:
    assert place(stages_of([[1.0], [0.1, 0.1], [9.0]]), min_replicas=2) == 0
    assert place(stages_of([[0.1], [], [9.0, 9.0]])) == 1


def test_who_leaves_is_not_counted_on() -> None:
    stages = stages_of([[1.0, 1.0], [1.0, 1.0]])
    stages[1] = [Hosted(hosted.member, hosted.peer, hosted.rate, leaving=True) for hosted in stages[1]]
    assert staying(stages[1]) == []
    assert place(stages) == 1


def test_who_is_not_measured_counts_as_the_mean_also_while_it_loads() -> None:
    stages = stages_of([[2.0, 0.0], [2.0], [4.0]])
    assert typical_rate(stages) == pytest.approx(8 / 3)
    assert total_rate(stages[0], typical_rate(stages)) == pytest.approx(2 + 8 / 3)
    assert place(stages) == 1
    stages[1].append(Hosted(9, "loads", ready=False))
    assert place(stages) == 2


def test_of_equal_stages_the_next_to_the_machines_own_is_taken_then_the_lowest() -> None:
    stages = stages_of([[1.0]] * 6)
    assert place(stages) == 0
    assert place(stages, besides=(3,)) == 2
    assert place(stages, besides=(2, 3)) == 1
    assert place(stages, besides=(0, 5)) == 1


def test_a_span_comes_of_repeated_calls() -> None:
    stages, span = stages_of([[3.0], [3.0], [1.0], [1.0], [1.0]]), list[int]()
    for _ in range(3):
        span.append(place(stages, span))
    assert span == [2, 3, 4]


def test_a_machine_that_hosts_every_stage_has_none_left() -> None:
    with pytest.raises(ValueError, match="none is left"):
        place(stages_of([[1.0], [1.0]]), besides=(0, 1))
