"""The trainer: feeds microbatches in at the first stage, keeps the ledger, closes the steps.

It moves token ids and control messages only. Owns the roster (`roster.py`), the ledger (`ledger.py`), pacing and the
window of microbatches in flight; `driving.py` sends them, `admission.py` holds the control streams, `closing.py`
reduces and commits. Only the trainer declares a peer lost: when its control stream ends or is silent, or when its
digests are wrong.

A trainer of a later term begins with nothing but what peers tell it (Held, Ready): it credits what they hold, finishes
the Commits that any of them has, and goes on from there. It begins when a replica of every stage has spoken, and with a
standby configured, more than half of the members of the last Commit; who speaks later is heard too.

Errors: `StoppedError` when the run cannot go on, `FencedError` when another trainer leads.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..errors import FencedError, GoingBackError
from ..protos import swarm_pb2 as pb
from . import events, facts
from .admission import Admission
from .backend import Arithmetic
from .beginning import Beginning
from .checkpoint import Checkpoint, Checkpoints
from .checkpointing import Checkpointing
from .closing import Closing, Outcome
from .compute import Device, ThreadDevice
from .conditions import Signal
from .crew import Crew
from .departures import FAREWELL_SECONDS, Departures
from .directory import Directory
from .driving import Driver, Samples
from .epochs import Lineage
from .errands import Errands
from .exchange import Meter, Pool
from .faults import FaultLog
from .finishing import Finishing
from .history import History
from .hop import Hop
from .ledger import Ledger
from .manifest import Manifest
from .moving import Moving
from .neighbours import POLICIES, Neighbours
from .presence import Presence
from .pulse import Pulses, clean
from .readiness import Readiness
from .report import make_report
from .roster import Member, Roster
from .steering import Steering
from .steps import Step
from .taking_over import TakingOver
from .transport import Transport
from .vacancy import watch_stages
from .window import Window

LINGER_SECONDS = 10.0
"""How long a trainer that finds the run finished goes on telling so: longer than peers take to find it."""


@dataclass
class Trainer:
    """One run's trainer. `give_up` (seconds) bounds the wait for a stage without replicas; None waits for ever.
    `known`: what a standby was told of the steps before its term. `epochs`: of the run; the last one is this term's own
    if it goes back to a checkpoint, `origin` (None: to version 0); `resuming`: whether it does; `last_crew`: of the
    last Commit before. `device`: where a checkpoint is read."""

    manifest: Manifest
    signature: bytes
    term: pb.Term
    transport: Transport
    directory: Directory
    arithmetic: Arithmetic
    samples: Samples
    emit: Callable[[events.Event], None] = field(default=lambda event: None)
    give_up: float | None = None
    known: Sequence[pb.Past] = ()
    banned: Mapping[str, str] = field(default_factory=dict)
    """By peer id: why the organizer does not want it."""

    keep: Callable[["Trainer"], Awaitable[None]] | None = None
    """Called when the last step is closed, while all replicas are there."""

    epochs: Lineage = field(default=Lineage())
    origin: Checkpoint | None = None
    resuming: bool = False
    last_crew: frozenset[int] = frozenset()
    checkpoints: Checkpoints | None = None
    device: Device = field(default_factory=ThreadDevice)

    def __post_init__(self) -> None:
        manifest = self.manifest
        self.run_id = manifest.run_id
        self.meter = Meter()
        self.pool = Pool(self.transport, self.meter, silence=self.manifest.settings.pipeline.silence)
        self.signal = Signal()
        self.roster = Roster(self.run_id, manifest.stages, self.term.number)
        self.beginning = Beginning(
            manifest, self.transport, self.roster, self.device, self.epochs, self.origin, self.last_crew
        )
        self.ledger = Ledger(manifest.stages, manifest.microbatches)
        self.steps: dict[int, Step] = {}
        self.faults = FaultLog()
        self._started = False
        self._finishing = False
        self.fenced_by: pb.Term | None = None
        """The term that has shown this one to be over."""

        self.history = History(
            manifest, self.steps, self.known, lambda step: self.emit(facts.recalled(step)), self.epochs
        )
        self.heldout = self.history.heldout
        self._most_in_flight = Window(self.roster, manifest.settings.pipeline.slots, self.signal.notify)
        self.crew = Crew(manifest, self.roster, self.history, resuming=self.resuming, last=self.last_crew)
        self._drives: dict[tuple[int, int], asyncio.Task[None]] = {}
        policy = POLICIES[manifest.settings.pipeline.routing]
        neighbours = Neighbours(self.roster.read, self.pool, random.Random(manifest.settings.seed), policy)
        self.neighbours = neighbours
        self.errands = Errands(
            manifest, self.samples, lambda version: self.driver.evaluate(version, self._window), self.signal.notify
        )
        self.admission = Admission(
            manifest, self.signature, self.term, self.roster, self.ledger, self.meter, self, self._joined, self.errands
        )
        self.driver = Driver(
            manifest=manifest,
            term=self.term,
            roster=self.roster,
            ledger=self.ledger,
            steps=self.steps,
            faults=self.faults,
            hop=Hop(self.pool, neighbours, manifest.settings.limits.payload_bytes, fenced=self._shown_a_term),
            samples=self.samples,
            arithmetic=self.arithmetic,
            signal=self.signal,
            emit=self.emit,
            closed=lambda: self.closing.closed,
            epoch=lambda: self.beginning.epoch,
            fenced=self._shown_a_term,
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
            bench=lambda member, why: self._departures.sit_out(member, why),
            leave_behind=lambda member, why: self._departures.send_away(member, pb.TOO_OLD, why),
            epoch=lambda: self.beginning.epoch,
            restores=self.beginning.restores,
        )
        self._finisher = Finishing(
            manifest=manifest,
            steps=self.steps,
            roster=self.roster,
            ledger=self.ledger,
            crew=self.crew,
            history=self.history,
            closing=self.closing,
            admission=self.admission,
            driver=self.driver,
            signal=self.signal,
            version_of=self._version_of,
            checkpointing=lambda: self._checkpointing,
            emit=self.emit,
            spawn=lambda work: self._tasks.create_task(work),
        )
        self._departures = Departures(
            roster=self.roster,
            ledger=self.ledger,
            driver=self.driver,
            faults=self.faults,
            neighbours=neighbours,
            signal=self.signal,
            tell=self.admission.tell,
            drop=self.admission.drop,
            promote=lambda member: self._readiness.promote(member),
            rerun=self._rerun,
            reduces=lambda number: self.closing.reducing[number] > 0,
            spared=self.crew.can_spare,
            over=lambda: self._finishing,
            emit=self.emit,
            spawn=lambda work: self._tasks.create_task(work),
        )
        self.steering = Steering(
            self.roster, self._departures, self.signal, self.emit, lambda: self.over, dict(self.banned)
        )
        self.taking_over = TakingOver(
            self.roster, self.crew, self.history, self.ledger, self.steps, self.closing, self.beginning
        )
        self._readiness = readiness = Readiness(
            manifest=manifest,
            roster=self.roster,
            crew=self.crew,
            beginning=self.beginning,
            closing=self.closing,
            departures=self._departures,
            neighbours=neighbours,
            taking_over=self.taking_over,
            signal=self.signal,
            began=lambda: self._started,
            over=lambda: self._finishing,
            emit=self.emit,
            spawn=lambda work: self._tasks.create_task(work),
        )
        self._checkpointing: Checkpointing | None = None
        self.ready: Callable[[Member, int, bytes], None] = readiness.ready
        self.applied: Callable[[Member, int, bytes], None] = readiness.applied
        self.loaded: Callable[[Member], None] = readiness.loaded
        self.closing.closed = self.closing.committed = self.beginning.closed
        self.closing.commits.update(self.beginning.commits())
        self._moving = Moving(
            roster=self.roster,
            period=manifest.settings.pipeline.rebalance,
            min_replicas=manifest.settings.pipeline.min_replicas,
            patience=manifest.settings.pipeline.patience,
            signal=self.signal,
            tell=self.admission.tell,
            began=lambda: self._started,
            over=lambda: self._finishing or not (self._started or self.crew.resumes),
            leaving=lambda: self._departures.are_under_way,
            emit=self.emit,
        )
        self.declines: Callable[[Member], None] = self._moving.declined
        self._presence = Presence(manifest, self.term, self.transport, self.directory, self.meter, self._shown_a_term)
        self._pulses = Pulses(self.roster, self.meter, self._standing, self.emit)
        self._tasks: asyncio.TaskGroup

    def _standing(self) -> tuple[int, int, int]:
        return max(self.steps, default=0), self.driver.in_flight, self._window()

    async def run(self) -> dict[str, object]:
        """Trains to the last step; the report (`report.py`). Raises `StoppedError`."""
        report: dict[str, object] = {}
        problem: BaseException | None = None
        self.emit(facts.opened(self.manifest))
        try:
            async with asyncio.TaskGroup() as self._tasks:
                waiting = watch_stages(
                    self.roster,
                    self.signal,
                    lambda: self._started and not self._finishing,
                    self.emit,
                    self.give_up,
                    self.manifest.settings.pipeline.patience,
                    self.closing.lost_stage,
                    self.closing.is_lost,
                    self._reached,
                )
                watches = (
                    waiting,
                    self._moving.run(),
                    self._watch_terms(),
                    self._presence.watch_rivals(),
                    self._pulses.run(),
                )
                background = [
                    self._tasks.create_task(work)
                    for work in (self._presence.announce(), *watches, self.closing.remind())
                ]
                await self.transport.serve(self.admission.serve)
                try:
                    await self._train()
                except BaseException:
                    self._finishing = True
                    raise
                self._pulses.beat()
                self.emit(events.Concluded(""))
                await self._say_farewell("the run is finished")
                report = self.report()
                self._departures.end()
                for task in background:
                    task.cancel()
        except* Exception as problems:
            problem = problems
            while isinstance(problem, BaseExceptionGroup):
                problem = problem.exceptions[0]
            if not isinstance(problem, FencedError | GoingBackError):
                self.emit(events.Concluded(str(problem)))
                await self._say_farewell(f"the run has stopped: {problem}")
        finally:
            self._finishing = True
            self.errands.close()
            self.admission.close()
            self.pool.close()
        if problem is not None:
            raise problem
        return report

    async def _train(self) -> None:
        settings = self.manifest.settings
        await self.signal.wait_for(lambda: self.history.is_whole or self.crew.is_complete())
        if self.recall() is not None:
            await self._conclude_for_another()
            return
        await self.crew.tell_founders(self.admission.tell, self.signal)
        self._started = True
        self._take_over()
        if self.checkpoints is not None:
            self._checkpointing = Checkpointing(
                manifest=self.manifest,
                signature=self.signature,
                term=self.term,
                lineage=self.beginning.lineage,
                checkpoints=self.checkpoints,
                roster=self.roster,
                pool=self.pool,
                past=self.past,
                emit=self.emit,
                closed=self.closed_marker,
                reached=min(self.closing.closed, settings.train.steps - 1),
            )
        if self.heldout["before"] is None and self.closing.closed <= settings.pipeline.staleness:
            self.heldout["before"] = await self.driver.evaluate(0, self._window)
        closing: asyncio.Task[None] | None = None
        for number in range(self.closing.closed, settings.train.steps):
            if number >= self.closing.committed:
                await self.signal.wait_for(partial(self.roster.some_at, self._version_of(number)))
                await self.steering.between_steps(self.errands, self._version_of(number))
            batches = (self.samples.microbatch(number, index) for index in range(self.manifest.microbatches))
            step = Step(number, tokens=sum(batch.label_tokens for batch in batches))
            self.steps[number] = step
            self.ledger.open(number)
            self.taking_over.credit_step(number)
            self.signal.notify()
            closing = self._tasks.create_task(self._close(step, closing))
            if step.commit is not None:
                continue
            for index in range(self.manifest.microbatches):
                await self.signal.wait_for(lambda: self.driver.in_flight < self._window())
                self._drive(number, index)
        await self.signal.wait_for(lambda: self.closing.closed >= settings.train.steps)
        await self.signal.wait_for(partial(self.roster.some_at, settings.train.steps))
        self.heldout["after"] = await self.driver.evaluate(settings.train.steps, self._window)
        await self.errands.run(settings.train.steps)
        if self._checkpointing is not None:
            await self._checkpointing.conclude(self.closing.commits.get(settings.train.steps - 1), self.signal)
        if self.keep is not None:
            await self.keep(self)
        await self.admission.conclude()

    def recall(self) -> dict[str, object] | None:
        """The report of a run that another trainer has led to its end, if everything of it was told."""
        if not self.history.is_whole:
            return None
        self.closing.closed = self.closing.committed = self.manifest.settings.train.steps
        self.history.recall(self.closing.closed)
        return self.report()

    async def _conclude_for_another(self) -> None:
        """The trainer before has done all but say so to everyone: whoever comes is told that the run is over."""
        self._started = self._finishing = True
        self.admission.finish()
        await asyncio.sleep(LINGER_SECONDS)

    def settled(self) -> int:
        steps = self.manifest.settings.train.steps
        unsaid = self.closing.closed == steps and self.heldout["after"] is None and bool(self.samples.heldout())
        return steps - 1 if unsaid else self.closing.closed

    @property
    def over(self) -> bool:
        """Whether it has stopped leading: the run is at its end, or somebody else leads."""
        return self._finishing or self.fenced_by is not None

    @property
    def founders(self) -> Collection[int]:
        return self.crew.founders if self.closing.closed <= self.beginning.lineage.first else ()

    @property
    def began(self) -> bool:
        """Whether its term has begun: everyone who was needed for that has come."""
        return self._started

    # ---- taking a run over

    def _take_over(self) -> None:
        """Finds out where the run is, and lets everyone who is here take part."""
        self.taking_over.find_out()
        for member in sorted(self.roster.following(), key=lambda member: member.version, reverse=True):
            self._readiness.receive(member)

    def learn(self, past: pb.Past) -> None:
        """What a trainer before this one knows of a closed step."""
        if not self._started:
            self.history.learn(past)
            self.signal.notify()
        elif past.step < self.closing.closed:
            self.history.remember(past)

    def held(self, member: Member, held: pb.Held) -> None:
        """What a member that comes (again) holds: it counts for whatever lacks a credit."""
        self.crew.heard(member, held)
        for past in held.past if not self._started else ():
            self.history.hear(past)

    def fenced(self, term: pb.Term) -> None:
        """Somebody shows a proven term that is not below this one."""
        self.fenced_by = term
        self.signal.notify()

    def _shown_a_term(self, term: pb.Term) -> None:
        """A callee that refuses this trainer, or a rival, shows a term, which must prove itself."""
        if self.admission.proves_higher(term):
            self.fenced(term)

    async def _watch_terms(self) -> None:
        await self.signal.wait_for(lambda: self.fenced_by is not None)
        assert self.fenced_by is not None
        raise FencedError(f"term {self.fenced_by.number} has been led by another; this trainer had {self.term.number}")

    def closed_marker(self) -> int:
        return self.closing.closed

    def past(self, step: int) -> list[pb.Past]:
        return self.history.tell(step, self.closing.committed, self.report())

    def _version_of(self, step: int) -> int:
        """The version at which step t computes: t, or max(0, t-1) with the one-step delayed update."""
        return max(0, step - self.manifest.settings.pipeline.staleness)

    def _window(self) -> int:
        return self._most_in_flight.size()

    def _drive(self, step: int, index: int) -> None:
        if self.driver.begin(step, index):
            drive = self._tasks.create_task(self.driver.drive(step, index, self._version_of(step)))
            self._drives[step, index] = drive

    def _rerun(self, step: int, index: int) -> None:
        if not self._finishing and self.ledger.is_open(step):
            self._drive(step, index)

    async def _close(self, step: Step, earlier: "asyncio.Task[None] | None") -> None:
        await self._finisher.finish(step, earlier)
        for key in [key for key in self._drives if key[0] < self.closing.closed]:
            self._drives.pop(key).cancel()  # a re-run that was no longer needed

    # ---- epochs and checkpoints

    def _reached(self) -> int:
        """The step that the last checkpoint goes back to."""
        return 0 if self._checkpointing is None else self._checkpointing.reached

    def tells_of(self, lineage: Lineage) -> None:
        """Before it begins, this term takes over the newest epoch; later, who holds another begins anew."""
        if lineage.number > self.beginning.epoch and not self._started:
            self.history.follow(lineage)
            self._readiness.take_over(lineage)

    # ---- what members say (Admission's Listener)

    def _joined(self, member: Member) -> None:
        self.emit(facts.joined(member))

    def leaves(self, member: Member, why: str, *, idle: bool) -> None:
        if idle:
            member.idle_since = asyncio.get_running_loop().time() if member.draining else None
            self.signal.notify()
        else:
            self._departures.begin(member, clean(why) or "it wants to")

    def refusal(self, peer: str) -> str:
        why = self.steering.banned.get(peer)
        return f"banned: {why}" if why else ""

    def reduced(self, member: Member, outcome: Outcome) -> None:
        self.closing.take_outcome(member, outcome, self.steps.get(outcome.step))

    def beaten(self, member: Member) -> None:
        if not self._started or self._departures.are_under_way:
            self.signal.notify()

    def lost(self, member: Member, why: str) -> None:
        self._departures.lose(member, why)

    # ---- the run around it

    def report(self) -> dict[str, object]:
        """What has happened so far (`report.py`)."""
        report = make_report(self.manifest, self.steps, self.roster, self.faults, self.heldout, self.meter)
        return {**report, "replicas": self.history.replicas} if self.history.replicas else report

    async def _say_farewell(self, detail: str) -> None:
        """Tells everyone that the run is over and waits, for a while, until they have hung up."""
        self._finishing = True
        self.admission.finish()
        for member in self.roster.live():
            await self.admission.tell(member, pb.Finish(detail=detail))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self.signal.wait_for(lambda: not self.admission.connected)
