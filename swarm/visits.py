"""The visits of one stage: what each is, who waits for it, and how many may be open.

A visit is one microbatch's work at one stage, known by (epoch, mode, step, index). It runs once, to its end, and
outlives the stream that started it; a caller attaches to it, and a caller of higher order takes it from one of lower
order. What it sent is kept until its step is closed. Knows no socket and no tensor.

A caller is told what the visit itself does, and who has it below; but not in which phase it is there, which the caller
of that stage alone is to judge. With every change of every stage passed on by all the stages above it, most of what a
long pipeline sends would be that.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import FailedError
from ..protos import swarm_pb2 as pb
from .backend import Scalar

RELAY_SECONDS = 0.25
"""For how long the news that a visit waits below waits itself, for the news of who has it there."""

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True, order=True)
class VisitKey:
    epoch: int
    mode: int
    step: int
    index: int


def key_of(run: pb.Run) -> VisitKey:
    return VisitKey(run.epoch, run.mode, run.step, run.index)


class Attachment:
    """One caller waiting for a visit, and what it has not been told yet. `input_gradient` is the visit's, once that has
    ended."""

    def __init__(self, order: Order, known: Iterable[pb.PathEntry]) -> None:
        self.order = order
        self.superseded = False
        self.input_gradient: bytes | None = None
        self._untold = {entry.stage: entry for entry in known}
        self.changed = asyncio.Event()
        self._mentioning: asyncio.TimerHandle | None = None

    def tell(self, entries: Sequence[pb.PathEntry] = ()) -> None:
        """Queues changes of the path (only the latest of a stage is kept) and wakes the waiting exchange."""
        self._untold.update((entry.stage, entry) for entry in entries)
        self.changed.set()

    def mention(self, entries: Sequence[pb.PathEntry]) -> None:
        """Queues changes that may wait a moment for company."""
        self._untold.update((entry.stage, entry) for entry in entries)
        if self._mentioning is None and not self.changed.is_set():
            self._mentioning = asyncio.get_running_loop().call_later(RELAY_SECONDS, self.changed.set)

    def take(self) -> list[pb.PathEntry]:
        """What the caller has not been told, and now is."""
        untold = [self._untold[stage] for stage in sorted(self._untold)]
        self._untold.clear()
        self.changed.clear()
        self.end()
        return untold

    def end(self) -> None:
        """Nobody waits any more, or for nothing that has been mentioned."""
        if self._mentioning is not None:
            self._mentioning.cancel()
            self._mentioning = None


@dataclass(eq=False)
class Visit:
    """One visit. `own` is this stage's path entry, `below` the entries that the stages below have reported.

    `output` and `input_gradient` are at hand while it is open; from its end on they are kept elsewhere (`kept.py`).
    `phases`: how many open visits of its stage are in each, this one among them while it is open there; `waiting`: how
    many wait for the stages below, by the peer of the next one that has them.
    """

    key: VisitKey
    own: pb.PathEntry
    run: pb.Run
    data: bytes
    order: Order = ()
    attachment: Attachment | None = None
    below: dict[int, pb.PathEntry] = field(default_factory=dict)
    output: bytes | None = None
    input_gradient: bytes | None = None
    loss: Scalar | None = None
    finished: bool = False
    failure: FailedError | None = None
    phases: Counter[pb.Phase] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    _waits_for: str = ""

    @property
    def ended(self) -> bool:
        return self.finished or self.failure is not None

    @property
    def orphaned(self) -> bool:
        return self.attachment is None

    def attach(self, order: Order) -> Attachment:
        """Hands the visit to a caller of higher order; the earlier one is told that it is superseded."""
        if self.attachment is not None:
            self.attachment.superseded = True
            self.attachment.tell()
        self.order = order
        self.attachment = Attachment(order, self.path())
        self.attachment.tell()
        if self.ended:
            self._hand_over()
        return self.attachment

    def detach(self, attachment: Attachment) -> None:
        attachment.end()
        if self.attachment is attachment:
            self.attachment = None

    def enter(self, phase: pb.Phase) -> None:
        """Moves this stage's part to its next phase and tells the caller: of waiting below, who has it there says more
        in a moment."""
        if not self.ended:
            self.phases[self.own.phase] -= 1
            self.phases[phase] += 1
        self.own = pb.PathEntry(
            stage=self.own.stage, member=self.own.member, peer=self.own.peer, begun=self.own.begun, phase=phase
        )
        self.count_below()
        if self.attachment:
            (self.attachment.mention if phase == pb.BELOW else self.attachment.tell)([self.own])

    def hear(self, entries: Iterable[pb.PathEntry]) -> None:
        """Takes in what the stages below report, and passes on who has it there; entries that are not below this stage
        are ignored."""
        news = [entry for entry in entries if self.own.stage < entry.stage <= self.run.last]
        moved = [entry for entry in news if _holder(self.below.get(entry.stage)) != _holder(entry)]
        self.below.update((entry.stage, entry) for entry in news)
        if moved:
            self.count_below()
        if self.attachment and moved:
            self.attachment.tell(moved)

    def end(self, failure: FailedError | None = None) -> None:
        if not self.ended:
            self.phases[self.own.phase] -= 1
        self.finished = failure is None
        self.failure = failure
        self.count_below()
        self.data = b""
        if self.attachment:
            self.attachment.tell()
        self._hand_over()

    def count_below(self) -> None:
        """Keeps `waiting` right after a change of what it counts."""
        entry = None if self.ended or self.own.phase != pb.BELOW else self.below.get(self.own.stage + 1)
        peer = "" if entry is None else entry.peer
        if peer == self._waits_for:
            return
        if self._waits_for:
            self.waiting[self._waits_for] -= 1
            if not self.waiting[self._waits_for]:
                del self.waiting[self._waits_for]
        if peer:
            self.waiting[peer] += 1
        self._waits_for = peer

    def _hand_over(self) -> None:
        """Leaves what it sent to whoever waits for it."""
        if self.attachment:
            self.attachment.input_gradient = self.input_gradient
        self.output = self.input_gradient = None

    def path(self) -> list[pb.PathEntry]:
        return [self.own, *(self.below[stage] for stage in sorted(self.below))]


def _holder(entry: pb.PathEntry | None) -> tuple[int, int] | None:
    return None if entry is None else (entry.member, entry.begun)


class VisitTable:
    """All visits of one stage on one peer. `slots` bounds the open ones; with more than one, the last is reserved for
    the oldest open step, so that a re-run always finds room beside newer work."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._visits: dict[VisitKey, Visit] = {}
        self.phases: Counter[pb.Phase] = Counter()
        """How many open visits are in each. Every answer to a caller tells of them."""

        self._waiting: Counter[str] = Counter()

        self._begun: dict[VisitKey, int] = {}

    def get(self, key: VisitKey) -> Visit | None:
        return self._visits.get(key)

    @property
    def open(self) -> int:
        return sum(self.phases.values())

    def waiting_below(self) -> tuple[int, str]:
        """How many open visits wait for the stages below, and the peer that has most of them there, "" for nobody."""
        most = max(((count, peer) for peer, count in self._waiting.items()), default=(0, ""))
        return self.phases[pb.BELOW], most[1]

    def has_room(self, step: int, oldest: int) -> bool:
        reserved = 1 if self.slots > 1 and step > oldest else 0
        return self.open < self.slots - reserved

    def add(self, visit: Visit) -> None:
        """Adds a visit that begins; its own entry says how many times this stage-visit has begun here."""
        self._visits[visit.key] = visit
        visit.phases, visit.waiting = self.phases, self._waiting
        self.phases[visit.own.phase] += 1
        self._begun[visit.key] = visit.own.begun = self._begun.get(visit.key, 0) + 1

    def reopen(self, visit: Visit, run: pb.Run) -> None:
        """A finished visit has something to do again, for another Run: whoever did it below does not count, unless
        that Run says so."""
        visit.finished = False
        self.phases[visit.own.phase] += 1
        visit.run = run
        visit.below = {stage: entry for stage, entry in visit.below.items() if stage not in run.lacking}
        visit.below.update((entry.stage, entry) for entry in run.hint if visit.own.stage < entry.stage <= run.last)
        visit.count_below()

    def rebadge(self, member: int) -> None:
        """From now on all visits are those of this member: the same process has a new place in the run."""
        for visit in self._visits.values():
            visit.own = pb.PathEntry(
                stage=visit.own.stage, member=member, peer=visit.own.peer, begun=visit.own.begun, phase=visit.own.phase
            )

    def remove(self, visit: Visit) -> None:
        """Forgets a visit that ended without a result."""
        if self._visits.get(visit.key) is visit:
            del self._visits[visit.key]

    def close(self, epoch: int, closed: int) -> None:
        """Lets go of the finished visits of steps below `closed`, and of everything of older epochs."""
        for key, visit in list(self._visits.items()):
            if (key.epoch, key.step) < (epoch, closed) and visit.ended:
                del self._visits[key]
        for key in [key for key in self._begun if (key.epoch, key.step) < (epoch, closed)]:
            del self._begun[key]
