"""The stage host: serves the visits of one stage on one peer.

It owns the stage's visits, its gradients and its versions, and drives the pure parts (`visits.py`, `gradients.py`,
`routing.py`) between two seams: the transport (exchanges, `exchange.py`) and the backend on its device
(`compute.py`). It calls the next stage itself (`hop.py`), and talks to no trainer: that is `membership.py`'s.

A visit that cannot be taken is answered at once: Busy for want of a slot or a version, Refused{reason} for what must
not be. A visit that fails ends in Failed{stage, reason}, and its next Run starts it afresh.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import (
    CodecError,
    FailedError,
    FittingError,
    NonFiniteError,
    RefusedError,
    UnreachableError,
    WireError,
)
from ..protos import swarm_pb2 as pb
from .authority import Authority, to_refused
from .backend import BackwardResult, Context, ForwardResult, StageBackend, StageInput, State
from .compute import BACKWARD, FORWARD, ComputeQueue, Device
from .conditions import Signal
from .door import Door
from .epochs import Lineage
from .exchange import Pool
from .fetching import fetch
from .gradients import GradientStore
from .hop import CUT_OFF_SECONDS, DISTINCT_FAILURES, Hop
from .kept import KeptStore, SpillFile
from .manifest import Manifest
from .messages import from_scalar, to_scalar
from .neighbours import Neighbours
from .recollection import Recollection
from .serving import Incoming
from .snapshots import Snapshots
from .versions import VersionStore
from .visits import Attachment, Order, Visit, VisitKey, VisitTable, key_of
from .workload import BUSY_RETRY_MS, Workload

VERSION_PAUSE_SECONDS = 0.2
"""How long a Run waits for a version that is about to be made, before Busy{version}."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that just happened on this peer; fault injection hooks in here. `name`: queued, forward, below,
    backward, held, credited, reduce, part, reduced, commit, applied."""

    name: str
    stage: int
    step: int
    index: int = -1


Observe = Callable[[Moment], None]


@dataclass
class StageHost:
    """One stage on one peer. `spawn` runs a visit's task under the peer's ownership; `spill` is where what visits have
    sent goes when it does not fit into memory."""

    manifest: Manifest
    authority: Authority
    stage: int
    member: int
    peer_id: str
    backend: StageBackend
    device: Device
    pool: Pool
    neighbours: Neighbours
    spawn: Callable[[Coroutine[Any, Any, None]], object]
    observe: Observe = field(default=lambda moment: None)
    spill: SpillFile | None = None

    def __post_init__(self) -> None:
        settings = self.manifest.settings
        self.door = Door(self.manifest, self.authority, self.stage, self.peer_id, self.close)
        self.visits = VisitTable(min(settings.pipeline.slots, self.backend.slots or settings.pipeline.slots))
        self.gradients = GradientStore(self.backend, settings.limits.gradient_bytes)
        self.kept = KeptStore(settings.limits.visit_bytes, settings.limits.spill_bytes, self.spill)
        self.versions = VersionStore()
        self.workload = Workload()
        self.queue = ComputeQueue(self.device, self.workload.measured)
        self.hop = Hop(self.pool, self.neighbours, settings.limits.payload_bytes)
        self.recollection = Recollection()
        self.lineage = Lineage()
        self._last_stage = self.stage == self.manifest.stages - 1
        limit = settings.limits.payload_bytes
        self.snapshots = Snapshots(self.authority.run_id, self.stage, self.backend, self.device, limit)
        self.until: int | None = None
        """It is about to leave, and takes no visits of this step and later."""

        self.ended = Signal()
        """Notified when a visit has ended, or steps are closed."""

        self.busy = 0
        """Runs that were answered Busy."""

        self.refused: Counter[str] = Counter()
        """Runs that were refused, by their reasons."""

        self.counted = 0
        """Microbatches of committed steps with this peer's work in them."""

        self.loss: float | None = None
        """Of the last step that was committed here, for people to read."""

    # ---- its place in the run

    def rebadge(self, member: int) -> None:
        """The same process has got a new place in the run; what it holds stays."""
        self.member = member
        self.visits.rebadge(member)

    def drop_state(self) -> None:
        """Forgets what it holds of the model: it is wrong, or too old to be brought up to date."""
        self.visits = VisitTable(self.visits.slots)
        self.gradients = GradientStore(self.backend, self.manifest.settings.limits.gradient_bytes)
        self.kept.clear()
        self.versions = VersionStore()
        self.recollection.commits.clear()
        self.snapshots.clear()

    def enter(self, lineage: Lineage) -> None:
        """The run has gone back to a checkpoint: what this peer holds of the steps since then is no part of it."""
        self.drop_state()
        self.recollection.go_back(lineage.first)
        self.lineage = lineage
        self.snapshots.epoch = lineage.number
        self.authority.enter(lineage.number)

    def held(self, kept: Iterable[tuple[int, int, int]]) -> pb.Held:
        """What this peer holds of the open steps; `kept`: the reductions, as (step, term, attempt)."""
        message = pb.Held(closed=self.authority.closed, founders=self.authority.founders)
        message.commits.extend(commit for _, commit in sorted(self.recollection.commits.items()))
        message.past.extend(self.recollection.past.values())
        message.kept.extend(pb.Held.Kept(step=step, term=term, attempt=attempt) for step, term, attempt in kept)
        for (epoch, step), indices in self.gradients.held().items():
            if epoch != self.authority.epoch:
                continue
            entry = pb.Held.Open(epoch=epoch, step=step, indices=indices)
            entry.taken_back = self.gradients.taken_back(epoch, step)
            for index in indices:
                visit = self.visits.get(VisitKey(epoch, pb.TRAIN, step, index))
                if visit is not None and visit.loss is not None:
                    entry.losses.append(pb.Held.Loss(index=index, loss=to_scalar(visit.loss)))
            message.steps.append(entry)
        return message

    # ---- how loaded it is

    def load(self) -> pb.Load:
        """What callers are told of this peer's load."""
        return self.workload.load(self.visits.phases, self.neighbours.below(self.stage + 1))

    # ---- the door

    def full(self, run: pb.Run, sender: str) -> pb.Busy | None:
        """Busy, of a Run whose payload is still to come, if there is no room for the visit that it would begin."""
        has_room = self.visits.has_room(run.step, max(self.authority.closed, run.closed))
        if has_room or self.visits.get(key_of(run)) is not None:
            return None
        try:
            self.door.check(run, sender)
        except (RefusedError, WireError):
            return None  # it is refused once all of it is here
        self.busy += 1
        return self._busy()

    def _busy(self) -> pb.Busy:
        return pb.Busy(retry_after_ms=self.workload.retry_after(), load=self.load())

    async def serve_run(self, incoming: Incoming, run: pb.Run, payload: bytes) -> None:
        """Answers one Run exchange: admits, attaches, reports progress, and tells how the visit ended."""
        try:
            visit = await self._admit(run, payload, incoming.peer)
        except RefusedError as refusal:
            self.refused[refusal.reason] += 1
            await incoming.channel.send(to_refused(refusal, self.authority))
            return
        if isinstance(visit, pb.Busy):
            self.busy += 1
            await incoming.channel.send(visit)
            return
        if visit.finished and any(stage > self.stage for stage in run.lacking):
            self.visits.reopen(visit, run)
            self.spawn(self._ask_again(visit))
        attachment = visit.attach(tuple(run.order))
        try:
            await asyncio.sleep(0)  # a visit that has just begun may be computing by then
            await incoming.channel.send(pb.Accepted(changes=attachment.take(), load=self.load()))
            while not attachment.superseded and not visit.ended:
                await incoming.race(attachment.changed)
                changes = attachment.take()
                if changes and not attachment.superseded and not visit.ended:
                    await incoming.channel.send(pb.Progress(changes=changes, load=self.load()))
            if attachment.superseded:
                detail = "a later call took this visit"
                await incoming.channel.send(pb.Failed(stage=self.stage, reason=pb.SUPERSEDED, detail=detail))
            else:
                await self._tell_end(incoming, visit, attachment if self._wants_gradient(run, payload) else None)
        finally:
            visit.detach(attachment)

    def _wants_gradient(self, run: pb.Run, payload: bytes) -> bool:
        """Whoever sent the input gets its gradient."""
        return bool(payload) and self.stage > 0 and run.mode == pb.TRAIN

    async def _tell_end(self, incoming: Incoming, visit: Visit, wanted: Attachment | None) -> None:
        if visit.failure is not None:
            failure = visit.failure
            await incoming.channel.send(pb.Failed(stage=failure.stage, reason=failure.reason, detail=failure.detail))
            return
        done = pb.Done(path=visit.path(), load=self.load())
        if visit.loss is not None:
            done.loss.CopyFrom(to_scalar(visit.loss))
        await incoming.channel.send(done, (wanted.input_gradient if wanted else None) or b"")

    async def _admit(self, run: pb.Run, payload: bytes, sender: str) -> Visit | pb.Busy:
        """The visit that this Run is about: attached to, or begun. Raises `RefusedError`, `ProtocolError`."""
        self.door.check(run, sender)
        key = key_of(run)
        known = await self._attachable(key, run, payload)
        if known is not None:
            return known
        if self.until is not None and run.mode == pb.TRAIN and run.step >= self.until:
            raise self.door.refusal("NOT_READY", "this peer is leaving", sender)
        if not await self.versions.wait_for(run.version, VERSION_PAUSE_SECONDS):
            return pb.Busy(retry_after_ms=BUSY_RETRY_MS, version=True)
        known = await self._attachable(key, run, payload)
        if known is not None:
            return known
        if not self.visits.has_room(run.step, self.authority.closed):
            return self._busy()
        own = pb.PathEntry(stage=self.stage, member=self.member, peer=self.peer_id, phase=pb.QUEUED)
        visit = Visit(key, own, run, payload, tuple(run.order))
        visit.below.update((entry.stage, entry) for entry in run.hint if self.stage < entry.stage <= run.last)
        earlier = self.visits.get(key)
        if earlier is not None:
            visit.loss = earlier.loss
        self.visits.add(visit)
        self.observe(Moment("queued", self.stage, key.step, key.index))
        self.spawn(self._work(visit))
        return visit

    async def _attachable(self, key: VisitKey, run: pb.Run, payload: bytes) -> Visit | None:
        """The visit to re-attach to, with what it sent at hand as far as this Run needs it; None if it must begin.

        One of which that was evicted begins again: its gradient stands, and the rest is computed anew.
        """
        while True:
            visit = self._known(key, run)
            if visit is None or not visit.finished:
                return visit
            below = any(stage > self.stage for stage in run.lacking)
            needed = {pb.Fetch.OUTPUT: below, pb.Fetch.INPUT_GRADIENT: below or self._wants_gradient(run, payload)}
            needed[pb.Fetch.INPUT_GRADIENT] &= self.stage > 0
            found = {kind: await self.kept.get(key, kind) for kind, is_needed in needed.items() if is_needed}
            if self._known(key, run) is visit and visit.finished:
                if None in found.values():
                    return None
                visit.output = found.get(pb.Fetch.OUTPUT)
                visit.input_gradient = found.get(pb.Fetch.INPUT_GRADIENT)
                return visit

    def _known(self, key: VisitKey, run: pb.Run) -> Visit | None:
        """The visit to re-attach to; None if it must begin (also again, when its gradient was taken back)."""
        visit = self.visits.get(key)
        if visit is None:
            return None
        order: Order = tuple(run.order)
        if visit.attachment is not None and order <= visit.order:
            raise self.door.refusal("SUPERSEDED", f"order {order} does not exceed {visit.order}", "a caller")
        if visit.finished and run.mode == pb.TRAIN and not self.gradients.holds(key.epoch, key.step, key.index):
            return None
        return None if visit.failure is not None else visit

    # ---- the work

    async def _work(self, visit: Visit) -> None:
        """Runs one visit to its end; every way in which it can fail ends in `visit.end(failure)`."""
        failure: FailedError | None = None
        try:
            await self._compute(visit)
        except FailedError as error:
            failure = error
        except NonFiniteError as error:
            failure = FailedError(self.stage, "NON_FINITE", str(error))
        except (CodecError, WireError) as error:
            failure = FailedError(self.stage, "MALFORMED", str(error))
        except FittingError as error:
            await self._end(visit, FailedError(self.stage, "INTERNAL", str(error)))
            if error.final:
                raise
            return
        await self._end(visit, failure)

    async def _end(self, visit: Visit, failure: FailedError | None) -> None:
        """Ends a visit: what it sent is kept if anybody may ask for it, and then its caller is told."""
        if failure is None and self._is_asked_for(visit) and self.visits.get(visit.key) is visit:
            for kind, data in ((pb.Fetch.OUTPUT, visit.output), (pb.Fetch.INPUT_GRADIENT, visit.input_gradient)):
                if data is not None:
                    await self.kept.put(visit.key, kind, data)
        visit.end(failure)
        self.ended.notify()
        if (failure is not None or not self._is_asked_for(visit)) and self.visits.get(visit.key) is visit:
            self.visits.remove(visit)
            self.kept.drop(visit.key)

    def _is_asked_for(self, visit: Visit) -> bool:
        """Whether anybody may ask for what a visit has done: not of an evaluation, nor of a step that is closed."""
        return visit.key.mode == pb.TRAIN and self._is_open(visit.key)

    def _is_open(self, key: VisitKey) -> bool:
        return (key.epoch, key.step) >= (self.authority.epoch, self.authority.closed)

    async def _ask_again(self, visit: Visit) -> None:
        """Has stages below done again whose holders are gone; what this one did stands."""
        failure: FailedError | None = None
        try:
            await self._call_below(visit, ())
        except FailedError as error:
            failure = error
        await self._end(visit, failure)

    async def _compute(self, visit: Visit) -> None:
        run, key = visit.run, visit.key
        train = key.mode == pb.TRAIN
        if self.stage > 0 and not visit.data:
            visit.data = await self._pull(run, pb.Fetch.OUTPUT, self.stage - 1, run.input_holder, "INPUT_GONE")
        state = self.versions.get(run.version)
        if state is None:
            raise FailedError(self.stage, "NOT_KEPT", f"version {run.version} is no longer kept")
        labels = run.labels if self._last_stage else None
        inputs = StageInput(key.step, key.index, run.samples, visit.data, labels)
        forward: ForwardResult = await self.queue.run(
            FORWARD,
            key.step,
            key.index,
            lambda: self.backend.forward(state, inputs, train=train),
            lambda: self._enter(visit, pb.FORWARD, "forward"),
        )
        visit.output, visit.loss = forward.output, forward.loss
        if not self._last_stage and run.last > self.stage:
            backward = await self._go_on_below(visit, state, forward.context)
        elif self._last_stage:
            backward = await self._backward(visit, state, forward.context, None) if train else None
        else:
            below = self.stage + 1
            output_gradient = await self._pull(
                run, pb.Fetch.INPUT_GRADIENT, below, run.gradient_holder, "GRADIENT_GONE"
            )
            try:
                backward = await self._backward(visit, state, forward.context, output_gradient)
            except WireError as error:
                raise FailedError(self.stage, "GRADIENT_GONE", f"what its holder sent is unusable: {error}") from error
        if backward is None:
            return
        visit.input_gradient = backward.input_gradient
        if self._is_open(key):
            self.gradients.add(key.epoch, key.step, key.index, backward.gradient)
        self._enter(visit, pb.HELD, "held")

    async def _go_on_below(self, visit: Visit, state: State, context: Context) -> BackwardResult | None:
        """Has the stages below done, then this one's backward; None for an evaluation.

        A gradient that cannot be used is asked for again from another peer, which re-attaches to what is done below it.
        """
        unusable: dict[str, WireError] = {}
        while True:
            self._enter(visit, pb.BELOW, "below")
            output_gradient = await self._call_below(visit, unusable)
            if visit.key.mode != pb.TRAIN:
                return None
            if self.queue.busy:
                # A caller that took this for waiting below would never hedge a visit on a device that hangs.
                visit.enter(pb.RETURNED)
            try:
                return await self._backward(visit, state, context, output_gradient)
            except WireError as error:
                sender = visit.below.pop(self.stage + 1, pb.PathEntry()).peer
                if sender in unusable or len(unusable) + 1 >= DISTINCT_FAILURES:
                    raise FailedError(self.stage + 1, "MALFORMED", str(error)) from error
                unusable[sender] = error

    async def _backward(self, visit: Visit, state: State, context: Context, coded: bytes | None) -> BackwardResult:
        return await self.queue.run(
            BACKWARD,
            visit.key.step,
            visit.key.index,
            lambda: self.backend.backward(state, context, coded),
            lambda: self._enter(visit, pb.BACKWARD, "backward"),
        )

    async def _call_below(self, visit: Visit, unusable: Collection[str]) -> bytes | None:
        """Has the rest of the range done by the next stage; returns the coded gradient of this stage's output."""
        request = pb.Run()
        request.CopyFrom(visit.run)
        request.first = self.stage + 1
        request.closed = self.authority.closed
        request.input_holder = ""
        assert visit.output is not None
        try:
            done, payload = await self.hop.call(
                request,
                visit.output,
                order=lambda: None if visit.orphaned else visit.order,
                hint=lambda: visit.below,
                hear=visit.hear,
                unusable=unusable,
                patience=CUT_OFF_SECONDS,
            )
        except FailedError as error:
            if (error.stage, error.reason) != (self.stage + 1, "CUT_OFF"):
                raise
            detail = f"nobody of stage {error.stage} can be reached from here"
            raise FailedError(self.stage, "CUT_OFF", detail) from error
        visit.hear(done.path)
        if done.HasField("loss"):
            visit.loss = from_scalar(done.loss, "loss", "the stage below")
        return payload if visit.key.mode == pb.TRAIN else None

    async def _pull(self, run: pb.Run, kind: pb.Fetch.Kind, stage: int, holder: str, gone: str) -> bytes:
        """Reads from a neighbour what it sent for this microbatch. Raises `FailedError(gone)` if it is not there."""
        question = pb.Fetch(run=run.run, kind=kind, epoch=run.epoch, step=run.step, stage=stage, index=run.index)
        await self.neighbours.locate(stage, holder)
        try:
            _, data = await fetch(self.pool, holder, question, self.manifest.settings.limits.payload_bytes)
            return data
        except (UnreachableError, RefusedError, WireError) as error:
            raise FailedError(self.stage, gone, str(error)) from error

    def _enter(self, visit: Visit, phase: pb.Phase, name: str) -> None:
        visit.enter(phase)
        self.observe(Moment(name, self.stage, visit.key.step, visit.key.index))

    # ---- what others read

    async def serve_fetch(self, incoming: Incoming, question: pb.Fetch) -> None:
        """Answers a Fetch of what a visit sent."""
        key = VisitKey(question.epoch, pb.TRAIN, question.step, question.index)
        visit = self.visits.get(key)
        found: bytes | None = None
        if visit is not None and question.run == self.authority.run_id and question.stage == self.stage:
            found = visit.output if question.kind == pb.Fetch.OUTPUT else visit.input_gradient
            if found is None:
                found = await self.kept.get(key, question.kind)
        if found is None:
            detail = f"stage {self.stage} keeps nothing of step {question.step}, microbatch {question.index}"
            await incoming.channel.send(pb.Refused(reason=pb.NOT_KEPT, detail=detail))
            return
        category = "activation" if question.kind == pb.Fetch.OUTPUT else "gradient"
        await incoming.channel.send(pb.Fetched(), found, category=category)

    def close(self, closed: int) -> None:
        """Follows the trainer's closed marker: lets go of the visits, gradients and versions that nobody needs."""
        if not self.authority.advance(closed):
            return
        self.ended.notify()
        epoch = self.authority.epoch
        self.visits.close(epoch, closed)
        self.kept.close(epoch, closed)
        self.gradients.close(epoch, closed)
        staleness = self.manifest.settings.pipeline.staleness
        self.versions.drop_below(min(self.versions.latest, max(0, closed - staleness)))
        self.recollection.close(closed)
