"""The gradient store: kept apart within a budget, frozen to exactly the credited set."""

import pytest
from swarm_peer.swarm.exact_backend import WIDTH, ExactBackend
from swarm_peer.swarm.gradients import GradientStore
from swarm_peer.swarm.messages import to_bits

BACKEND = ExactBackend(0, 0, 1)


def store(budget_in_gradients: int) -> GradientStore:
    made = GradientStore(BACKEND, budget_in_gradients * BACKEND.gradient_bytes)
    for index in range(4):
        made.add(0, 5, index, [10**index] * WIDTH)
    return made


def test_a_freeze_sums_exactly_the_credited_set_and_drops_the_rest() -> None:
    made = store(10)
    frozen = made.freeze(0, 5, (0, 2))
    assert (frozen.gradient, frozen.lacking) == ([101] * WIDTH, ())
    assert made.taken_back(0, 5) == 2
    assert [index for index in range(4) if made.holds(0, 5, index)] == [0, 2]


def test_what_is_lacking_is_named_and_nothing_is_summed() -> None:
    frozen = store(10).freeze(0, 5, (0, 7))
    assert (frozen.gradient, frozen.lacking) == (None, (7,))


def test_a_gradient_is_held_once_however_often_it_is_added() -> None:
    made = store(10)
    made.add(0, 5, 0, [999] * WIDTH)
    assert made.freeze(0, 5, (0,)).gradient == [1] * WIDTH


def test_beyond_the_budget_gradients_are_summed() -> None:
    made = store(2)
    assert all(made.holds(0, 5, index) for index in range(4))
    assert made.freeze(0, 5, (0, 1, 2, 3)).gradient == [1111] * WIDTH
    assert made.taken_back(0, 5) == 0


def test_taking_one_back_from_a_sum_drops_the_sum_and_has_it_re_run() -> None:
    made = store(2)  # 3 is apart
    frozen = made.freeze(0, 5, (1, 2, 3))
    assert frozen.lacking == (1, 2)
    assert made.taken_back(0, 5) == 3
    for index in (1, 2):
        made.add(0, 5, index, [10**index] * WIDTH)
    assert made.freeze(0, 5, (1, 2, 3)).gradient == [1110] * WIDTH


def test_what_is_credited_is_summed_before_what_may_be_taken_back() -> None:
    made = store(4)
    made.credit(0, 5, own=(1, 2, 3), credited=to_bits((1, 2, 3)))
    for index in (4, 5):
        made.add(0, 5, index, [10**index] * WIDTH)
    assert made.freeze(0, 5, (1, 2, 3, 4)).gradient == [11110] * WIDTH
    assert made.taken_back(0, 5) == 2


def test_what_another_replica_is_credited_with_makes_room_first() -> None:
    made = store(4)
    made.credit(0, 5, own=(0, 1), credited=to_bits((0, 1, 2)))
    made.add(0, 5, 4, [10**4] * WIDTH)
    assert [index for index in range(5) if made.holds(0, 5, index)] == [0, 1, 3, 4]
    assert made.taken_back(0, 5) == 1
    assert made.freeze(0, 5, (1, 3)).gradient == [1010] * WIDTH  # nothing was summed yet


def test_credits_of_a_step_that_is_closed_say_nothing() -> None:
    made = store(4)
    made.close(0, closed=6)
    made.credit(0, 5, own=(0,), credited=to_bits((0, 1)))
    assert made.held() == {}


@pytest.mark.parametrize(("budget", "short"), [(7, True), (8, False)])
def test_a_store_is_short_from_half_of_its_budget_on(budget: int, short: bool) -> None:
    assert store(budget).short is short


def test_nothing_held_is_an_empty_contribution() -> None:
    assert GradientStore(BACKEND, 100).freeze(0, 5, ()).gradient is None


def test_a_closed_step_is_let_go() -> None:
    made = store(10)
    made.close(0, closed=6)
    assert not made.holds(0, 5, 0)
