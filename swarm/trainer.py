"""The trainer: feeds microbatches in at the first stage, keeps the ledger, closes the steps.

It moves token ids and control messages only. Owns the roster (`roster.py`), the ledger (`ledger.py`), pacing and the
window of microbatches in flight; `driving.py` sends them, `admission.py` holds the control streams, `closing.py`
reduces and commits. Only the trainer declares a peer lost: when its control stream ends, or when its digests are wrong.

Errors: `StoppedError` when the run cannot go on.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ..errors import StoppedError, UnreachableError
from ..protos import swarm_pb2 as pb
from . import events
from .admission import Admission
from .backend import Arithmetic, Scalar
from .closing import Closing, Outcome, units_of
from .conditions import Signal
from .directory import TRAINER_STAGE, Directory, Record
from .driving import Driver, Samples
from .exchange import Meter, Pool
from .faults import Fault, FaultLog
from .hop import Hop
from .ledger import Ledger
from .manifest import PROTOCOL_VERSION, Manifest
from .neighbours import Neighbours
from .peer import ANNOUNCE_SECONDS, RECORD_SECONDS
from .report import make_report
from .roster import Member, Roster
from .steps import Step
from .transport import Transport

logger = logging.getLogger(__name__)

WINDOW_SHARE = 0.8
"""Share of the narrowest stage's slots that microbatches in flight may take."""

FAREWELL_SECONDS = 5.0

KEPT_DIGESTS = 8
"""Versions whose digests are remembered of each member; no two live members are that far apart."""


@dataclass
class Trainer:
    """One run's trainer. `give_up` (seconds) bounds the wait for a stage without replicas; None waits for ever."""

    manifest: Manifest
    signature: bytes
    term: pb.Term
    transport: Transport
    directory: Directory
    arithmetic: Arithmetic
    samples: Samples
    emit: Callable[[events.Event], None] = field(default=lambda event: None)
    give_up: float | None = None

    def __post_init__(self) -> None:
        manifest = self.manifest
        self.run_id = manifest.run_id
        self.meter = Meter()
        self.pool = Pool(self.transport, self.meter)
        self.signal = Signal()
        self.roster = Roster(self.run_id, manifest.stages)
        self.ledger = Ledger(manifest.stages, manifest.microbatches)
        self.steps: dict[int, Step] = {}
        self.faults = FaultLog()
        self.heldout: dict[str, Scalar | None] = {"before": None, "after": None}
        self._started = False
        self._finishing = False
        neighbours = Neighbours(self.roster.records, self.pool, random.Random(manifest.settings.seed))
        self.neighbours = neighbours
        self.admission = Admission(
            manifest, self.signature, self.term, self.roster, self.meter, self, lambda: self._started, self._joined
        )
        self.driver = Driver(
            manifest=manifest,
            term=self.term,
            roster=self.roster,
            ledger=self.ledger,
            steps=self.steps,
            faults=self.faults,
            hop=Hop(self.pool, neighbours, manifest.settings.limits.payload_bytes),
            samples=self.samples,
            signal=self.signal,
            emit=self.emit,
            closed=lambda: self.closing.closed,
        )
        self.closing = Closing(
            manifest=manifest,
            term=self.term,
            roster=self.roster,
            ledger=self.ledger,
            arithmetic=self.arithmetic,
            signal=self.signal,
            tell=self.admission.tell,
            rerun=self._rerun,
            lose=self.lost,
        )
        self._tasks: asyncio.TaskGroup

    async def run(self) -> dict[str, object]:
        """Trains to the last step; the report (`report.py`). Raises `StoppedError`."""
        report: dict[str, object] = {}
        problem: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as self._tasks:
                background = [self._tasks.create_task(self._announce()), self._tasks.create_task(self._watch_stages())]
                await self.transport.serve(self.admission.serve)
                await self._train()
                await self._say_farewell("the run is finished")
                report = self.report()
                for task in background:
                    task.cancel()
        except* Exception as problems:
            problem = problems
            while isinstance(problem, BaseExceptionGroup):
                problem = problem.exceptions[0]
            await self._say_farewell(f"the run has stopped: {problem}")
        finally:
            self.pool.close()
        if problem is not None:
            raise problem
        return report

    async def _train(self) -> None:
        settings = self.manifest.settings
        await self.signal.wait_for(self._crewed)
        self._started = True
        self.heldout["before"] = await self._evaluate(0)
        closing: asyncio.Task[None] | None = None
        for number in range(settings.train.steps):
            await self.signal.wait_for(partial(self._reached, self._version_of(number)))
            batches = (self.samples.microbatch(number, index) for index in range(self.manifest.microbatches))
            step = Step(number, tokens=sum(batch.label_tokens for batch in batches))
            self.steps[number] = step
            self.ledger.open(number)
            closing = self._tasks.create_task(self._close(step, closing))
            for index in range(self.manifest.microbatches):
                await self.signal.wait_for(lambda: self.driver.in_flight < self._window())
                self._drive(number, index)
        await self.signal.wait_for(lambda: self.closing.closed >= settings.train.steps)
        self.heldout["after"] = await self._evaluate(settings.train.steps)

    def _crewed(self) -> bool:
        needed = self.manifest.settings.pipeline.min_replicas
        return all(len(self.roster.ready(stage)) >= needed for stage in range(self.manifest.stages))

    def _version_of(self, step: int) -> int:
        """The version at which step t computes: t, or max(0, t-1) with the one-step delayed update."""
        return max(0, step - self.manifest.settings.pipeline.staleness)

    def _reached(self, version: int) -> bool:
        """Pacing: whether some replica of every stage has this version."""
        return all(
            any(member.version >= version for member in self.roster.live(stage))
            for stage in range(self.manifest.stages)
        )

    def _everyone_at(self, version: int) -> bool:
        return all(member.version >= version for member in self.roster.live())

    def _window(self) -> int:
        slots = self.manifest.settings.pipeline.slots * max(1, self.roster.narrowest())
        return max(1, int(WINDOW_SHARE * slots))

    def _drive(self, step: int, index: int) -> None:
        if self.driver.begin(step, index):
            self._tasks.create_task(self.driver.drive(step, index, self._version_of(step)))

    def _rerun(self, step: int, index: int) -> None:
        if self.ledger.is_open(step):
            self._drive(step, index)

    async def _close(self, step: Step, earlier: "asyncio.Task[None] | None") -> None:
        """Reduces, commits and settles one step; steps are committed in order."""
        stages = range(self.manifest.stages)
        await self.signal.wait_for(lambda: self.ledger.complete(step.number, stages))
        await self.signal.wait_for(lambda: step.number == 0 or self.steps[step.number - 1].committed)
        # A replica whose state went wrong is found by the digests of the version; its work must not be reduced.
        await self.signal.wait_for(partial(self._everyone_at, self._version_of(step.number)))
        units = units_of(self.manifest)
        async with asyncio.TaskGroup() as tasks:
            reductions = [tasks.create_task(self.closing.reduce(step, unit)) for unit in units]
        choices = sorted((choice for task in reductions for choice in task.result()), key=lambda choice: choice.stage)
        commit = self.closing.commit(step, choices)
        now = asyncio.get_running_loop().time()
        step.seconds = now - (step.began if step.began is not None else now)
        step.committed = True
        self.signal.notify()
        self.emit(
            events.Stepped(
                step=step.number,
                loss=step.loss,
                grad_norm=step.grad_norm,
                tokens=step.tokens,
                seconds=step.seconds,
                version=self._version_of(step.number),
                replicas=tuple(len(self.roster.live(stage)) for stage in stages),
            )
        )
        await self.closing.announce(commit)
        if earlier is not None:
            # The closed marker moves in order; the Commit itself does not wait for the slowest replica of the last one.
            await earlier
        await self.closing.settle(step, commit, units)
        step.finish(self.manifest.stages, self.manifest.microbatches)
        self.driver.forget(self.closing.closed)

    async def _evaluate(self, version: int) -> Scalar | None:
        total, tokens = self.arithmetic.zero, 0
        batches = self.samples.heldout()
        if not batches:
            return None
        waiting: list[asyncio.Task[Scalar]] = []
        async with asyncio.TaskGroup() as tasks:
            for index, batch in enumerate(batches):
                await self.signal.wait_for(lambda: self.driver.in_flight < self._window())
                self.driver.in_flight += 1
                waiting.append(tasks.create_task(self.driver.evaluate(version, index, batch)))
                tokens += batch.label_tokens
        for task in waiting:
            total = self.arithmetic.add(total, task.result())
        loss = self.arithmetic.mean(total, tokens)
        self.emit(events.Evaluated(version, loss))
        return loss

    # ---- what members say (Admission's Listener)

    def _joined(self, member: Member) -> None:
        self.emit(events.Joined(member.number, member.peer, member.stage))

    def ready(self, member: Member, digest: bytes) -> None:
        member.digests[0] = digest
        member.ready = True
        self._judge(member.stage, 0)
        self.emit(events.Ready(member.number, member.peer, member.stage))
        self.signal.notify()

    def reduced(self, member: Member, outcome: Outcome) -> None:
        self.closing.take_outcome(member, outcome, self.steps.get(outcome.step))

    def applied(self, member: Member, version: int, digest: bytes) -> None:
        member.digests[version] = digest
        member.digests.pop(version - KEPT_DIGESTS, None)
        self._judge(member.stage, version)
        self.signal.notify()

    def _judge(self, stage: int, version: int) -> None:
        for member in self.roster.dissenters(stage, version):
            self.lost(member, f"its state at version {version} differs from the other replicas'")

    def lost(self, member: Member, why: str) -> None:
        """Declares a member lost: its open credits are re-run at once."""
        if not member.live or self._finishing:
            self.signal.notify()
            return
        member.live = False
        self.admission.drop(member)
        self.neighbours.failed(member.stage, member.peer)
        uncredited = self.ledger.lose(member.number)
        affected = set(uncredited) | self.driver.open_at(member.number)
        now = asyncio.get_running_loop().time()
        at_step = max(self.steps, default=0)
        self.faults.add(Fault(member.number, member.peer, member.stage, at_step, why, now, frozenset(affected)))
        self.emit(events.Lost(member.number, member.peer, member.stage, at_step, why, now))
        for step, index in uncredited:
            self._rerun(step, index)
        self.signal.notify()

    # ---- the run around it

    async def _watch_stages(self) -> None:
        """Says which stage has no replica; gives up after a while if told to."""
        while True:
            await self.signal.wait_for(lambda: self._started and self._empty_stage() is not None)
            stage = self._empty_stage()
            assert stage is not None
            self.emit(events.Waiting(stage))
            try:
                async with asyncio.timeout(self.give_up):
                    await self.signal.wait_for(lambda: self._empty_stage() is None)
            except TimeoutError as error:
                raise StoppedError(
                    f"stage {stage} has had no replica for {self.give_up:.0f} s; start the run again with more replicas"
                ) from error

    def _empty_stage(self) -> int | None:
        return next((stage for stage in range(self.manifest.stages) if not self.roster.live(stage)), None)

    async def _announce(self) -> None:
        sequence = 0
        while True:
            sequence += 1
            record = Record(
                self.run_id, TRAINER_STAGE, self.transport.peer_id, self.transport.addresses, sequence, PROTOCOL_VERSION
            )
            try:
                await self.directory.publish(record, RECORD_SECONDS)
            except UnreachableError as error:
                logger.warning("the trainer could not announce itself, and tries again: %s", error)
            await asyncio.sleep(ANNOUNCE_SECONDS)

    def report(self) -> dict[str, object]:
        """What has happened so far (`report.py`)."""
        return make_report(self.manifest, self.steps, self.roster, self.faults, self.heldout, self.meter)

    async def _say_farewell(self, detail: str) -> None:
        """Tells everyone that the run is over and waits, for a while, until they have hung up."""
        self._finishing = True
        for member in self.roster.live():
            await self.admission.tell(member, pb.Finish(detail=detail))
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self.signal.wait_for(lambda: not self.admission.connected)
        except TimeoutError:
            return
