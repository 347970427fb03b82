"""A Commit may name an earlier attempt than the newest: results of all attempts are kept until the step is closed."""

from typing import Any

import pytest
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.reduction import Reducer

from tests.exact import exact_manifest, exact_swarm


def test_the_result_of_an_earlier_attempt_is_kept_beside_that_of_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    take_part = Reducer.take_part
    kept: list[tuple[int, list[int]]] = []

    async def twice(self: Reducer, reduce: pb.Reduce) -> Any:
        """Another attempt follows before the first one is committed."""
        answer = await take_part(self, reduce)
        later = pb.Reduce()
        later.CopyFrom(reduce)
        later.attempt += 1
        assert isinstance(await take_part(self, later), pb.Reduced)
        kept.append((reduce.attempt, [key.attempt for key in self.kept if key.step == reduce.step]))
        return answer

    monkeypatch.setattr(Reducer, "take_part", twice)
    report = run(exact_swarm(exact_manifest(stages=2, steps=3, batch=2, staleness=0, replicas=1)).run(), limit=60.0)
    assert len(report["steps"]) == 3
    assert kept == [(1, [1, 2])] * 6
