"""Driving microbatches: one at a time per (step, index), until every stage is credited with it.

A drive sends the lowest range of stages that lack a credit; a fresh microbatch is the range of all stages. When only
stages in the middle are missing, the range pulls its input and its output gradient from the credited neighbours; a
neighbour that is gone widens the range by its stage, which then runs uncounted. Credits come from the path of Done,
and only from members that are live when it arrives.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import FailedError, StoppedError
from ..protos import swarm_pb2 as pb
from . import events
from .backend import Arithmetic, Scalar
from .conditions import Signal
from .faults import FaultLog
from .hop import Hop
from .ledger import Ledger, first_gap
from .manifest import Manifest
from .messages import from_scalar
from .roster import Roster
from .steps import Step

RETRY_PAUSE_SECONDS, MAX_DOUBLINGS = 0.02, 6
"""Before a failed microbatch is run again: twice as long after each time that got nowhere, up to 1.3 s. Two trainers,
each with some of the peers, would have each other's stages compute in vain as fast as they can."""

UNEXPLAINED_FAILURES = 3
"""Drives of one microbatch that may fail for no reason the protocol knows, before the run stops."""


PASSING = frozenset({"SUPERSEDED", "ORPHANED", "CLOSED", "FENCED", "TRAINER_ALIVE", "NOT_READY", "CUT_OFF"})
"""Reasons of a failed drive that are not the microbatch's own: it is driven again."""


@dataclass(frozen=True, slots=True)
class Microbatch:
    """`tokens` and `labels`: int32 little-endian [samples, sequence_length]; `label_tokens`: labels that count,
    which may be none."""

    samples: int
    tokens: bytes
    labels: bytes
    label_tokens: int


class Samples(Protocol):
    """Where microbatches come from: a pure function of (step, index)."""

    def microbatch(self, step: int, index: int) -> Microbatch: ...

    def heldout(self) -> Sequence[Microbatch]: ...

    def heldout_bytes(self) -> int:
        """How long the text is that the held-out labels are, in UTF-8."""
        ...


@dataclass
class Driver:
    """Drives for a trainer. `in_flight` counts first issues and re-runs alike."""

    manifest: Manifest
    term: pb.Term
    roster: Roster
    ledger: Ledger
    steps: dict[int, Step]
    faults: FaultLog
    hop: Hop
    samples: Samples
    arithmetic: Arithmetic
    signal: Signal
    emit: Callable[[events.Event], None]
    closed: Callable[[], int]
    epoch: Callable[[], int]
    fenced: Callable[[pb.Term], None] = field(default=lambda term: None)
    in_flight: int = 0
    _paths: dict[tuple[int, int], dict[int, pb.PathEntry]] = field(default_factory=dict)
    _tries: dict[tuple[int, int], int] = field(default_factory=dict)
    _driven: dict[int, set[int]] = field(default_factory=dict)

    def begin(self, step: int, index: int) -> bool:
        """Whether a drive of (step, index) is to start; at most one is under way."""
        driven = self._driven.setdefault(step, set())
        if index in driven:
            return False
        driven.add(index)
        self.steps[step].issued.add(index)
        self.in_flight += 1
        return True

    def driven(self, step: int) -> Collection[int]:
        """The microbatches of a step of which a drive is under way."""
        return self._driven.get(step, ())

    def open_at(self, member: int) -> set[tuple[int, int]]:
        """The (step, index) whose visit at `member` had begun and not ended, as far as is known here."""
        return {
            key
            for key, path in self._paths.items()
            for entry in path.values()
            if entry.member == member and entry.phase not in (pb.HELD, pb.ENDED)
        }

    async def drive(self, step: int, index: int, version: int) -> None:
        """Has every stage credited with a microbatch. Raises `StoppedError`."""
        batch = self.samples.microbatch(step, index)
        record = self.steps[step]
        if record.began is None:
            record.began = asyncio.get_running_loop().time()
        wider = (0, 0)
        unexplained = fruitless = 0
        try:
            while self.ledger.is_open(step) and (missing := self.ledger.missing(step, index)):
                first, last = self._widen(step, index, first_gap(missing), wider)
                try:
                    await self._run(step, index, version, batch, first, last)
                    wider = (0, 0)
                    if self.ledger.missing(step, index) != missing:
                        fruitless = 0
                        continue
                except FailedError as error:
                    if error.reason == "INPUT_GONE":
                        wider = (wider[0] + 1, wider[1])
                    elif error.reason == "GRADIENT_GONE":
                        wider = (wider[0], wider[1] + 1)
                    elif error.reason == "NON_FINITE":
                        raise StoppedError(
                            f"microbatch {index} of step {step} gives NaN or infinity at stage {error.stage} "
                            f"on every replica tried: {error.detail}"
                        ) from error
                    elif error.reason not in PASSING:
                        unexplained += 1
                        if unexplained >= UNEXPLAINED_FAILURES:
                            raise StoppedError(f"microbatch {index} of step {step} cannot be run: {error}") from error
                await _pause(fruitless)
                fruitless += 1
        finally:
            self._driven[step].discard(index)
            self.in_flight -= 1
            self.signal.notify()

    def _widen(self, step: int, index: int, gap: tuple[int, int], wider: tuple[int, int]) -> tuple[int, int]:
        """The range to run: the gap, widened past neighbours that failed to give what is needed or are lost."""
        first, last = max(0, gap[0] - wider[0]), min(self.manifest.stages - 1, gap[1] + wider[1])
        while first > 0 and self._holder(step, first - 1, index) is None:
            first -= 1
        while last < self.manifest.stages - 1 and self._holder(step, last + 1, index) is None:
            last += 1
        return first, last

    def _holder(self, step: int, stage: int, index: int) -> str | None:
        """The live peer that is credited, and so keeps what it sent."""
        number = self.ledger.holder(step, stage, index)
        member = None if number is None else self.roster.get(number)
        return member.peer if member is not None and member.live else None

    async def _run(self, step: int, index: int, version: int, batch: Microbatch, first: int, last: int) -> None:
        tries = self._tries[step, index] = self._tries.get((step, index), 0) + 1
        request = self._request(pb.TRAIN, step, index, version, batch, first, last)
        request.lacking.extend(stage for stage in self.ledger.missing(step, index) if first <= stage <= last)
        request.input_holder = (self._holder(step, first - 1, index) or "") if first else ""
        if last < self.manifest.stages - 1:
            request.gradient_holder = self._holder(step, last + 1, index) or ""
        self._paths.setdefault((step, index), {})
        done, _ = await self.hop.call(
            request,
            b"" if first else batch.tokens,
            order=lambda: (self.term.number, tries),
            hint=lambda: self._hint(step, index, tries),
            hear=lambda entries: self._hear(step, index, entries),
        )
        self._hear(step, index, done.path)
        self._credit(step, index, done, last)

    def _hint(self, step: int, index: int, tries: int) -> dict[int, pb.PathEntry]:
        """By stage: who has done it. Where that was somebody who is not credited now, one who would be: whoever calls
        that stage knows only that it is answered fast, from what is kept."""
        path = self._paths.get((step, index), {})
        hints = {stage: entry for stage, entry in path.items() if self.roster.is_ready(entry.member)}
        for stage in self.ledger.missing(step, index):
            last = self.roster.get(path[stage].member) if stage in path else None
            others = self.roster.serving(stage) if last is not None and last.live and not last.ready else ()
            if others:
                member = others[tries % len(others)]
                hints[stage] = pb.PathEntry(stage=stage, member=member.number, peer=member.peer)
        return hints

    def _request(
        self, mode: pb.Mode, step: int, index: int, version: int, batch: Microbatch, first: int, last: int
    ) -> pb.Run:
        return pb.Run(
            run=self.roster.run_id,
            term=self.term,
            epoch=self.epoch(),
            mode=mode,
            step=step,
            index=index,
            samples=batch.samples,
            version=version,
            first=first,
            last=last,
            labels=batch.labels if last == self.manifest.stages - 1 else b"",
            closed=self.closed(),
        )

    def _hear(self, step: int, index: int, entries: Sequence[pb.PathEntry]) -> None:
        path = self._paths.setdefault((step, index), {})
        for entry in entries:
            if entry.stage >= self.manifest.stages:
                continue
            known = path.get(entry.stage)
            path[entry.stage] = entry
            if known is None or (known.member, known.phase, known.begun) != (entry.member, entry.phase, entry.begun):
                phase, now = pb.Phase.Name(entry.phase), asyncio.get_running_loop().time()
                self.emit(events.Visited(step, index, entry.stage, entry.peer, phase, now))
        self.steps[step].saw_begun(index, entries)

    def _credit(self, step: int, index: int, done: pb.Done, last: int) -> None:
        final, losses = self.manifest.stages - 1, self.steps[step].losses
        if index not in losses and (last == final or done.HasField("loss")):
            losses[index] = from_scalar(done.loss, "loss", "the last stage")
        for entry in done.path:
            member = self.roster.get(entry.member)
            if entry.phase != pb.HELD or member is None or not member.ready:
                continue
            if entry.stage == final and index not in losses:
                continue  # a visit above it went on to it in an earlier term, and does not know its loss yet
            if (member.stage, member.peer) == (entry.stage, entry.peer):
                self.ledger.credit(step, entry.stage, index, entry.member)
        now = asyncio.get_running_loop().time()
        for fault in self.faults.done(step, index, self.ledger.missing(step, index), now):
            self.emit(events.Rerouted(fault.member, fault.peer, step, index, now))
        self.signal.notify()

    async def evaluate(self, version: int, window: Callable[[], int]) -> Scalar | None:
        """The held-out loss at a version (nats per token), None without held-out text; nothing is credited.

        `window()`: how many microbatches may be in flight. Raises `FailedError`.
        """
        total, tokens = self.arithmetic.zero, 0
        batches = self.samples.heldout()
        if not batches:
            return None
        waiting: list[asyncio.Task[Scalar]] = []
        async with asyncio.TaskGroup() as tasks:
            for index, batch in enumerate(batches):
                await self.signal.wait_for(lambda: self.in_flight < window())
                self.in_flight += 1
                waiting.append(tasks.create_task(self._evaluate(version, index, batch)))
                tokens += batch.label_tokens
        for task in waiting:
            total = self.arithmetic.add(total, task.result())
        loss = self.arithmetic.mean(total, tokens)
        self.emit(events.Evaluated(version, loss))
        return loss

    async def _evaluate(self, version: int, index: int, batch: Microbatch) -> Scalar:
        """The token-summed loss of one held-out microbatch."""
        request = self._request(pb.EVAL, version, index, version, batch, 0, self.manifest.stages - 1)
        try:
            tries = 0
            while True:
                tries += 1
                try:
                    return await self._evaluate_once(request, batch, tries)
                except FailedError as error:
                    if error.reason not in PASSING:
                        raise
                await _pause(tries - 1)
        finally:
            self.in_flight -= 1
            self.signal.notify()

    async def _evaluate_once(self, request: pb.Run, batch: Microbatch, tries: int) -> Scalar:
        done, _ = await self.hop.call(
            request, batch.tokens, order=lambda: (self.term.number, tries), hint=dict, hear=lambda entries: None
        )
        return from_scalar(done.loss, "loss", "the last stage")

    def forget(self, closed: int) -> None:
        """Lets go of what is known of the paths of closed steps."""
        for key in [key for key in self._paths if key[0] < closed]:
            del self._paths[key]
            self._tries.pop(key, None)
        for step in [step for step, driven in self._driven.items() if step < closed and not driven]:
            del self._driven[step]


async def _pause(fruitless: int) -> None:
    await asyncio.sleep(RETRY_PAUSE_SECONDS * 2 ** min(fruitless, MAX_DOUBLINGS))
