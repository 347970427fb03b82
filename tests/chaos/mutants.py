"""The rules of the protocol, each broken on purpose: a rule that no schedule needs would prove nothing.

A mutant replaces one method of the product by one that leaves a rule out. `test_mutants.py` requires that some seed
notices each of them.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from swarm_peer.errors import FailedError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm.admission import Admission
from swarm_peer.swarm.attempts import Answer, Attempt
from swarm_peer.swarm.authority import Authority, to_term
from swarm_peer.swarm.backend import State
from swarm_peer.swarm.closing import Closing, Unit
from swarm_peer.swarm.compute import ComputeQueue
from swarm_peer.swarm.crew import Crew
from swarm_peer.swarm.driving import Driver
from swarm_peer.swarm.gradients import Frozen, GradientStore
from swarm_peer.swarm.hop import Hop, _Calling
from swarm_peer.swarm.host import StageHost
from swarm_peer.swarm.keys import ProvenTerms
from swarm_peer.swarm.ledger import Ledger
from swarm_peer.swarm.membership import Membership
from swarm_peer.swarm.presence import Presence
from swarm_peer.swarm.reduction import Reducer
from swarm_peer.swarm.roster import Member, Roster
from swarm_peer.swarm.torch_backend import TorchBackend
from swarm_peer.swarm.trainer import Trainer
from swarm_peer.swarm.versions import VersionStore
from swarm_peer.swarm.visits import Order, Visit, VisitKey, VisitTable

from tests.chaos import written
from tests.chaos.schedules import Schedule, draw_schedule, draw_wrong_state
from tests.chaos.virtual import VIRTUAL_SECONDS, Chaos


@dataclass(frozen=True)
class Mutant:
    """`rule`: what it breaks, in the words of the protocol; `patches`: (class, attribute, replacement). `costs`: what
    the rule saves, where the promises are kept without it, only dearer. `on_torch`: the rule is the torch backend's:
    schedules are run on the tiny model. `draw`: which schedules; after `limit` virtual seconds one has stuck."""

    rule: str
    patches: tuple[tuple[type, str, Any], ...]
    costs: Callable[[Chaos], float] | None = None
    on_torch: bool = False
    draw: Callable[[int], Schedule] = draw_schedule
    limit: float = VIRTUAL_SECONDS

    @contextmanager
    def broken(self) -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, replacement in self.patches:
                stack.enter_context(patch.object(owner, name, replacement))
            yield


# ---- what a replica does with gradients


def keep_what_is_lacking(self: GradientStore, epoch: int, step: int, credited: Sequence[int]) -> Frozen:
    frozen = _freeze(self, epoch, step, credited)
    if not frozen.lacking:
        return frozen
    held = tuple(index for index in credited if index not in frozen.lacking)
    return Frozen(tuple(credited), _freeze(self, epoch, step, held).gradient, ())


_freeze = GradientStore.freeze


class LateSum:
    """A contribution that is added up when it is used, not when it was frozen."""

    def __init__(self, store: GradientStore, key: tuple[int, int]) -> None:
        self.store, self.key = store, key

    def __getitem__(self, where: slice) -> Any:
        entry = self.store._steps[self.key]
        addends = [entry.apart[index] for index in sorted(entry.apart)]
        if entry.summed is not None:
            addends.append(entry.summed)
        return self.store._backend.add(addends)[where]  # type: ignore[index]


def freeze_late(self: GradientStore, epoch: int, step: int, credited: Sequence[int]) -> Frozen:
    frozen = _freeze(self, epoch, step, credited)
    if frozen.gradient is None:
        return frozen
    return Frozen(frozen.indices, LateSum(self, (epoch, step)), frozen.lacking)


_add, _known = GradientStore.add, StageHost._known


def add_again(self: GradientStore, epoch: int, step: int, index: int, gradient: Any) -> None:
    entry = self._steps.get((epoch, step))
    if entry is not None and index in entry.apart:
        gradient = self._backend.add([entry.apart.pop(index), gradient])
    _add(self, epoch, step, index, gradient)


def run_again(self: StageHost, key: VisitKey, run: pb.Run) -> Visit | None:
    visit = _known(self, key, run)
    return None if visit is not None and visit.finished else visit


def answer_from_the_result(self: StageHost, key: VisitKey, run: pb.Run) -> Visit | None:
    visit = self.visits.get(key)
    return visit if visit is not None and visit.finished else _known(self, key, run)


def known_in_any_order(self: StageHost, key: VisitKey, run: pb.Run) -> Visit | None:
    visit = self.visits.get(key)
    if visit is None or visit.attachment is None:
        return _known(self, key, run)
    order, visit.order = visit.order, ()
    try:
        return _known(self, key, run)
    finally:
        visit.order = order


async def answer_what_is_gone(self: StageHost, key: VisitKey, run: pb.Run, payload: bytes) -> Visit | None:
    visit = self._known(key, run)
    if visit is not None and visit.finished:
        visit.output = await self.kept.get(key, pb.Fetch.OUTPUT) or b""
        visit.input_gradient = await self.kept.get(key, pb.Fetch.INPUT_GRADIENT) or b""
    return visit


# ---- who is credited


_credit = Driver._credit


def credit_the_dead(self: Driver, step: int, index: int, done: pb.Done, last: int) -> None:
    for entry in done.path:
        if entry.phase == pb.HELD:
            self.ledger.credit(step, entry.stage, index, entry.member)
    _credit(self, step, index, done, last)


def credit_everyone(self: Ledger, step: int, stage: int, index: int, member: int) -> bool:
    if _first_credit(self, step, stage, index, member):
        return True
    second = self.__dict__.setdefault("second", {})
    if self.holder(step, stage, index) not in (None, member):
        second[step, stage, index] = member
    return False


def indices_of_everyone(self: Ledger, step: int, stage: int, member: int) -> tuple[int, ...]:
    second = self.__dict__.get("second", {})
    also = [key[2] for key, holder in second.items() if (*key[:2], holder) == (step, stage, member)]
    return tuple(sorted({*_indices(self, step, stage, member), *also}))


_first_credit, _indices = Ledger.credit, Ledger.indices


def no_widening(self: Driver, step: int, index: int, gap: tuple[int, int], wider: tuple[int, int]) -> tuple[int, int]:
    return gap


def drive_twice(self: Driver, step: int, index: int) -> bool:
    self._driven.setdefault(step, set()).add(index)
    self.steps[step].issued.add(index)
    self.in_flight += 1
    return True


# ---- reductions and Commits


async def newest_attempt(self: Reducer, commit: pb.Commit, choice: pb.Choice) -> dict[str, tuple[bytes, ...]]:
    kept = [key for key in self.kept if key.step == commit.step]
    if not kept:
        return await _chosen(self, commit, choice)
    return {name: made.parts for name, made in self._kept[max(kept)].items()}


_chosen = Reducer.chosen


_apply = Membership._apply


async def forget_when_applied(self: Membership, commit: pb.Commit) -> bool:
    applied = await _apply(self, commit)
    if applied:
        self.reducer._kept.clear()
    return applied


def applied_by_anyone(self: Closing, version: int, units: Sequence[Unit]) -> bool:
    stages = [stage for unit in units for stage in unit.stages]
    return all(any(member.version >= version for member in self.roster.ready(stage)) for stage in stages)


async def nothing(*arguments: Any) -> None:
    return None


async def sleep_for_ever(self: Any) -> None:
    await asyncio.sleep(math.inf)


def keep_credits(self: Ledger, member: int) -> list[tuple[int, int]]:
    return []


# ---- versions and pacing


def any_version(self: VersionStore, version: int) -> State | None:
    return self._states.get(version, self._states.get(self.latest))


async def wait_for_any(
    self: VersionStore, version: int, seconds: float, *, wait_for: Any = VersionStore.wait_for
) -> bool:
    return bool(self._states) or await wait_for(self, version, seconds)


# ---- who leads


def admit_anyone(self: Authority, message: pb.Term, sender: str) -> Any:
    term = to_term(message)
    if (term.number, term.trainer) > (self.highest.number, self.highest.trainer):
        self.highest = message
    return term


def forget_commits(self: Crew, member: Member, held: pb.Held) -> None:
    del held.commits[:]
    _heard(self, member, held)


_heard = Crew.heard


def begin_with_anyone(self: Crew) -> bool:
    return bool(self.roster.following()) if self.resumes else _is_complete(self)


_is_complete = Crew.is_complete


def yes(*arguments: Any) -> bool:
    return True


def no(*arguments: Any) -> bool:
    return False


def nobody(*arguments: Any) -> list[Member]:
    return []


def ignore(*arguments: Any) -> None:
    return None


# ---- what is saved


async def without_hints(
    self: Hop, request: pb.Run, payload: bytes, *, hint: Callable[[], Mapping[int, pb.PathEntry]], **options: Any
) -> tuple[pb.Done, bytes]:
    return await _call(self, request, payload, hint=dict, **options)


_call = Hop.call


async def never_orphaned(
    self: Hop, request: pb.Run, payload: bytes, *, order: Callable[[], Order | None], **options: Any
) -> tuple[pb.Done, bytes]:
    last = order()

    def still() -> Order | None:
        nonlocal last
        last = order() or last
        return last

    return await _call(self, request, payload, order=still, **options)


async def give_up(
    self: _Calling, attempt: Attempt, task: "asyncio.Task[tuple[Answer, bytes]]"
) -> tuple[pb.Done, bytes] | None:
    if not self.running and task.exception() is not None:
        raise FailedError(self.stage, "INTERNAL", "nobody else is asked")
    return await _take(self, attempt, task)


_take = _Calling._take


async def ask_once(self: Attempt) -> tuple[Answer, bytes]:
    try:
        return await self._exchange(None)
    finally:
        self.call.end()


def forget_held(self: Crew, member: Member, held: pb.Held) -> None:
    del held.steps[:]
    _heard(self, member, held)


def run_all(self: Driver, step: int, index: int, gap: tuple[int, int], wider: tuple[int, int]) -> tuple[int, int]:
    return 0, self.manifest.stages - 1


def first_come(self: ComputeQueue) -> None:
    self._waiting.sort(key=lambda waiting: waiting[3])
    while self._waiting:
        turn = self._waiting.pop(0)[-1]
        if not turn.done():
            turn.set_result(None)
            return
    self._busy = False


def has_room(self: VisitTable, step: int, oldest: int) -> bool:
    return self.open < self.slots


def no_window(self: Trainer) -> int:
    return 1 << 20


def computed(chaos: Chaos) -> float:
    return chaos.computed


def seconds(chaos: Chaos) -> float:
    return chaos.finished_at


def most_open(chaos: Chaos) -> float:
    return chaos.most_open


MUTANTS: dict[str, Mutant] = {
    "skip-take-back": Mutant(
        "accepting a Reduce freezes the contribution to exactly the credited set",
        ((GradientStore, "_take_back", ignore),),
    ),
    "hide-what-is-lacking": Mutant(
        "what a member lacks it names in a refusal", ((GradientStore, "freeze", keep_what_is_lacking),)
    ),
    "freeze-late": Mutant(
        "what comes after a Reduce was accepted stays apart", ((GradientStore, "freeze", freeze_late),)
    ),
    "add-again": Mutant(
        "a visit adds its gradient once, however often it is asked for",
        ((GradientStore, "add", add_again), (StageHost, "_known", run_again)),
    ),
    "answer-from-the-result": Mutant(
        "'result kept' and 'gradient held' are two flags: a Run adds a gradient again that was taken back",
        ((StageHost, "_known", answer_from_the_result),),
        limit=written.LIMIT,
    ),
    "answer-what-is-gone": Mutant(
        "a visit of which what is needed was evicted runs again", ((StageHost, "_attachable", answer_what_is_gone),)
    ),
    "credit-the-dead": Mutant(
        "a path entry counts only if its member is live when Done arrives", ((Driver, "_credit", credit_the_dead),)
    ),
    "credit-twice": Mutant(
        "exactly one live holder is credited, whoever else holds the gradient too",
        ((Ledger, "credit", credit_everyone), (Ledger, "indices", indices_of_everyone)),
    ),
    "drive-twice": Mutant(
        "at most one Run of a microbatch is in flight from the trainer", ((Driver, "begin", drive_twice),)
    ),
    "no-widening": Mutant("a range is widened past a holder that is gone", ((Driver, "_widen", no_widening),)),
    "keep-credits": Mutant("a lost member has no credits, also when it comes back", ((Ledger, "lose", keep_credits),)),
    "no-rerun": Mutant("the open credits of a lost member are re-run at once", ((Trainer, "_rerun", ignore),)),
    "newest-attempt": Mutant("a Commit names the attempt of each stage", ((Reducer, "chosen", newest_attempt),)),
    "forget-when-applied": Mutant(
        "reductions are kept until the closed marker has passed, also by who has applied them",
        ((Membership, "_apply", forget_when_applied),),
    ),
    "close-at-first-applied": Mutant(
        "a step is closed when every live replica has applied it",
        ((Closing, "_applied", applied_by_anyone),),
        draw=written.frozen_before_the_commit,
        limit=written.LIMIT,
    ),
    "commit-once": Mutant(
        "a Commit is sent again until every live replica has applied it",
        ((Closing, "catch_up", nothing), (Closing, "remind", sleep_for_ever)),
    ),
    "no-redo": Mutant(
        "if a stage's reduction is gone everywhere, that stage alone is reduced anew", ((Closing, "_gone", no),)
    ),
    "any-version": Mutant(
        "a visit computes at the version that its Run names",
        ((VersionStore, "get", any_version), (VersionStore, "wait_for", wait_for_any)),
    ),
    "newest-snapshot": Mutant(
        "a snapshot goes back to the version that the oldest open step computes at",
        ((VersionStore, "oldest", VersionStore.latest),),
        limit=written.LIMIT,
    ),
    "no-fencing": Mutant(
        "the highest term is followed, by peers and trainers, and the rest are fenced",
        (
            (Authority, "admit", admit_anyone),
            (Admission, "proves_higher", no),
            (Admission, "_shares_number", no),
            (Presence, "watch_rivals", sleep_for_ever),
        ),
    ),
    "no-majority": Mutant(
        "with a standby, a trainer commits only with a majority of the last roster", ((Crew, "has_majority", yes),)
    ),
    "forget-founders": Mutant(
        "before the first Commit, a majority is one of those with whom the run began",
        ((Crew, "tell_founders", nothing), (Crew, "least_founders", 0)),
    ),
    "count-newcomers-at-once": Mutant(
        "before the next Commit, most of those of whom the last one needed a majority have applied it",
        ((Crew, "is_heard", yes),),
        draw=written.more_come_than_there_were,
    ),
    "begin-with-anyone": Mutant(
        "a new trainer begins when a replica of every stage has answered",
        ((Crew, "is_complete", begin_with_anyone),),
        draw=written.away_before_the_trainer_was,
        limit=written.LIMIT,
    ),
    "no-bench": Mutant("one of two replicas that cannot reach each other sits out", ((Closing, "_apart", ignore),)),
    "wait-for-stragglers": Mutant(
        "a replica that gets nowhere while others of its stage go on is left behind", ((Roster, "is_overtaken", no),)
    ),
    "forget-commits": Mutant(
        "a Commit that anyone holds is finished as it is, also by a new trainer", ((Crew, "heard", forget_commits),)
    ),
    "agree-anyhow": Mutant("the digests of one stage must agree", ((Closing, "_agree", yes),)),
    "any-state": Mutant(
        "a replica whose state differs from the others' fetches it anew",
        ((Roster, "dissenters", nobody),),
        draw=draw_wrong_state,
    ),
    "add-nan": Mutant(
        "non-finite gradients are never added", ((TorchBackend, "_check_finite", ignore),), on_torch=True
    ),
    "follow-anyone": Mutant("a term is followed that proves itself", ((ProvenTerms, "check", ignore),)),
    "any-order": Mutant(
        "a call of lower order does not take a visit from one of higher order",
        ((StageHost, "_known", known_in_any_order),),
        computed,
    ),
    "no-local-retry": Mutant("a hop that fails is retried by its caller", ((_Calling, "_take", give_up),)),
    "no-hints": Mutant(
        "hints lead past a dead peer to what is done below it", ((Hop, "call", without_hints),), computed
    ),
    "retry-orphaned": Mutant("an orphaned visit makes no retries", ((Hop, "call", never_orphaned),), most_open),
    "no-reconnecting": Mutant(
        "a caller whose stream broke asks the same callee first", ((Attempt, "run", ask_once),), computed
    ),
    "run-all": Mutant(
        "re-runs are ranges: what is credited is not done again", ((Driver, "_widen", run_all),), computed
    ),
    "no-hedging": Mutant(
        "a call whose callee is slow in its own phases is hedged", ((_Calling, "_hedge", ignore),), seconds
    ),
    "forget-held": Mutant("a new trainer asks the peers for what they hold", ((Crew, "heard", forget_held),), computed),
    "no-slots": Mutant("full means Busy", ((VisitTable, "has_room", yes),), most_open),
    "no-window": Mutant(
        "the trainer has fewer in flight than there are slots", ((Trainer, "_window", no_window),), most_open
    ),
    "no-reserve": Mutant("a slot is reserved for the oldest open step", ((VisitTable, "has_room", has_room),), seconds),
    "first-come": Mutant(
        "backward before forward, older step before newer", ((ComputeQueue, "_pass_on", first_come),), seconds
    ),
    "no-pacing": Mutant(
        "a step is issued when a replica of every stage has the version it computes at",
        ((Roster, "some_at", yes),),
        seconds,
    ),
}
