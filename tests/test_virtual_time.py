"""Virtual time: jumps to the next timer, stands still otherwise, and says when nothing can happen any more."""

import asyncio
import time

import pytest
from swarm_peer.errors import StuckError
from swarm_peer.simulations.network import MemoryNetwork
from swarm_peer.simulations.virtual_time import NOBODY, run


def test_sleeping_costs_virtual_time_only() -> None:
    async def main() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    before = time.monotonic()
    assert run(main()) == 86_400
    assert time.monotonic() - before < 3600


def test_timeouts_are_virtual() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(50)
        return asyncio.get_running_loop().time()

    assert run(main()) == 5


def test_a_program_that_can_never_go_on_is_stuck() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StuckError, match="no timer is pending"):
        run(main())


def test_the_limit_of_virtual_time_is_kept() -> None:
    async def main() -> None:
        for _ in range(100):
            await asyncio.sleep(1)

    with pytest.raises(StuckError, match="beyond the limit"):
        run(main(), limit=10)


def test_frames_keep_their_order_and_the_same_seed_gives_the_same_times() -> None:
    async def main() -> list[tuple[float, bytes]]:
        network = MemoryNetwork(seed=4)
        near, far = network.transport("near"), network.transport("far")
        seen: list[tuple[float, bytes]] = []

        async def serve(stream: object) -> None:
            while len(seen) < 50:
                seen.append((asyncio.get_running_loop().time(), await stream.receive()))  # type: ignore[attr-defined]

        await far.serve(serve)
        stream = await near.open("far")
        for number in range(50):
            await stream.send(bytes([number]))
        await asyncio.sleep(1)
        return seen

    first = run(main())
    assert [frame[0] for _, frame in first] == list(range(50))
    assert first == run(main())


def test_what_is_due_at_the_same_time_runs_in_the_order_in_which_it_was_asked_for() -> None:
    async def main() -> list[int]:
        loop, ran = asyncio.get_running_loop(), []
        for number, seconds in enumerate([2.0, 1.0, 1.0, 2.0, 1.0]):
            loop.call_later(seconds, ran.append, number)
        cancelled = loop.call_later(1.0, ran.append, 99)
        cancelled.cancel()
        assert cancelled.cancelled()
        await asyncio.sleep(3)
        return ran

    assert run(main()) == [1, 2, 4, 0, 3]


def test_a_frozen_owner_stands_still_and_then_does_all_that_was_due_in_order() -> None:
    async def main() -> tuple[list[str], list[str]]:
        network = MemoryNetwork()
        nodes = {name: network.transport(name) for name in ("one", "other")}
        done: list[str] = []

        async def tick(name: str) -> None:
            for number in range(3):
                await asyncio.sleep(1)
                done.append(f"{name} {number}")

        for name, node in nodes.items():
            node.spawn(tick(name))
        await asyncio.sleep(0.1)
        nodes["one"].freeze()
        asyncio.get_running_loop().call_later(2.4, nodes["one"].thaw, context=NOBODY)
        await asyncio.sleep(2.3)
        during = list(done)
        await asyncio.sleep(10)
        return during, done

    during, done = run(main())
    assert during == ["other 0", "other 1"]
    assert done[2:] == ["one 0", "other 2", "one 1", "one 2"]


def test_a_frozen_owner_can_be_thawed_by_nobody_alone() -> None:
    """What is asked for by a frozen owner waits with it, also the hand that would thaw it."""

    async def main() -> None:
        network = MemoryNetwork()
        node = network.transport("one")

        async def freeze_itself() -> None:
            asyncio.get_running_loop().call_later(1.0, node.thaw)
            node.freeze()
            await asyncio.sleep(0.5)

        await node.spawn(freeze_itself())

    with pytest.raises(StuckError):
        run(main())


def test_sets_of_tasks_have_the_same_order_in_every_run() -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        tasks = {loop.create_task(asyncio.sleep(1), name=f"{number}") for number in range(50)}
        await asyncio.wait(tasks)
        return [task.get_name() for task in tasks]

    assert run(main()) == run(main())
