"""How a peer gets the state of its stage from other replicas: newcomers, peers that were away, peers whose state is
wrong.

All donors are asked what they can give: by default the oldest version that each keeps. What most of them offer, to the
digest of every part, is fetched from all of those at once, each part from whoever has time (`snapshot_parts.py`). A
donor that ends, is silent or sends anything else is asked for nothing more, and others fetch its parts. The Commits
since that version, which the trainer sends again, bring it up to date by the reductions that replicas keep. The trainer
compares the digest of what came with that of the other replicas before the peer takes part.

Donors are served by `snapshots.py`. Errors: `UnreachableError` when nobody gives a whole state: what each has said.
"""

import asyncio
from collections.abc import Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import RefusedError, SwarmError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .exchange import Pool
from .fetching import fetch
from .snapshot_parts import MOST_AT_ONCE, Offer, PartTable, most_offered, part_bytes, read_offer

MAX_STATE_BYTES = 64 << 30
BEYOND_EVERY_PART = 1 << 30

OFFER_SECONDS = 60.0
"""How long a donor may take to say what it can give: it may have to make it first."""

LATE_OFFER_SECONDS = 10.0
"""How long others are waited for after the first offer, while no more than half of all offer the same."""

PART_SECONDS = 300.0
"""How long a part may take: many may be asking, over a narrow link. A donor that is silent is noticed sooner."""

MAX_DONORS = 64
"""That are asked what they can give."""

DONORS_AT_ONCE = 8
"""More donors than these wait until one of them fails."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version of a stage's state as a donor exported it."""

    version: int
    data: bytes | bytearray


async def fetch_snapshot(
    pool: Pool,
    donors: Sequence[pb.Member],
    run_id: str,
    stage: int,
    max_payload: int,
    version: int | None = None,
    *,
    epoch: int = 0,
    max_bytes: int = MAX_STATE_BYTES,
) -> Snapshot:
    """The oldest version of an epoch that most of `donors` keep, or this one. No more than `max_bytes` are accepted, in
    parts of no more than `max_payload`. Raises `UnreachableError`."""
    for donor in donors:
        pool.addresses.setdefault(donor.peer, tuple(donor.addresses))
    names = tuple(dict.fromkeys(donor.peer for donor in donors))[:MAX_DONORS]
    about = pb.Fetch(run=run_id, kind=pb.Fetch.STATE, stage=stage, epoch=epoch)
    fetching = _Fetching(pool, names, about, max_payload, max_bytes)
    try:
        return await fetching.run(version)
    finally:
        await fetching.end()


class _Fetching:
    """One fetch of a snapshot: what donors have offered, what was wrong with them, and the tasks that ask them."""

    def __init__(self, pool: Pool, donors: tuple[str, ...], about: pb.Fetch, max_payload: int, max_bytes: int) -> None:
        self._pool, self._donors = pool, donors
        self._about, self._stage = about, about.stage
        self._max_payload, self._max_bytes = max_payload, max_bytes
        self._offers: dict[str, list[Offer]] = {donor: [] for donor in donors}
        self._problems: dict[str, str] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        """Set, and replaced by another, whenever a part has come or is to be fetched anew."""

    async def run(self, version: int | None) -> Snapshot:
        self._asking = {donor: self._start(self._ask(donor, version)) for donor in self._donors}
        await self._hear_enough()
        await self._agree()
        tried: list[Offer] = []
        while True:
            offer = most_offered(self._offers, tried)
            asking = [task for task in self._asking.values() if not task.done()]
            if offer is not None:
                tried.append(offer)
                table = PartTable(offer, len(asking) + sum(offer in made for made in self._offers.values()))
                await self._pull(table)
                if table.complete:
                    return Snapshot(offer.version, table.data)
            elif asking:
                await _first_of(asking)
            else:
                problems = [self._problems[donor] for donor in self._donors if donor in self._problems]
                said = "; ".join(problems) or "no replica is ready"
                raise UnreachableError(f"nobody gives the state of stage {self._stage}: {said}")

    async def end(self) -> None:
        """Waits for what is still being asked, which is of no use any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    def _question(self, more: pb.Fetch) -> pb.Fetch:
        question = pb.Fetch()
        question.CopyFrom(self._about)
        question.MergeFrom(more)
        return question

    # ---- what there is

    async def _ask(self, donor: str, version: int | None) -> None:
        """Has a donor say what it can give."""
        question = self._question(pb.Fetch(version=version, part=BEYOND_EVERY_PART))
        try:
            answer, _ = await fetch(self._pool, donor, question, 0, OFFER_SECONDS)
            offer = read_offer(answer, donor, version, self._max_payload, self._max_bytes)
        except (UnreachableError, RefusedError, WireError) as error:
            self._problems.setdefault(donor, str(error))
        else:
            self._offers[donor].append(offer)

    async def _hear_enough(self) -> None:
        """Waits until more than half offer the same, or all have answered, or the others are late."""
        loop = asyncio.get_running_loop()
        limit: float | None = None
        while waiting := [task for task in self._asking.values() if not task.done()]:
            left = None if limit is None else limit - loop.time()
            if self._has_majority() or (left is not None and left <= 0):
                return
            await _first_of(waiting, left)
            if limit is None and any(self._offers.values()):
                limit = loop.time() + LATE_OFFER_SECONDS

    def _has_majority(self) -> bool:
        best = most_offered(self._offers)
        return 2 * sum(best in offers for offers in self._offers.values()) > len(self._donors)

    async def _agree(self) -> None:
        """A donor's oldest version changes when a step is closed. Without a majority, who offers an older version than
        another is asked for that one too: it may have both."""
        versions = [offer.version for offers in self._offers.values() for offer in offers]
        if not versions or self._has_majority():
            return
        older = [donor for donor, offers in self._offers.items() if offers and offers[0].version < max(versions)]
        await asyncio.gather(*(self._start(self._ask(donor, max(versions))) for donor in older))

    # ---- its parts

    async def _pull(self, table: PartTable) -> None:
        """Fetches the parts of an offer from all who make it, until all are there or nobody is left."""
        seats = asyncio.Semaphore(DONORS_AT_ONCE)
        pulling = {self._start(self._pull_from(donor, table, seats)) for donor in self._donors}
        completed = self._start(self._complete(table))
        try:
            while pulling and not completed.done():
                pulling -= await _first_of({completed, *pulling})
        finally:
            for task in (completed, *pulling):
                task.cancel()
            await asyncio.gather(completed, *pulling, return_exceptions=True)

    async def _complete(self, table: PartTable) -> None:
        while not table.complete:
            await self._changed.wait()

    async def _pull_from(self, donor: str, table: PartTable, seats: asyncio.Semaphore) -> None:
        """Fetches parts from one donor, if it offers this: until all are there, or something is wrong with it."""
        await _first_of((self._asking[donor],))
        if table.offer not in self._offers[donor]:
            return
        async with seats:
            try:
                async with asyncio.TaskGroup() as slots:
                    for _ in range(MOST_AT_ONCE):
                        slots.create_task(self._fetch_parts(donor, table))
            except* (UnreachableError, RefusedError, WireError) as errors:
                self._problems[donor] = str(_first(errors))
                self._offers[donor].clear()

    async def _fetch_parts(self, donor: str, table: PartTable) -> None:
        loop = asyncio.get_running_loop()
        offer = table.offer
        question = self._question(pb.Fetch(version=offer.version))
        length = part_bytes(offer.size, len(offer.digests))
        while (part := await self._next(donor, table)) is not None:
            question.part = part
            try:
                answer, data = await fetch(self._pool, donor, question, length, PART_SECONDS)
                if answer.version != offer.version:
                    raise WireError(f"{donor} was asked for version {offer.version} and gave {answer.version}")
                table.arrived(part, donor, data, loop.time())
            finally:
                table.ended(part, donor)
                self._tell()

    async def _next(self, donor: str, table: PartTable) -> int | None:
        """The part that a donor is to be asked for next; None when all are there."""
        loop = asyncio.get_running_loop()
        while not table.complete:
            part = table.next_for(donor, loop.time())
            if part is not None:
                return part
            changed = self._changed
            with suppress(TimeoutError):
                async with asyncio.timeout_at(table.look_again(donor)):
                    await changed.wait()
        return None

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def _first_of(tasks: "Collection[asyncio.Task[None]]", seconds: float | None = None) -> "set[asyncio.Task[None]]":
    """Those that have ended when the first one has, or when the time is over. Raises what nobody has foreseen."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return done


def _first(errors: "BaseExceptionGroup[SwarmError]") -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
