"""Mutants of the protocol's rules: each must be caught by some seeded schedule, else the schedules prove nothing."""

from typing import Any

import pytest
from swarm_peer.errors import StuckError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm.driving import Driver
from swarm_peer.swarm.gradients import GradientStore
from swarm_peer.swarm.host import StageHost
from swarm_peer.swarm.visits import Visit, VisitKey

from tests.chaos.schedules import kill_schedule
from tests.chaos.test_kills import BATCH, STAGES, STEPS, check, simulate

SEEDS = 120


def caught_by() -> int | None:
    """The first seed whose run is not what the reference says, or does not end."""
    for seed in range(SEEDS):
        schedule = kill_schedule(seed, stages=STAGES, steps=STEPS, batch=BATCH)
        try:
            check(simulate(schedule, seed % 2, seed, replicas=3), seed % 2)
        except (AssertionError, StuckError):
            return seed
    return None


def test_skipping_take_back_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientStore, "_take_back", lambda *arguments: None)
    assert caught_by() is not None


def test_crediting_a_dead_peer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Driver._credit

    def credit(self: Driver, step: int, index: int, done: pb.Done, last: int) -> None:
        for entry in done.path:
            self.ledger.credit(step, entry.stage, index, entry.member)
        original(self, step, index, done, last)

    monkeypatch.setattr(Driver, "_credit", credit)
    assert caught_by() is not None


def test_counting_a_reattached_visit_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original_add, original_known = GradientStore.add, StageHost._known

    def add(self: GradientStore, epoch: int, step: int, index: int, gradient: Any) -> None:
        entry = self._steps.get((epoch, step))
        if entry is not None and index in entry.apart:
            gradient = self._backend.add([entry.apart.pop(index), gradient])
        original_add(self, epoch, step, index, gradient)

    def known(self: StageHost, key: VisitKey, run: pb.Run) -> Visit | None:
        visit = original_known(self, key, run)
        return None if visit is not None and visit.finished else visit

    monkeypatch.setattr(GradientStore, "add", add)
    monkeypatch.setattr(StageHost, "_known", known)
    assert caught_by() is not None
