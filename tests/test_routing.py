"""Interleaved weighted round-robin: shares follow speed, failures are left out until the peer speaks again."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from swarm_peer.swarm import routing
from swarm_peer.swarm.directory import Record


def record(peer: str, sequence: int = 1) -> Record:
    return Record("run", 1, peer, (), sequence, 1)


def wiring(*peers: str) -> routing.Wiring:
    return routing.observe(routing.Wiring(), [record(peer) for peer in peers])


def shares(state: routing.Wiring, picks: int) -> Counter[str]:
    draw, chosen = random.Random(0), Counter[str]()
    for _ in range(picks):
        peer, state = routing.choose(state, (), draw)
        assert peer is not None
        chosen[peer] += 1
    return chosen


def test_a_peer_twice_as_fast_gets_twice_as_much() -> None:
    state = wiring("fast", "slow")
    for _ in range(20):
        state = routing.measured(routing.measured(state, "fast", 0.5), "slow", 1.0)
    chosen = shares(state, 300)
    assert chosen["fast"] == pytest.approx(200, abs=2)


def test_a_failed_peer_is_left_out_until_it_speaks_again() -> None:
    state = routing.failed(wiring("a", "b"), "a", sequence=1)
    assert shares(state, 20) == {"b": 20}
    still = routing.observe(state, [record("a", 1), record("b", 2)])
    assert shares(still, 20) == {"b": 20}
    back = routing.observe(state, [record("a", 2), record("b", 2)])
    assert shares(back, 20)["a"] == 10


def test_a_tried_peer_is_taken_only_when_nobody_else_is_left() -> None:
    draw = random.Random(0)
    assert routing.choose(wiring("a", "b"), {"a"}, draw)[0] == "b"
    assert routing.choose(wiring("a"), {"a"}, draw)[0] == "a"


def test_without_a_candidate_there_is_no_choice() -> None:
    assert routing.choose(routing.Wiring(), (), random.Random(0)) == (None, routing.Wiring())
    alone = routing.failed(wiring("a"), "a", sequence=1)
    assert routing.choose(alone, (), random.Random(0))[0] is None


def test_a_newcomer_is_neither_starved_nor_flooded() -> None:
    state, draw = wiring("a", "b"), random.Random(0)
    for _ in range(100):
        _, state = routing.choose(state, (), draw)
    joined = routing.observe(state, [record("a"), record("b"), record("c")])
    assert shares(joined, 30)["c"] == pytest.approx(10, abs=2)


def test_a_peer_that_left_the_directory_is_not_chosen() -> None:
    assert shares(routing.observe(wiring("a", "b"), [record("b", 2)]), 5) == {"b": 5}


def test_choices_depend_on_the_state_alone() -> None:
    state = wiring("a", "b", "c")
    assert shares(state, 50) == shares(replace(state), 50)
