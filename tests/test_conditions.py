"""Waiting for conditions, and heeding cancellation in loops that go on after errors."""

import asyncio
import contextlib

import pytest
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.conditions import Signal, heed_cancellation, in_own_task


def test_a_condition_is_asked_again_after_every_notification() -> None:
    async def main() -> list[int]:
        signal, seen, value = Signal(), [], 0

        async def wait_for(wanted: int) -> None:
            await signal.wait_for(lambda: value >= wanted)
            seen.append(wanted)

        waiting = [asyncio.create_task(wait_for(wanted)) for wanted in (2, 1)]
        for value in (1, 2):  # noqa: B007
            await asyncio.sleep(1)
            signal.notify()
        await asyncio.gather(*waiting)
        return seen

    assert run(main()) == [1, 2]


def test_a_loop_that_goes_on_after_errors_ends_when_it_is_cancelled() -> None:
    """Its group fails in the very moment in which it is cancelled, and before Python 3.13 tells only of the former."""
    rounds = 0

    async def fails_when_cancelled() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            raise ConnectionError

    async def loop() -> None:
        nonlocal rounds
        while True:
            heed_cancellation()
            rounds += 1
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fails_when_cancelled())
            except* ConnectionError:
                pass

    async def main() -> None:
        task = asyncio.create_task(loop())
        await asyncio.sleep(1)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        run(main(), limit=500)
    assert rounds == 1


def test_a_loop_goes_on_after_a_group_that_fails_while_its_owner_waits_for_it() -> None:
    """Before Python 3.13 that leaves the owner as if it had been cancelled."""

    async def fail() -> None:
        await asyncio.sleep(1)
        raise ConnectionError

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    async def main() -> int:
        rounds = 0
        while rounds < 3:
            heed_cancellation()
            rounds += 1
            with contextlib.suppress(ExceptionGroup):
                await in_own_task(group())
        return rounds

    assert run(main()) == 3
