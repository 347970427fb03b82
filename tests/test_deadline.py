"""A deadline that is put off all the time. Virtual time."""

import asyncio

import pytest
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.deadline import Deadline


class Watched:
    """A deadline of three seconds from what was heard last."""

    def __init__(self, *, careful: bool = False) -> None:
        self.loop = asyncio.get_running_loop()
        self.heard = self.loop.time()
        self.passed: list[float] = []
        self.deadline = Deadline(self.ends, lambda: self.passed.append(self.loop.time()), careful=careful)

    def ends(self) -> float:
        return self.heard + 3.0

    def hear(self) -> None:
        self.heard = self.loop.time()


@pytest.mark.parametrize("careful", [False, True])
def test_it_passes_once_when_it_was_put_off_for_the_last_time(careful: bool) -> None:
    async def main() -> list[float]:
        watched = Watched(careful=careful)
        watched.deadline.arm()
        for _ in range(4):
            await asyncio.sleep(2.5)
            watched.hear()
        await asyncio.sleep(100.0)
        return watched.passed

    assert run(main(), limit=1e3) == [13.0]


def test_it_may_be_armed_anew_to_end_earlier_or_cancelled() -> None:
    async def main() -> list[float]:
        watched = Watched()
        watched.heard = 100.0
        watched.deadline.arm()
        watched.heard = 1.0
        watched.deadline.arm()
        await asyncio.sleep(10.0)
        watched.hear()
        watched.deadline.arm()
        watched.deadline.cancel()
        await asyncio.sleep(100.0)
        return watched.passed

    assert run(main(), limit=1e3) == [4.0]


@pytest.mark.parametrize(("careful", "passed"), [(False, [3.0]), (True, [4.0])])
def test_what_came_during_a_stall_counts_for_one_who_looks_again(careful: bool, passed: list[float]) -> None:
    """It is read a turn after the deadline has been looked at."""

    async def main() -> list[float]:
        watched = Watched(careful=careful)

        def read() -> None:
            watched.heard = 1.0

        watched.loop.call_at(3.0, watched.loop.call_soon, read)
        watched.deadline.arm()
        await asyncio.sleep(100.0)
        return watched.passed

    assert run(main(), limit=1e3) == passed
