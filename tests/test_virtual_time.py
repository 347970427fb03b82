"""Virtual time: jumps to the next timer, stands still otherwise, and says when nothing can happen any more."""

import asyncio
import time

import pytest
from swarm_peer.errors import StuckError
from swarm_peer.simulations.network import MemoryNetwork
from swarm_peer.simulations.virtual_time import run


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
