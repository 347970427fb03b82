"""What trainers, standbys and peers remember of a run's past."""

import json

import pytest
from swarm_peer.errors import ProtocolError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm.history import History
from swarm_peer.swarm.messages import check_past
from swarm_peer.swarm.steps import Step

from tests.exact import exact_manifest

MANIFEST = exact_manifest(steps=2)
REPORT = {"replicas": [{"stage": 0, "version": 2, "digests": {}}]}


def committed(number: int) -> Step:
    step = Step(number, tokens=8, committed=True, seconds=1.5, final=pb.Totals(microbatches=4, reissued=number))
    step.loss, step.grad_norm = 10 + number, 20 + number
    return step


def test_what_one_trainer_tells_the_next_one_knows() -> None:
    first = History(MANIFEST, {number: committed(number) for number in range(2)}, ())
    first.heldout.update(before=5, after=4)
    told = first.tell(0, 2, REPORT)
    steps: dict[int, Step] = {}
    second = History(MANIFEST, steps, told)
    assert second.is_whole
    second.recall(2)
    assert [
        (step.loss, step.grad_norm, step.seconds, step.final.reissued) for step in steps.values() if step.final
    ] == [
        (10, 20, 1.5, 0),
        (11, 21, 1.5, 1),
    ]
    assert second.heldout == {"before": 5, "after": 4}
    assert second.replicas == REPORT["replicas"]


def test_a_past_is_whole_only_with_the_end_of_the_run() -> None:
    first = History(MANIFEST, {number: committed(number) for number in range(2)}, ())
    assert not History(MANIFEST, {}, first.tell(0, 2, REPORT)).is_whole
    first.heldout["after"] = 4
    assert not History(MANIFEST, {}, first.tell(1, 2, REPORT)).is_whole


def test_what_a_coordinator_has_told_is_better_known_than_what_a_peer_remembers() -> None:
    told = History(MANIFEST, {0: committed(0)}, ()).tell(0, 1, REPORT)[0]
    history = History(MANIFEST, {}, [told])
    history.hear(pb.Past(step=0, tokens=99))
    history.hear(pb.Past(step=1, tokens=7))
    assert {step: past.tokens for step, past in history.told.items()} == {0: 8, 1: 7}


@pytest.mark.parametrize("change", [{"step": 2}, {"loss": pb.Scalar()}, {"heldout_after": pb.Scalar(residue=1)}])
def test_a_peer_that_remembers_what_cannot_be_is_refused(change: dict[str, object]) -> None:
    past = History(MANIFEST, {0: committed(0)}, ()).tell(0, 1, REPORT)[0]
    check_past(past, steps=2, sender="a peer")
    for name, value in change.items():
        past.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, int):
            past.step = value
        elif isinstance(value, pb.Scalar):
            getattr(past, name).CopyFrom(value)
    with pytest.raises(ProtocolError, match="a peer"):
        check_past(past, steps=2, sender="a peer")


def test_a_list_of_replicas_that_is_none_is_refused() -> None:
    past = History(MANIFEST, {0: committed(0)}, ()).tell(0, 1, REPORT)[0]
    past.heldout_after.residue = 1
    for text in ("{", json.dumps({"stage": 0}), json.dumps([1])):
        past.replicas = text
        with pytest.raises(ProtocolError, match="list of replicas"):
            History(MANIFEST, {}, ()).remember(past)
