"""What a caller goes by of a stage that has more replicas than it looks at."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from swarm_peer.simulations.network import MemoryNetwork
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.directory import Record
from swarm_peer.swarm.exchange import Meter, Pool
from swarm_peer.swarm.least_work import least_work
from swarm_peer.swarm.neighbours import REFRESH_SECONDS, Neighbours

STAGE, REPLICAS, VIEW = 1, 40, 8

NAMES = [f"replica {number:02}" for number in range(REPLICAS)]
RECORDS = tuple(Record("run", STAGE, name, (name,), 1, 1) for name in NAMES)

Story = Callable[[Neighbours], Awaitable[None]]


def tell(
    story: Story, *, seed: int = 0, draw: random.Random | None = None, records: tuple[Record, ...] = RECORDS
) -> None:
    """A caller lives through a story; every reading of the directory brings `records`."""

    async def read(stage: int) -> tuple[Record, ...]:
        return records

    async def main() -> None:
        pool = Pool(MemoryNetwork().transport("caller"), Meter())
        neighbours = Neighbours(read, pool, draw or random.Random(seed), least_work, VIEW)
        await neighbours.refresh(STAGE)
        await story(neighbours)

    run(main())


async def read_again(neighbours: Neighbours) -> list[str]:
    await asyncio.sleep(REFRESH_SECONDS)
    await neighbours.refresh(STAGE)
    return neighbours.peers(STAGE)


def test_a_peer_goes_by_the_same_few_replicas_of_a_large_stage() -> None:
    async def story(neighbours: Neighbours) -> None:
        first = neighbours.peers(STAGE)
        assert len(first) == neighbours.usable(STAGE) == VIEW
        for _ in range(5):
            assert await read_again(neighbours) == first

    tell(story)


def test_every_replica_is_known_to_about_as_many_callers() -> None:
    known: Counter[str] = Counter()

    async def story(neighbours: Neighbours) -> None:
        known.update(neighbours.peers(STAGE))

    for seed in range(REPLICAS):
        tell(story, seed=seed)
    assert set(known) == set(NAMES)
    assert max(known.values()) <= 3 * VIEW


def test_who_is_banned_is_replaced_and_not_forgotten() -> None:
    async def story(neighbours: Neighbours) -> None:
        first = neighbours.peers(STAGE)
        now = asyncio.get_running_loop().time()
        neighbours.call(STAGE, first[0]).failed(now + 0.01)
        then = await read_again(neighbours)
        assert neighbours.is_banned(STAGE, first[0])
        assert set(first) < set(then)
        assert neighbours.usable(STAGE) == VIEW
        await asyncio.sleep(10)
        assert await read_again(neighbours) == first, "the ban is over"

    tell(story)


def test_newcomers_are_as_likely_to_be_gone_by() -> None:
    async def story(neighbours: Neighbours) -> None:
        newcomers = tuple(Record("run", STAGE, f"newcomer {number:03}", (), 1, 1) for number in range(REPLICAS))
        neighbours.show(STAGE, (*RECORDS, *newcomers))
        known.update(name.split()[0] for name in neighbours.peers(STAGE))

    known: Counter[str] = Counter()
    for seed in range(50):
        tell(story, seed=seed)
    assert known.total() == 50 * VIEW
    assert 0.4 < known["newcomer"] / known.total() < 0.6


def test_of_a_small_stage_all_are_known_and_nothing_is_left_to_chance() -> None:
    async def story(neighbours: Neighbours) -> None:
        assert neighbours.peers(STAGE) == NAMES[:VIEW]

    draw = random.Random(0)
    tell(story, draw=draw, records=RECORDS[:VIEW])
    assert draw.random() == random.Random(0).random()
