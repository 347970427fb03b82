"""The caller's side of a hop: find a peer of the next stage that does the rest of a microbatch, whoever fails on the
way.

Retry is local: a hop that fails is retried here, by the caller that still holds the coded tensor, at another replica;
hints lead past a dead peer to what is done below it. A failure of a stage further down is passed up unchanged (but what
the next stage calls malformed is first tried by another replica of this one), and superseded, fenced and closed are
never retried. An orphaned visit makes no retries.

A hop whose callee is slow in its own phases is hedged (`hedging.py`): a second replica is asked as well, with a higher
order, so that what is done below is re-attached. There are never more than two attempts at a time, and whichever is
done first is the answer; while one runs, the other's failure is not the end. The one that was overtaken is left: its
visit runs out orphaned, uncredited, and its gradient is taken back at the freeze.

Errors: `FailedError`, after which the caller's own visit has failed too.
"""

import asyncio
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import FailedError, RefusedError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .attempts import Answer, Attempt
from .exchange import Pool
from .hedging import Budget, OwnTimes
from .neighbours import Neighbours
from .visits import Order

BUSY_PAUSE_SECONDS = 0.05
NO_REPLICA_PAUSE_SECONDS = 0.2
CUT_OFF_SECONDS = 30.0
"""How long a peer tries in vain to reach anybody of the stage below before it leaves the visit to another replica."""

HEDGE_PAUSE_SECONDS = 0.25
"""How soon it is looked again whether a call is to be hedged, at the least."""

DISTINCT_FAILURES = 2
"""A visit that fails by its own numbers on this many replicas is not tried on a third; where there is only one, it is
tried so often."""

FINAL = frozenset({"SUPERSEDED", "FENCED", "CLOSED"})
NOT_HERE = frozenset({"NOT_READY", "WRONG_STAGE", "WRONG_RUN", "WRONG_EPOCH", "TRAINER_ALIVE"})
"""Refusals by a peer that does not serve this stage (any more): it is banned for a while."""

GONE = frozenset({"INPUT_GONE", "GRADIENT_GONE"})
"""Who was to give what the call needs has it no more: whoever is asked, the call cannot be done as it is."""

PASSED_UP = FINAL | GONE


@dataclass
class Hop:
    """Calls peers. `max_payload` bounds what is accepted in return, in bytes."""

    pool: Pool
    neighbours: Neighbours
    max_payload: int
    fenced: Callable[[pb.Term], None] = field(default=lambda term: None)
    own_times: dict[int, OwnTimes] = field(default_factory=dict)
    arrivals: dict[int, OwnTimes] = field(default_factory=dict)
    """Seconds from the beginning of a call until the callee had all of it."""

    budget: Budget = field(default_factory=Budget)

    async def call(
        self,
        request: pb.Run,
        payload: bytes,
        *,
        order: Callable[[], Order | None],
        hint: Callable[[], Mapping[int, pb.PathEntry]],
        hear: Callable[[Sequence[pb.PathEntry]], None],
        unusable: Collection[str] = (),
        patience: float = math.inf,
    ) -> tuple[pb.Done, bytes]:
        """Has stages `request.first`..`last` done: (Done, its payload).

        `order()` is the caller's own order, None once it is orphaned; `hint()` what it knows of the stages below;
        `hear` is told of every change. `unusable` peers have answered this call before with what could not be used.
        It fails with CUT_OFF after `patience` seconds in which nobody answered, or if all replicas are cut off from the
        stage below them.
        """
        return await _Calling(self, request, payload, order, hint, hear, tuple(unusable), patience).run()


@dataclass(eq=False)
class _Calling:
    """The attempts of one `Hop.call`. `tried`: peers asked since all were last busy; `unfit`: those that answered with
    what the visit itself may be to blame for, once for each time; `busy`: those that said last that they are."""

    hop: Hop
    request: pb.Run
    payload: bytes
    order: Callable[[], Order | None]
    hint: Callable[[], Mapping[int, pb.PathEntry]]
    hear: Callable[[Sequence[pb.PathEntry]], None]
    unusable: tuple[str, ...]
    patience: float

    def __post_init__(self) -> None:
        self.stage = self.request.first
        self.neighbours = self.hop.neighbours
        self.tried: dict[str, None] = dict.fromkeys(self.unusable)
        self.unfit: list[str] = []
        self.busy: set[str] = set()
        self.running: dict[Attempt, asyncio.Task[tuple[Answer, bytes]]] = {}
        self._numbers = itertools.count(1)
        self._hedge_from = 0.0
        self._unanswered_since: float | None = None
        self._cut_off: set[str] = set()
        self._goes_on: asyncio.Future[None] | None = None
        """Done when the clock of the only attempt, which stands still, goes on."""

    async def run(self) -> tuple[pb.Done, bytes]:
        try:
            while True:
                if not self.running:
                    await self._begin()
                await self._wait()
                for attempt, task in [pair for pair in self.running.items() if pair[1].done()]:
                    del self.running[attempt]
                    done = await self._take(attempt, task)
                    if done is not None:
                        return done
        finally:
            if self.running:
                for task in self.running.values():
                    task.cancel()
                await asyncio.gather(*self.running.values(), return_exceptions=True)

    async def _begin(self) -> None:
        """Starts the first attempt, or one more after all others have failed; waits until there is somebody to ask."""
        paused = False
        while True:
            if self.order() is None:
                raise FailedError(self.stage, "ORPHANED")
            peer = await self._pick()
            base = self.order()
            if peer is not None and base is not None and (paused or not self.neighbours.is_banned(self.stage, peer)):
                self._start(peer, base, is_hedge=False)
                return
            await self.neighbours.refresh(self.stage)
            await asyncio.sleep(NO_REPLICA_PAUSE_SECONDS)
            paused = True

    async def _pick(self) -> str | None:
        hinted = self.hint().get(self.stage)
        if hinted and hinted.peer not in self.tried and not self.neighbours.is_banned(self.stage, hinted.peer):
            await self.neighbours.locate(self.stage, hinted.peer)
            return hinted.peer
        peer = await self.neighbours.choose(self.stage, self.tried)
        if peer in self.tried and self.busy:  # all are: those that were busy, before one that would fail again
            others = set(self.neighbours.peers(self.stage)).difference(self.busy)
            peer = await self.neighbours.choose(self.stage, others)
        return peer

    def _start(self, peer: str, base: Order, *, is_hedge: bool) -> None:
        request = pb.Run()
        request.CopyFrom(self.request)
        request.ClearField("order")
        request.order.extend((*base, next(self._numbers)))
        request.ClearField("hint")
        known = self.hint()
        request.hint.extend(known[below] for below in sorted(known) if below > self.stage)
        self.tried[peer] = None
        attempt = Attempt(
            pool=self.hop.pool,
            call=self.neighbours.call(self.stage, peer),
            request=request,
            payload=self.payload,
            max_payload=self.hop.max_payload,
            hear=self._heard,
            again=lambda: next(self._numbers),
            is_hedge=is_hedge,
        )
        self.running[attempt] = asyncio.create_task(attempt.run())

    # ---- hedging

    async def _wait(self) -> None:
        """Returns when an attempt has ended; until then hedges it once it is due."""
        while True:
            waited_for: list[asyncio.Future[Any]] = [*self.running.values()]
            if len(self.running) == 1 and all(attempt.stands_still for attempt in self.running):
                self._goes_on = asyncio.get_running_loop().create_future()
                waited_for.append(self._goes_on)
            await asyncio.wait(waited_for, timeout=self._look_again(), return_when=asyncio.FIRST_COMPLETED)
            self._goes_on = None
            if any(task.done() for task in self.running.values()):
                return
            self._hedge()

    def _heard(self, changes: Sequence[pb.PathEntry]) -> None:
        self.hear(changes)
        goes_on = self._goes_on
        if goes_on is not None and not goes_on.done() and not all(attempt.stands_still for attempt in self.running):
            goes_on.set_result(None)

    def _look_again(self) -> float | None:
        """Seconds after which the only attempt may be due; None while its clock stands still."""
        if len(self.running) > 1:
            return None
        now = asyncio.get_running_loop().time()
        (attempt,) = self.running
        if attempt.stands_still:
            return None
        left = self._times.limit_of(attempt.call.expected) - attempt.clock.own(now)
        if attempt.arrived is None:
            left = min(left, self._arrivals.limit - (0.0 if attempt.way_from is None else now - attempt.way_from))
        return max(HEDGE_PAUSE_SECONDS, left, self._hedge_from - now)

    def _hedge(self) -> None:
        now = asyncio.get_running_loop().time()
        (attempt,) = self.running
        base = self.order()
        if base is None or now < self._hedge_from or now < self._hedged_at(attempt, now):
            return
        asked = {*self.unusable, attempt.peer}
        peer = self.neighbours.another(self.stage, {*asked, *self.unfit}) or self.neighbours.another(self.stage, asked)
        limit = (self._arrivals if attempt.arrived is None else self._times).limit
        budget = self.hop.budget.spend(now, limit)
        if peer is not None and budget is not None:
            self.hop.budget = budget
            self._hedge_from = now + HEDGE_PAUSE_SECONDS
            self._start(peer, base, is_hedge=True)

    def _hedged_at(self, attempt: Attempt, now: float) -> float:
        """From when on it is beyond its limit, if it goes on as it is."""
        if attempt.arrived is None:
            return math.inf if attempt.way_from is None else attempt.way_from + self._arrivals.limit
        return now + self._times.limit_of(attempt.call.expected) - attempt.clock.own(now)

    @property
    def _times(self) -> OwnTimes:
        return self.hop.own_times.setdefault(self.stage, OwnTimes())

    @property
    def _arrivals(self) -> OwnTimes:
        return self.hop.arrivals.setdefault(self.stage, OwnTimes(float("inf")))

    # ---- answers

    async def _take(self, attempt: Attempt, task: "asyncio.Task[tuple[Answer, bytes]]") -> tuple[pb.Done, bytes] | None:
        """What an attempt has brought: Done, or None if the hop goes on. Raises `FailedError` if it does not."""
        now = asyncio.get_running_loop().time()
        try:
            reply, data = task.result()
        except (UnreachableError, WireError):
            attempt.call.failed(now)
            if self._unanswered_since is None:
                self._unanswered_since = attempt.call.began
            if not self.running and now - self._unanswered_since > self.patience:
                raise FailedError(self.stage, "CUT_OFF") from None
            return None
        self._unanswered_since = None
        self.busy.discard(attempt.peer)
        if isinstance(reply, pb.Done):
            self._note_done(attempt, now)
            return reply, data
        if isinstance(reply, pb.Busy):
            self.busy.add(attempt.peer)
            if not self.running and len(self.tried) >= self.neighbours.usable(self.stage):
                self.tried = dict.fromkeys((*self.unusable, *self.unfit))
                await self.neighbours.refresh(self.stage)
                await asyncio.sleep(max(BUSY_PAUSE_SECONDS, min(reply.retry_after_ms, 1000) / 1000))
            return None
        error = self._judge(attempt.peer, reply)
        if isinstance(error, RefusedError) and error.reason in NOT_HERE:
            attempt.call.failed(now)
            return None
        if isinstance(error, FailedError) and error.reason in GONE:
            raise error
        if isinstance(error, FailedError) and (error.stage, error.reason) == (self.stage, "CUT_OFF"):
            attempt.call.failed(now)
            self._cut_off.add(attempt.peer)
            if not self.running and len(self._cut_off) >= self.neighbours.known(self.stage):
                raise error
            return None
        # Several below could do nothing with what it sent on: another one may send better.
        sent_garbage = isinstance(error, FailedError) and (error.stage, error.reason) == (self.stage + 1, "MALFORMED")
        if not isinstance(error, FailedError) or error.reason != "ORPHANED":
            self.unfit.append(attempt.peer)
        if self.running:
            return None
        passed_up = isinstance(error, FailedError) and (error.stage != self.stage or error.reason in PASSED_UP)
        if passed_up and not sent_garbage:
            raise error
        enough = min(DISTINCT_FAILURES, max(1, self.neighbours.usable(self.stage)))
        if len(self.unfit) >= DISTINCT_FAILURES and len(set(self.unfit)) >= enough:
            if isinstance(error, FailedError):
                raise error
            raise FailedError(self.stage, error.reason, str(error)) from error
        return None

    def _note_done(self, attempt: Attempt, now: float) -> None:
        self.hop.budget = self.hop.budget.after_call()
        if attempt.arrived is not None:
            self._arrivals.add(attempt.way())
        if attempt.clock.computed:
            self._times.add(attempt.clock.own(now))
        if attempt.is_hedge:
            for other in self.running:
                other.call.overtaken(now)

    def _judge(self, peer: str, reply: pb.Refused | pb.Failed) -> FailedError | RefusedError:
        """The error of an unfavourable reply, raised if it is the end of the other attempt too."""
        error: FailedError | RefusedError
        if isinstance(reply, pb.Failed):
            error = FailedError(reply.stage, pb.Reason.Name(reply.reason), reply.detail)
        else:
            error = RefusedError(pb.Reason.Name(reply.reason), reply.detail, peer)
            if reply.HasField("proof"):
                self.hop.fenced(reply.proof)
            if error.reason in FINAL:
                error = FailedError(self.stage, error.reason, error.detail)
        if isinstance(error, FailedError) and error.reason in ("FENCED", "CLOSED"):
            raise error
        return error
