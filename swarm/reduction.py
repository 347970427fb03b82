"""The all-reduce of one stage's gradients among its replicas, as a member takes part in it, and the reductions it
keeps.

Butterfly: the flat gradient of a reduce group is cut into as many parts as there are members; each member sends every
other one its slice of that one's part, adds up what it gets for its own part in roster order, and answers each sender
with the same coded bytes. So the result is bit-identical everywhere. Atomic: a Reduce freezes the contribution first,
and either every part arrives or the attempt has failed; results of all attempts are kept until their step is closed.

Errors end an attempt, not the peer: the answer is then `ReduceFailed`.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import CodecError, ProtocolError, RefusedError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .backend import Arithmetic, Gradient, Scalar
from .compute import BACKGROUND
from .conditions import innermost
from .exchange import Pool
from .fetching import fetch
from .gradients import Frozen
from .host import Moment, StageHost
from .messages import check_indices, from_scalar, to_scalar
from .serving import Incoming

LENT_SECONDS = 30.0
"""A reduction that was asked for so lately is kept a step longer: whoever takes a checkpoint reads one part after the
other."""

ATTEMPT_SECONDS = 300.0
"""Longest an attempt may take; longer than any honest all-reduce, so that nothing waits for ever."""


@dataclass(frozen=True, slots=True)
class GroupReduction:
    """The summed gradient of one reduce group: coded parts in order, their digests, the squared norm of all."""

    parts: tuple[bytes, ...]
    part_digests: tuple[bytes, ...]
    squared_norm: Scalar

    @property
    def digest(self) -> bytes:
        return digest_of_parts(self.part_digests)


Reduction = Mapping[str, GroupReduction]
"""By group name: what one attempt made."""


def digest_of_parts(part_digests: tuple[bytes, ...]) -> bytes:
    return hashlib.sha256(b"".join(part_digests)).digest()


def part_bounds(length: int, part: int, parts: int) -> tuple[int, int]:
    """Elements [first, last) of a part."""
    return length * part // parts, length * (part + 1) // parts


@dataclass(frozen=True, slots=True, order=True)
class AttemptKey:
    epoch: int
    step: int
    term: int
    attempt: int


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt as this member takes part in it. `unreachable` gathers the members with whom an exchange failed."""

    key: AttemptKey
    roster: bytes
    unreachable: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Box:
    """Where the slices of this member's own part come in. `members`: peer by member number, in roster order."""

    members: dict[int, str]
    roster: bytes
    length: int
    slices: dict[int, bytes] = field(default_factory=dict)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    result: tuple[bytes, Scalar] | None = None
    _waiting: list[asyncio.Event] = field(default_factory=list)

    def put(self, member: int, data: bytes) -> None:
        self.slices[member] = data
        if len(self.slices) == len(self.members):
            self.full.set()

    def end(self) -> None:
        self.ended = True
        for waiting in self._waiting:
            waiting.set()

    def ending(self) -> asyncio.Event:
        """An event of the caller's own, set once this has ended."""
        event = asyncio.Event()
        if self.ended:
            event.set()
        else:
            self._waiting.append(event)
        return event


class Reducer:
    """Takes part in the all-reduces of one stage host. `arithmetic` adds up the squared norms of parts."""

    def __init__(self, host: StageHost, arithmetic: Arithmetic) -> None:
        self._host = host
        self._arithmetic = arithmetic
        self._boxes: dict[tuple[AttemptKey, str], _Box] = {}
        self._opened = asyncio.Event()
        self._newest: dict[tuple[int, int], tuple[int, int]] = {}
        self._kept: dict[AttemptKey, Reduction] = {}
        self._contributed: dict[AttemptKey, int] = {}
        self._read: dict[AttemptKey, float] = {}
        """When parts of those that are kept were last asked for, by the loop's clock."""

    @property
    def kept(self) -> list[AttemptKey]:
        """The attempts whose results are kept."""
        return sorted(self._kept)

    # ---- taking part

    async def take_part(self, reduce: pb.Reduce) -> pb.Reduced | pb.ReduceFailed:
        """Freezes this member's contribution and all-reduces it. Raises `ProtocolError` for a malformed Reduce."""
        host = self._host
        indices = tuple(reduce.indices)
        check_indices(indices, host.manifest.microbatches, "the trainer")
        key = AttemptKey(reduce.epoch, reduce.step, reduce.term.number, reduce.attempt)
        self._begin(key)
        frozen = host.gradients.freeze(reduce.epoch, reduce.step, indices)
        taken_back = host.gradients.taken_back(reduce.epoch, reduce.step)
        host.observe(Moment("reduce", host.stage, reduce.step))
        if frozen.lacking:
            return self._failure(key, frozen, taken_back, "credited with what is not held")
        self._contributed[key] = len(indices)
        reduction: dict[str, GroupReduction] = {}
        problem = ""
        attempt = _Attempt(key, reduce.roster)
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                reduction = await self._all_reduce_groups(attempt, reduce, frozen.gradient)
        except* TimeoutError:
            problem = f"the all-reduce took longer than {ATTEMPT_SECONDS} s"
        except* (UnreachableError, RefusedError, WireError, CodecError) as problems:
            problem = str(innermost(problems))
        finally:
            for group in reduce.groups:
                box = self._boxes.pop((key, group.name), None)
                if box is not None:
                    box.end()
        if problem:
            return self._failure(key, frozen, taken_back, problem, attempt.unreachable)
        self._kept[key] = reduction
        host.observe(Moment("reduced", host.stage, reduce.step))
        return pb.Reduced(
            epoch=key.epoch,
            step=key.step,
            term=key.term,
            attempt=key.attempt,
            indices=indices,
            taken_back=taken_back,
            groups=[to_group_result(name, made) for name, made in reduction.items()],
        )

    def _begin(self, key: AttemptKey) -> None:
        newest = self._newest.get((key.epoch, key.step), (0, 0))
        if (key.term, key.attempt) < newest:
            raise ProtocolError(f"attempt {key.attempt} of step {key.step} is older than {newest[1]}")
        self._newest[key.epoch, key.step] = (key.term, key.attempt)

    def _failure(
        self, key: AttemptKey, frozen: Frozen, taken_back: int, detail: str, unreachable: Sequence[int] = ()
    ) -> pb.ReduceFailed:
        return pb.ReduceFailed(
            epoch=key.epoch,
            step=key.step,
            term=key.term,
            attempt=key.attempt,
            lacking=frozen.lacking,
            indices=() if frozen.lacking else frozen.indices,
            taken_back=taken_back,
            detail=detail,
            unreachable=unreachable,
        )

    async def _all_reduce_groups(
        self, attempt: _Attempt, reduce: pb.Reduce, gradient: Gradient | None
    ) -> dict[str, GroupReduction]:
        async with asyncio.TaskGroup() as tasks:
            work = {
                group.name: tasks.create_task(self._all_reduce(attempt, group, gradient)) for group in reduce.groups
            }
        return {name: task.result() for name, task in work.items()}

    async def _all_reduce(self, attempt: _Attempt, group: pb.Group, gradient: Gradient | None) -> GroupReduction:
        host = self._host
        members = {member.member: member.peer for member in group.members}
        length = host.backend.lengths.get(group.name)
        if host.member not in members or length is None:
            raise ProtocolError(f"the trainer asks member {host.member} to reduce group {group.name!r} with others")
        for member in group.members:
            host.pool.addresses.setdefault(member.peer, tuple(member.addresses))
        order = list(members)
        bounds = [part_bounds(length, part, len(order)) for part in range(len(order))]
        slices = await host.device.run(
            BACKGROUND, lambda: [host.backend.slice(gradient, group.name, first, last) for first, last in bounds]
        )
        own = order.index(host.member)
        box = _Box(members, attempt.roster, bounds[own][1] - bounds[own][0])
        box.put(host.member, slices[own])
        self._boxes[attempt.key, group.name] = box
        self._opened.set()
        async with asyncio.TaskGroup() as tasks:
            made = [
                tasks.create_task(
                    self._own_part(box, group.name)
                    if part == own
                    else self._send_slice(attempt, group.name, (member, peer), slices[part], bounds[part])
                )
                for part, (member, peer) in enumerate(members.items())
            ]
        parts = [task.result() for task in made]
        norm = parts[0][1]
        for _, squared_norm in parts[1:]:
            norm = self._arithmetic.add(norm, squared_norm)
        digests = tuple(hashlib.sha256(data).digest() for data, _ in parts)
        return GroupReduction(tuple(data for data, _ in parts), digests, norm)

    async def _own_part(self, box: _Box, group: str) -> tuple[bytes, Scalar]:
        """Waits for every member's slice and adds them up, once for all who ask."""
        await box.full.wait()
        backend, ordered = self._host.backend, [box.slices[member] for member in box.members]
        box.result = await self._host.device.run(BACKGROUND, lambda: backend.reduce(group, ordered, box.length))
        box.end()
        return box.result

    async def _send_slice(
        self, attempt: _Attempt, group: str, owner: tuple[int, str], data: bytes, bounds: tuple[int, int]
    ) -> tuple[bytes, Scalar]:
        """Sends one slice to the owner (member, peer) of its part; returns the summed part and its squared norm."""
        host, key, (member, peer) = self._host, attempt.key, owner
        part = pb.Part(
            run=host.authority.run_id,
            epoch=key.epoch,
            step=key.step,
            term=key.term,
            attempt=key.attempt,
            group=group,
            roster=attempt.roster,
            member=host.member,
        )
        try:
            async with host.pool.exchange(peer) as channel:
                await channel.send(part, data)
                reply, result = await channel.receive(host.manifest.settings.limits.payload_bytes)
        except UnreachableError:
            attempt.unreachable.append(member)
            raise
        if isinstance(reply, pb.Refused):
            raise RefusedError(pb.Reason.Name(reply.reason), reply.detail, peer)
        if not isinstance(reply, pb.PartResult):
            raise ProtocolError(f"{peer} answered a Part with {reply.DESCRIPTOR.name}")
        norm = from_scalar(reply.squared_norm, "squared norm", peer)
        length = bounds[1] - bounds[0]
        # Decoding it now means that a part that does not decode fails this attempt, not the update.
        await host.device.run(BACKGROUND, lambda: host.backend.reduce(group, [result], length))
        return result, norm

    # ---- what others ask

    async def serve_part(self, incoming: Incoming, part: pb.Part, payload: bytes) -> None:
        """Answers a Part: takes the slice, and replies with the summed part when all slices are there."""
        key = AttemptKey(part.epoch, part.step, part.term, part.attempt)
        host = self._host
        if part.run != host.authority.run_id:
            raise ProtocolError(f"{incoming.peer} sent a slice of run {part.run[:12]}")
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                box = await self._box(key, part.group)
        except TimeoutError:
            box = None
        if box is None or box.roster != part.roster or box.members.get(part.member) != incoming.peer:
            detail = f"no all-reduce of step {part.step}, attempt {part.attempt}, with this roster and member"
            await incoming.channel.send(pb.Refused(reason=pb.MALFORMED, detail=detail))
            return
        box.put(part.member, payload)
        host.observe(Moment("part", host.stage, part.step))
        await incoming.race(box.ending())
        if box.result is None:
            detail = f"attempt {part.attempt} of step {part.step} has failed here"
            await incoming.channel.send(pb.Refused(reason=pb.NOT_KEPT, detail=detail))
            return
        data, norm = box.result
        await incoming.channel.send(pb.PartResult(squared_norm=to_scalar(norm)), data)

    async def _box(self, key: AttemptKey, group: str) -> _Box | None:
        """The box of an attempt, once this member has begun it; None if a newer attempt has begun."""
        while True:
            box = self._boxes.get((key, group))
            if box is not None:
                return box
            closed = key.step < self._host.authority.closed
            if closed or self._newest.get((key.epoch, key.step), (0, 0)) > (key.term, key.attempt) or key in self._kept:
                return None
            self._opened.clear()
            await self._opened.wait()

    async def serve_fetch(self, incoming: Incoming, question: pb.Fetch) -> None:
        """Answers a Fetch of one part of a kept reduction."""
        key = AttemptKey(question.epoch, question.step, question.term, question.attempt)
        made = self._kept.get(key, {}).get(question.group)
        if made is None or question.part >= len(made.parts) or question.stage != self._host.stage:
            detail = f"no reduction of step {question.step}, attempt {question.attempt}, is kept here"
            await incoming.channel.send(pb.Refused(reason=pb.NOT_KEPT, detail=detail))
            return
        self._read[key] = asyncio.get_running_loop().time()
        await incoming.channel.send(pb.Fetched(), made.parts[question.part], category="reduce")

    # ---- what an update needs

    async def chosen(self, commit: pb.Commit, choice: pb.Choice) -> dict[str, tuple[bytes, ...]]:
        """The coded parts by group of the reduction that a Commit names, pulled from a holder if it is not kept here.

        Raises `UnreachableError` if no holder gave it.
        """
        key = AttemptKey(commit.epoch, commit.step, choice.term, choice.attempt)
        wanted = {group.name: tuple(group.part_digests) for group in choice.groups}
        kept = self._kept.get(key)
        if kept is None or {name: made.part_digests for name, made in kept.items()} != wanted:
            kept = await self._pull(key, choice)
            self._kept[key] = kept
        return {name: made.parts for name, made in kept.items()}

    def take_contributed(self, commit: pb.Commit, choice: pb.Choice) -> int:
        """How many microbatches of this member's are in the reduction that a Commit names; 0 when asked again, for a
        step that is applied once more after the state was dropped counts once."""
        return self._contributed.pop(AttemptKey(commit.epoch, commit.step, choice.term, choice.attempt), 0)

    async def _pull(self, key: AttemptKey, choice: pb.Choice) -> Reduction:
        host = self._host
        holders = [holder for holder in choice.holders if holder.member != host.member]
        limit = host.manifest.settings.limits.payload_bytes
        return await pull_reduction(host.pool, host.authority.run_id, key, choice, holders, limit)

    def clear(self) -> None:
        """Forgets everything: it is of another epoch."""
        for table in (self._kept, self._contributed, self._newest, self._read):
            table.clear()

    def close(self, closed: int) -> None:
        """Lets go of the reductions from which nobody can have to be brought up any more; of one that is being read for
        a checkpoint a step later."""
        oldest = closed - self._host.manifest.settings.pipeline.staleness
        now = asyncio.get_running_loop().time()
        for key in [key for key in self._kept if key.step < oldest]:
            if key.step < oldest - 1 or self._read.get(key, -LENT_SECONDS) <= now - LENT_SECONDS:
                del self._kept[key]
                self._read.pop(key, None)
        for key in [key for key in self._contributed if key.step < oldest]:
            del self._contributed[key]
        for entry in [entry for entry in self._newest if entry[1] < closed]:
            del self._newest[entry]
        self._opened.set()


async def pull_reduction(
    pool: Pool, run_id: str, key: AttemptKey, choice: pb.Choice, holders: Sequence[pb.Member], max_payload: int
) -> Reduction:
    """The reduction that a Commit names of a stage, from one of its holders. Raises `UnreachableError`."""
    problems: list[str] = []
    for holder in holders:
        pool.addresses.setdefault(holder.peer, tuple(holder.addresses))
        try:
            return {
                group.name: await _pull_group(pool, run_id, key, holder.peer, choice.stage, group, max_payload)
                for group in choice.groups
            }
        except (UnreachableError, RefusedError, WireError) as error:
            problems.append(str(error))
    raise UnreachableError(f"no holder gave the reduction of step {key.step}: {'; '.join(problems)}")


async def _pull_group(
    pool: Pool, run_id: str, key: AttemptKey, peer: str, stage: int, group: pb.GroupResult, max_payload: int
) -> GroupReduction:
    parts: list[bytes] = []
    for part, digest in enumerate(group.part_digests):
        question = pb.Fetch(
            run=run_id,
            kind=pb.Fetch.REDUCTION,
            epoch=key.epoch,
            step=key.step,
            stage=stage,
            term=key.term,
            attempt=key.attempt,
            group=group.name,
            part=part,
        )
        _, data = await fetch(pool, peer, question, max_payload)
        if hashlib.sha256(data).digest() != digest:
            raise WireError(f"{peer} sent a part of the reduction of step {key.step} with a wrong digest")
        parts.append(data)
    norm = from_scalar(group.squared_norm, "squared norm", "the trainer")
    return GroupReduction(tuple(parts), tuple(group.part_digests), norm)


def to_group_result(name: str, made: GroupReduction) -> pb.GroupResult:
    return pb.GroupResult(
        name=name, digest=made.digest, part_digests=made.part_digests, squared_norm=to_scalar(made.squared_norm)
    )
