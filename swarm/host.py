"""The stage host: serves the visits of one stage on one peer.

It owns the stage's visits, its gradients and its versions, and drives the pure parts (`visits.py`, `gradients.py`,
`routing.py`) between two seams: the transport (exchanges, `exchange.py`) and the backend on its device
(`compute.py`). It calls the next stage itself (`hop.py`), and talks to no trainer: that is `membership.py`'s.

A visit that cannot be taken is answered at once: Busy for want of a slot or a version, Refused{reason} for what must
not be. A visit that fails ends in Failed{stage, reason}, and its next Run starts it afresh.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ..errors import CodecError, FailedError, NonFiniteError, ProtocolError, RefusedError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .authority import Authority
from .backend import BackwardResult, Context, ForwardResult, StageBackend, StageInput, State
from .compute import BACKWARD, FORWARD, ComputeQueue, Device
from .exchange import Incoming, Pool
from .gradients import GradientStore
from .hop import DISTINCT_FAILURES, Hop
from .manifest import Manifest
from .messages import check_run, from_scalar, to_scalar
from .neighbours import Neighbours
from .versions import VersionStore
from .visits import Order, Visit, VisitKey, VisitTable, key_of

VERSION_PAUSE_SECONDS = 0.2
"""How long a Run waits for a version that is about to be made, before Busy{version}."""

BUSY_RETRY_MS = 50
FETCH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that just happened on this peer; fault injection hooks in here. `name`: queued, forward, below,
    backward, held, reduce, part, reduced, commit, applied."""

    name: str
    stage: int
    step: int
    index: int = -1


Observe = Callable[[Moment], None]


@dataclass
class StageHost:
    """One stage on one peer. `spawn` runs a visit's task under the peer's ownership."""

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

    def __post_init__(self) -> None:
        settings = self.manifest.settings
        self.visits = VisitTable(settings.pipeline.slots)
        self.gradients = GradientStore(self.backend, settings.limits.gradient_bytes)
        self.versions = VersionStore()
        self.queue = ComputeQueue(self.device)
        self.hop = Hop(self.pool, self.neighbours, settings.limits.payload_bytes)
        self._last_stage = self.stage == self.manifest.stages - 1

    # ---- the door

    async def serve_run(self, incoming: Incoming, run: pb.Run, payload: bytes) -> None:
        """Answers one Run exchange: admits, attaches, reports progress, and tells how the visit ended."""
        try:
            visit = await self._admit(run, payload, incoming.peer)
        except RefusedError as refusal:
            await incoming.channel.send(pb.Refused(reason=refusal.reason, detail=refusal.detail))
            return
        if isinstance(visit, pb.Busy):
            await incoming.channel.send(visit)
            return
        attachment = visit.attach(tuple(run.order))
        wants_gradient = bool(payload) and self.stage > 0 and run.mode == pb.TRAIN
        try:
            await incoming.channel.send(pb.Accepted())
            while True:
                await incoming.race(attachment.changed())
                changes = attachment.take()
                if attachment.superseded:
                    await incoming.channel.send(
                        pb.Failed(stage=self.stage, reason=pb.SUPERSEDED, detail="a later call took this visit")
                    )
                    return
                if visit.ended:
                    await self._tell_end(incoming, visit, wants_gradient)
                    return
                if changes:
                    await incoming.channel.send(pb.Progress(changes=changes))
        finally:
            visit.detach(attachment)

    async def _tell_end(self, incoming: Incoming, visit: Visit, wants_gradient: bool) -> None:
        if visit.failure is not None:
            failure = visit.failure
            told = pb.Failed(stage=failure.stage, reason=failure.reason, detail=failure.detail)
            await incoming.channel.send(told)
            return
        done = pb.Done(path=visit.path())
        if visit.loss is not None:
            done.loss.CopyFrom(to_scalar(visit.loss))
        await incoming.channel.send(done, (visit.input_gradient or b"") if wants_gradient else b"")

    async def _admit(self, run: pb.Run, payload: bytes, sender: str) -> Visit | pb.Busy:
        """The visit that this Run is about: attached to, or begun. Raises `RefusedError`, `ProtocolError`."""
        check_run(run, self.manifest.stages, self.manifest.microbatches, sender)
        if run.run != self.authority.run_id:
            raise self._refuse("WRONG_RUN", f"this peer serves run {self.authority.run_id[:12]}", sender)
        if run.first != self.stage:
            raise self._refuse("WRONG_STAGE", f"this peer serves stage {self.stage}, not {run.first}", sender)
        if run.epoch != 0:
            raise self._refuse("WRONG_EPOCH", f"the run is in epoch 0, not {run.epoch}", sender)
        self.authority.admit(run.term, sender)
        self.close(run.closed)
        key = key_of(run)
        if run.mode == pb.TRAIN and run.step < self.authority.closed:
            raise self._refuse("CLOSED", f"step {run.step} is closed", sender)
        self._check_input(run, payload, sender)
        known = self._known(key, run)
        if known is not None:
            return known
        if not await self.versions.wait_for(run.version, VERSION_PAUSE_SECONDS):
            return pb.Busy(retry_after_ms=BUSY_RETRY_MS, version=True)
        known = self._known(key, run)
        if known is not None:
            return known
        if not self.visits.has_room(run.step, self.authority.closed):
            return pb.Busy(retry_after_ms=BUSY_RETRY_MS)
        own = pb.PathEntry(stage=self.stage, member=self.member, peer=self.peer_id, phase=pb.QUEUED)
        visit = Visit(key, own, run, payload, tuple(run.order))
        visit.below.update((entry.stage, entry) for entry in run.hint if self.stage < entry.stage <= run.last)
        self.visits.add(visit)
        self.observe(Moment("queued", self.stage, key.step, key.index))
        self.spawn(self._work(visit))
        return visit

    def _known(self, key: VisitKey, run: pb.Run) -> Visit | None:
        """The visit to re-attach to; None if it must begin (also again, when its gradient was taken back)."""
        visit = self.visits.get(key)
        if visit is None:
            return None
        order: Order = tuple(run.order)
        if visit.attachment is not None and order <= visit.order:
            raise self._refuse("SUPERSEDED", f"order {order} does not exceed {visit.order}", "a caller")
        if visit.finished and run.mode == pb.TRAIN and not self.gradients.holds(key.epoch, key.step, key.index):
            return None
        return None if visit.failure is not None else visit

    def _check_input(self, run: pb.Run, payload: bytes, sender: str) -> None:
        length = run.samples * self.manifest.settings.data.sequence_length * 4
        if run.samples > self.manifest.settings.train.microbatch:
            raise ProtocolError(f"{sender} sent {run.samples} samples for a microbatch")
        if run.last == self.manifest.stages - 1 and len(run.labels) != length:
            raise ProtocolError(f"{sender} sent {len(run.labels)} bytes of labels; {length} are due")
        if self.stage == 0 and len(payload) != length:
            raise ProtocolError(f"{sender} sent {len(payload)} bytes of token ids; {length} are due")
        if self.stage > 0 and not payload and not run.input_holder:
            raise ProtocolError(f"{sender} sent neither input nor the name of its holder")

    def _refuse(self, reason: str, detail: str, sender: str) -> RefusedError:
        return RefusedError(reason, f"{detail} (asked by {sender})", self.peer_id)

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
        visit.end(failure)
        closed = visit.key.step < self.authority.closed
        if failure is not None or visit.key.mode == pb.EVAL or closed:
            self.visits.remove(visit)

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
        if key.step >= self.authority.closed:
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
        done, payload = await self.hop.call(
            request,
            visit.output,
            order=lambda: None if visit.orphaned else visit.order,
            hint=lambda: visit.below,
            hear=visit.hear,
            unusable=unusable,
        )
        visit.hear(done.path)
        if done.HasField("loss"):
            visit.loss = from_scalar(done.loss, "loss", "the stage below")
        return payload if visit.key.mode == pb.TRAIN else None

    async def _pull(self, run: pb.Run, kind: pb.Fetch.Kind, stage: int, holder: str, gone: str) -> bytes:
        """Reads from a neighbour what it sent for this microbatch. Raises `FailedError(gone)` if it is not there."""
        fetch = pb.Fetch(run=run.run, kind=kind, epoch=run.epoch, step=run.step, stage=stage, index=run.index)
        await self.neighbours.locate(stage, holder)
        try:
            return await fetch_payload(self.pool, holder, fetch, self.manifest.settings.limits.payload_bytes)
        except (UnreachableError, RefusedError, WireError) as error:
            raise FailedError(self.stage, gone, str(error)) from error

    def _enter(self, visit: Visit, phase: pb.Phase, name: str) -> None:
        visit.enter(phase)
        self.observe(Moment(name, self.stage, visit.key.step, visit.key.index))

    # ---- what others read

    async def serve_fetch(self, incoming: Incoming, fetch: pb.Fetch) -> None:
        """Answers a Fetch of what a visit sent."""
        visit = self.visits.get(VisitKey(fetch.epoch, pb.TRAIN, fetch.step, fetch.index))
        found: bytes | None = None
        if visit is not None and fetch.run == self.authority.run_id and fetch.stage == self.stage:
            found = visit.output if fetch.kind == pb.Fetch.OUTPUT else visit.input_gradient
        if found is None:
            detail = f"stage {self.stage} keeps nothing of step {fetch.step}, microbatch {fetch.index}"
            await incoming.channel.send(pb.Refused(reason=pb.NOT_KEPT, detail=detail))
            return
        category = "activation" if fetch.kind == pb.Fetch.OUTPUT else "gradient"
        await incoming.channel.send(pb.Fetched(), found, category=category)

    def close(self, closed: int) -> None:
        """Follows the trainer's closed marker: lets go of the visits, gradients and versions that nobody needs."""
        if not self.authority.advance(closed):
            return
        self.visits.close(0, closed)
        self.gradients.close(0, closed)
        staleness = self.manifest.settings.pipeline.staleness
        self.versions.drop_below(min(self.versions.latest, max(0, closed - staleness)))


async def fetch_payload(pool: Pool, peer: str, fetch: pb.Fetch, max_payload: int) -> bytes:
    """One Fetch exchange. Raises `UnreachableError`, `RefusedError`, `WireError`."""
    reply: object = None
    data = b""
    try:
        async with asyncio.timeout(FETCH_SECONDS), pool.exchange(peer) as channel:
            await channel.send(fetch)
            reply, data = await channel.receive(max_payload)
            if not isinstance(reply, pb.Fetched | pb.Refused):
                raise ProtocolError(f"{peer} answered a Fetch with {type(reply).__name__}")
    except TimeoutError as error:
        raise UnreachableError(f"{peer} did not answer a Fetch within {FETCH_SECONDS} s") from error
    if isinstance(reply, pb.Refused):
        raise RefusedError(pb.Reason.Name(reply.reason), reply.detail, peer)
    return data
