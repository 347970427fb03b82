"""A donor's end: what it exports, keeps and gives, and to how many at once. A network in memory, virtual time."""

import asyncio
from typing import Any

import pytest
from swarm_peer.errors import RefusedError, UnreachableError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm.catching_up import BEYOND_EVERY_PART
from swarm_peer.swarm.compute import BACKGROUND
from swarm_peer.swarm.fetching import fetch
from swarm_peer.swarm.messages import Body, pack
from swarm_peer.swarm.serving import Incoming
from swarm_peer.swarm.snapshots import KEPT_SECONDS, SEND_SECONDS, SENDING_AT_ONCE, Snapshots

from tests.donors import MOST, RUN, STAGE, VERSION, World, honest, in_virtual_time, now, small_parts

__all__ = ["small_parts"]

MAKING = 0.05
"""A question has come to a donor by then, and what it asks for is not yet made."""


async def ask(world: World, donor: str, version: int, part: int = BEYOND_EVERY_PART) -> tuple[pb.Fetched, bytes]:
    question = pb.Fetch(run=RUN, kind=pb.Fetch.STATE, stage=STAGE, version=version, part=part)
    return await fetch(world.pool, donor, question, MOST)


def test_whoever_asks_at_once_gets_one_export_which_is_kept_while_it_is_read() -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a")
        answers = await asyncio.gather(*(ask(world, "a", VERSION) for _ in range(3)))
        assert len({answer.SerializeToString() for answer, _ in answers}) == 1
        assert donor.backend.exports == 1
        donor.versions.drop_below(VERSION + 1)
        for part in range(3):
            await asyncio.sleep(KEPT_SECONDS - 1.0)
            assert (await ask(world, "a", VERSION, part))[1] == honest(pb.Fetch(part=part))[1]
        assert donor.backend.exports == donor.snapshots.held == 1
        await asyncio.sleep(KEPT_SECONDS + 0.1)
        assert donor.snapshots.held == 0
        with pytest.raises(RefusedError, match="version 5 of stage 1 is not kept"):
            await ask(world, "a", VERSION, 4)

    in_virtual_time(body())


def test_no_more_than_two_exports_are_held() -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a", versions=(4, VERSION, 6))
        await ask(world, "a", 4)
        await ask(world, "a", VERSION)
        with pytest.raises(RefusedError, match=r"NOT_READY.*versions \[4, 5\] of stage 1 are being read"):
            await ask(world, "a", 6)
        for part in range(10):
            await asyncio.sleep(1.0)
            await ask(world, "a", VERSION, part)
        # Nobody has read version 4 for a while: it gives way.
        await ask(world, "a", 6)
        assert donor.snapshots.held == 2
        with pytest.raises(RefusedError, match=r"versions \[5, 6\] of stage 1 are being read"):
            await ask(world, "a", 4)

    in_virtual_time(body())


def test_one_who_is_cancelled_while_the_export_is_made_leaves_it_to_the_next() -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a")
        donor.device.durations = {BACKGROUND: 2 * MAKING}
        stream = await world.pool.transport.open("a")
        await stream.send(pack(pb.Fetch(run=RUN, kind=pb.Fetch.STATE, stage=STAGE, version=VERSION)))
        await asyncio.sleep(MAKING)
        assert donor.snapshots.held
        second = asyncio.create_task(ask(world, "a", VERSION))
        await asyncio.sleep(0.015)
        donor.serving[0].cancel()
        answer, _ = await second
        assert answer.digests

    in_virtual_time(body())


def test_what_is_cleared_is_given_to_nobody() -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a")
        donor.device.durations = {BACKGROUND: 2 * MAKING}
        answer = asyncio.create_task(ask(world, "a", VERSION))
        await asyncio.sleep(MAKING)
        assert donor.snapshots.held
        donor.snapshots.clear()
        with pytest.raises(RefusedError, match="version 5 of stage 1 is no longer given"):
            await answer

    in_virtual_time(body())


@pytest.mark.parametrize("question", [pb.Fetch(run="other", stage=STAGE), pb.Fetch(run=RUN, stage=STAGE + 1)])
def test_a_state_of_another_run_or_stage_is_refused(question: pb.Fetch) -> None:
    async def body() -> None:
        world = World()
        donor = await world.add("a")
        question.kind = pb.Fetch.STATE
        with pytest.raises(RefusedError, match=r"MALFORMED.*asks for a state of stage"):
            await fetch(world.pool, "a", question, 0)
        assert donor.backend.exports == 0

    in_virtual_time(body())


def test_few_parts_leave_at_once_however_many_ask() -> None:
    async def body() -> None:
        sending = most = 0

        class Counted(Snapshots):
            async def _give(self, *question: Any) -> None:
                nonlocal sending, most
                sending += 1
                most = max(most, sending)
                await super()._give(*question)
                sending -= 1

        world = World(down=None)
        donor = await world.add("a")
        donor.snapshots = Counted(RUN, STAGE, donor.backend, donor.device, MOST)  # type: ignore[arg-type]
        await ask(world, "a", VERSION)
        await asyncio.gather(*(ask(world, "a", VERSION, part) for part in range(8)))
        assert most == SENDING_AT_ONCE

    in_virtual_time(body())


def test_an_asker_that_takes_nothing_in_does_not_keep_others_from_their_turn() -> None:
    class Stuck:
        peer = "stuck"

        async def send(self, body: Body, payload: bytes = b"") -> None:
            await asyncio.Event().wait()

    async def body() -> None:
        world = World()
        donor = await world.add("a")
        question = pb.Fetch(run=RUN, kind=pb.Fetch.STATE, stage=STAGE, version=VERSION)
        await ask(world, "a", VERSION)
        stuck = [
            asyncio.create_task(donor.snapshots.serve(Incoming(Stuck(), None), question, donor.versions))  # type: ignore[arg-type]
            for _ in range(SENDING_AT_ONCE)
        ]
        await asyncio.sleep(1.0)
        began = now()
        await fetch(world.pool, "a", question, MOST, 2 * SEND_SECONDS)
        assert SEND_SECONDS - 2.0 < now() - began < SEND_SECONDS + 1.0
        for ended in await asyncio.gather(*stuck, return_exceptions=True):
            assert isinstance(ended, UnreachableError)

    in_virtual_time(body())
