"""The organizer has a run evaluated while it goes on; nobody else can."""

import asyncio
import math
from typing import Any

import pytest
from swarm_peer.errors import RefusedError, SwarmError, UnreachableError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.errands import ask_for_evaluation
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.measures import measures, measures_line

from tests.chaos.checks import check_promises
from tests.chaos.schedules import Schedule
from tests.exact import ORGANIZER, exact_manifest, exact_swarm
from tests.tiny import ORGANIZER as TINY_ORGANIZER
from tests.tiny import corpora, tiny_manifest, tiny_swarm

GUEST = Identity.from_seed("guest")


async def ask(swarm: SimulatedSwarm, organizer: Identity) -> pb.Evaluated:
    transport = swarm.network.nodes.get(GUEST.peer_id) or swarm.network.transport(GUEST.peer_id)
    return await ask_for_evaluation(swarm.manifest, organizer, GUEST, transport, swarm.directory)


def asked(swarm: Any, organizer: Identity, times: int = 1) -> tuple[list[Any], dict[str, Any]]:
    """What `times` askers get who ask after the second step, and the report."""

    async def main() -> tuple[list[Any], dict[str, Any]]:
        under_way = asyncio.Event()
        swarm.emit = lambda event: under_way.set() if event.kind == "stepped" and event.step == 1 else None
        running = asyncio.create_task(swarm.run())
        await under_way.wait()
        answers = await asyncio.gather(*(ask(swarm, organizer) for _ in range(times)), return_exceptions=True)
        return answers, await running

    return run(main(), limit=200.0)


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_evaluation_changes_nothing_of_the_run(staleness: int) -> None:
    schedule = Schedule(0, staleness, 2, standby=False, faults=(), stages=3, steps=5, batch=4)
    manifest = exact_manifest(steps=5, staleness=staleness)
    answers, report = asked(exact_swarm(manifest), ORGANIZER, times=3)
    check_promises(report, schedule)
    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert 1 <= answers[0].version <= 5


def test_the_loss_is_that_of_the_version() -> None:
    manifest = tiny_manifest(steps=6)
    answers, report = asked(tiny_swarm(manifest), TINY_ORGANIZER)
    answer = answers[0]
    assert report["heldout"]["after"] < answer.loss.real < report["heldout"]["before"]
    assert answer.tokens == 128
    assert answer.bytes == 128  # a token is a byte
    again, last = asked(tiny_swarm(tiny_manifest(steps=answer.version)), TINY_ORGANIZER)
    assert last["heldout"]["after"] == pytest.approx(answer.loss.real, rel=1e-5)
    assert len(corpora()[1]) > answer.tokens
    assert again


def test_a_stranger_is_refused() -> None:
    answers, _ = asked(exact_swarm(exact_manifest()), GUEST)
    assert isinstance(answers[0], RefusedError)
    assert answers[0].reason == "UNTRUSTED"


def test_not_more_ask_at_once_than_can_be_answered() -> None:
    answers, _ = asked(exact_swarm(exact_manifest()), ORGANIZER, times=20)
    refused = [answer for answer in answers if isinstance(answer, SwarmError)]
    assert len(refused) == 4
    assert all(isinstance(error, RefusedError) and error.reason == "NOT_READY" for error in refused)


def test_a_run_that_nobody_leads_cannot_be_asked() -> None:
    async def main() -> None:
        await ask(exact_swarm(exact_manifest()), ORGANIZER)

    with pytest.raises(UnreachableError, match="nobody leads"):
        run(main(), limit=200.0)


def test_what_a_loss_means() -> None:
    found = measures(7, math.log(2), 100, 400)
    assert found["perplexity"] == pytest.approx(2.0)
    assert found["bits_per_byte"] == pytest.approx(0.25)
    assert "version 7: held-out loss 0.6931" in measures_line(found)
    assert math.isnan(measures(7, 1.0, 100, 0)["bits_per_byte"])
