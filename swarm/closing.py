"""Closing a step: Reduce every unit, Commit what was reduced, wait until it is applied (DESIGN §5).

A unit is the set of stages that must succeed together: each stage alone, or, when stages 0 and S-1 train a tied tensor,
those two as one. Its reduction is atomic: attempt follows attempt until one has succeeded with every credited index
in it. A Commit names one attempt of each stage; it is sent until every live replica has applied it.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..protos import swarm_pb2 as pb
from .backend import Arithmetic, Scalar
from .conditions import Signal
from .crew import crew_of
from .ledger import Ledger
from .manifest import Manifest
from .messages import from_scalar, to_scalar
from .roster import Member, Roster
from .steps import Step

Outcome = pb.Reduced | pb.ReduceFailed

GRACE_SECONDS = 1.0
"""How long the other members of a failed attempt may take to say how far they got."""

REMIND_SECONDS = 2.0

LAGGING_ROUNDS = 30
"""A replica that gets nowhere for so many reminders, while another one of its stage has gone on, is left behind."""

FAILED_EXCHANGES = 2
"""After this many attempts in which the same stage's members could not reach each other, one of them sits out."""

DISAGREEMENTS = 2
"""After this many attempts whose digests disagree, the replicas in the minority are lost."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Stages that reduce together. `groups`: the stages whose replicas form each reduce group of a member's stage."""

    stages: tuple[int, ...]
    tied: bool = False


def units_of(manifest: Manifest) -> list[Unit]:
    last = manifest.stages - 1
    if not manifest.tied:
        return [Unit((stage,)) for stage in range(manifest.stages)]
    return [Unit((0, last), tied=True), *(Unit((stage,)) for stage in range(1, last))]


@dataclass
class Closing:
    """Reduces and commits, for a trainer. `tell` sends to a member, `rerun` re-runs (step, index); `lose` declares a
    member lost, `bench` does so for a while, `leave_behind` has it begin anew from a snapshot."""

    manifest: Manifest
    term: pb.Term
    roster: Roster
    ledger: Ledger
    arithmetic: Arithmetic
    signal: Signal
    tell: Callable[[Member, Outcome | pb.Reduce | pb.Commit | pb.Closed], Awaitable[None]]
    rerun: Callable[[int, int], None]
    lose: Callable[[Member, str], None]
    bench: Callable[[Member, str], None]
    leave_behind: Callable[[Member, str], None]
    epoch: Callable[[], int]
    restores: Callable[[int], list[pb.Member]] = field(default=lambda step: [])
    """Who can give the reduction of a step besides replicas: a trainer that has it in a checkpoint."""

    closed: int = 0
    committed: int = 0
    commits: dict[int, pb.Commit] = field(default_factory=dict)
    _outcomes: dict[tuple[int, int, int], Outcome] = field(default_factory=dict)
    reducing: Counter[int] = field(default_factory=Counter)
    """By member: the attempts under way in which it has a part."""

    _attempts: dict[tuple[int, Unit], int] = field(default_factory=dict)

    def take_outcome(self, member: Member, outcome: Outcome, step: Step | None) -> None:
        if (outcome.term, outcome.epoch) != (self.term.number, self.epoch()) or step is None:
            return
        self._outcomes[outcome.step, outcome.attempt, member.number] = outcome
        if isinstance(outcome, pb.Reduced):
            member.kept.add((outcome.step, outcome.term, outcome.attempt))
        step.saw_taken_back(member.number, outcome.taken_back)
        self.signal.notify()

    # ---- Reduce

    async def reduce(self, step: Step, unit: Unit) -> list[pb.Choice]:
        """Attempts until one holds every index once and all its live members agree on the bytes."""
        disagreements = failed_exchanges = 0
        while True:
            await self.signal.wait_for(
                lambda: (
                    self.ledger.complete(step.number, unit.stages)
                    and all(self.roster.ready(stage) for stage in unit.stages)
                )
            )
            attempt = self._attempts.get((step.number, unit), 0) + 1
            self._attempts[step.number, unit] = attempt
            members = [member for stage in unit.stages for member in self.roster.ready(stage)]
            numbers = [member.number for member in members]
            self.reducing.update(numbers)
            try:
                await self._ask(step, unit, attempt, members)
                await self._answers(step, attempt, members)
            finally:
                self.reducing.subtract(numbers)
                self.signal.notify()
            outcomes = [(member, self._outcome(step, attempt, member)) for member in members]
            if self._void(step, outcomes):
                continue
            reduced = [
                (member, outcome) for member, outcome in outcomes if member.live and isinstance(outcome, pb.Reduced)
            ]
            unanswered = any(outcome is None for _, outcome in outcomes)
            if unanswered or {member.stage for member, _ in reduced} != set(unit.stages):
                apart = self._apart(outcomes)
                failed_exchanges = failed_exchanges + 1 if apart is not None else 0
                if apart is not None and failed_exchanges >= FAILED_EXCHANGES:
                    failed_exchanges = 0
                    self.bench(apart, "another replica and it cannot reach each other")
                continue
            if not self._agree(unit, reduced):
                disagreements += 1
                if disagreements >= DISAGREEMENTS:
                    self._lose_minority(unit, reduced)
                continue
            for member, outcome in outcomes:
                assert outcome is not None
                step.held[member.stage, member.number] = tuple(outcome.indices)
            self.ledger.settle(step.number, unit.stages)
            return [self._choice(stage, attempt, reduced) for stage in unit.stages]

    async def _answers(self, step: Step, attempt: int, members: Sequence[Member]) -> None:
        """Waits until every member has answered, or the attempt has failed for good.

        It has when a member is lost before it answered or lacks what it is credited with; after any other failure the
        others get a moment to finish, for what one of them holds complete can still be chosen.
        """

        def answered() -> bool:
            return all(self._outcome(step, attempt, member) for member in members)

        def failed() -> bool:
            outcomes = [(member, self._outcome(step, attempt, member)) for member in members]
            return any(isinstance(outcome, pb.ReduceFailed) for _, outcome in outcomes) or any(
                outcome is None and not member.live for member, outcome in outcomes
            )

        await self.signal.wait_for(lambda: answered() or failed())
        hopeless = any(
            (outcome is None and not member.live) or (isinstance(outcome, pb.ReduceFailed) and outcome.lacking)
            for member in members
            for outcome in [self._outcome(step, attempt, member)]
        )
        if hopeless or answered():
            return
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                await self.signal.wait_for(answered)
        except TimeoutError:
            return

    async def _ask(self, step: Step, unit: Unit, attempt: int, members: Sequence[Member]) -> None:
        indices = {member.number: self.ledger.indices(step.number, member.stage, member.number) for member in members}
        roster = hashlib.sha256(
            repr([(member.number, member.peer, member.stage, indices[member.number]) for member in members]).encode()
        ).digest()
        for member in members:
            groups = [pb.Group(name="stage", members=[m.to_message() for m in members if m.stage == member.stage])]
            if unit.tied:
                groups.append(pb.Group(name="tied", members=[m.to_message() for m in members]))
            await self.tell(
                member,
                pb.Reduce(
                    term=self.term,
                    epoch=self.epoch(),
                    step=step.number,
                    attempt=attempt,
                    groups=groups,
                    indices=indices[member.number],
                    roster=roster,
                    closed=self.closed,
                ),
            )

    def _outcome(self, step: Step, attempt: int, member: Member) -> Outcome | None:
        return self._outcomes.get((step.number, attempt, member.number))

    def _void(self, step: Step, outcomes: Sequence[tuple[Member, Outcome | None]]) -> bool:
        """Takes credits from members that lack what they are credited with, and has it re-run."""
        found = False
        for member, outcome in outcomes:
            if isinstance(outcome, pb.ReduceFailed) and outcome.lacking:
                found = True
                self.ledger.void(step.number, member.stage, outcome.lacking, member.number)
                for index in outcome.lacking:
                    self.rerun(step.number, index)
        return found

    def _apart(self, outcomes: Sequence[tuple[Member, Outcome | None]]) -> Member | None:
        """Whom live members of a failed attempt could not reach, or who could not reach them, most often.

        Ties: the highest number. None if all could reach each other, or if its stage has no other replica.
        """
        live = {member.number: member for member, _ in outcomes if member.live}
        named: Counter[int] = Counter()
        for member, outcome in outcomes:
            if isinstance(outcome, pb.ReduceFailed) and member.live:
                for other in live.keys() & set(outcome.unreachable):
                    named.update((member.number, other))
        found = max(named, key=lambda number: (named[number], number), default=None)
        return live[found] if found is not None and len(self.roster.ready(live[found].stage)) > 1 else None

    def _agree(self, unit: Unit, reduced: Sequence[tuple[Member, Outcome]]) -> bool:
        return all(len(digests) == 1 for digests in self._digests(unit, reduced).values())

    def _digests(
        self, unit: Unit, reduced: Sequence[tuple[Member, Outcome]]
    ) -> dict[tuple[int, str], dict[bytes, list[Member]]]:
        """Who has which digest, by group: (stage, "stage") and (-1, "tied")."""
        found: dict[tuple[int, str], dict[bytes, list[Member]]] = {}
        for member, outcome in reduced:
            assert isinstance(outcome, pb.Reduced)
            for group in outcome.groups:
                key = (-1 if group.name == "tied" else member.stage, group.name)
                found.setdefault(key, {}).setdefault(group.digest, []).append(member)
        return found

    def _lose_minority(self, unit: Unit, reduced: Sequence[tuple[Member, Outcome]]) -> None:
        for by_digest in self._digests(unit, reduced).values():
            most = max(len(members) for members in by_digest.values())
            majority = next(digest for digest, members in by_digest.items() if len(members) == most)
            for digest, members in by_digest.items():
                for member in members if digest != majority else []:
                    self.lose(member, "its reduction differs from the other replicas'")

    def _choice(self, stage: int, attempt: int, reduced: Sequence[tuple[Member, Outcome]]) -> pb.Choice:
        holders = [(member, outcome) for member, outcome in reduced if member.stage == stage]
        outcome = holders[0][1]
        assert isinstance(outcome, pb.Reduced)
        return pb.Choice(
            stage=stage,
            term=self.term.number,
            attempt=attempt,
            groups=outcome.groups,
            holders=[member.to_message() for member, _ in holders],
        )

    # ---- Commit

    def commit(self, step: Step, choices: Sequence[pb.Choice]) -> pb.Commit:
        """The Commit of a step: a function of what was Reduced, so that any trainer can repeat it."""
        squared_norm = self._squared_norm(choices)
        update = self.arithmetic.update(step.number, squared_norm, step.tokens)
        total = self.arithmetic.zero
        for index in sorted(step.losses):
            total = self.arithmetic.add(total, step.losses[index])
        step.loss = self.arithmetic.mean(total, step.tokens)
        step.grad_norm = self.arithmetic.norm(squared_norm, step.tokens)
        return pb.Commit(
            term=self.term,
            epoch=self.epoch(),
            step=step.number,
            choices=choices,
            factor=to_scalar(update.factor),
            learning_rate=update.learning_rate,
            bias_correction1=update.bias_correction1,
            bias_correction2=update.bias_correction2,
            loss=to_scalar(total),
            tokens=step.tokens,
            totals=step.totals(self.manifest.stages, self.manifest.microbatches),
            closed=self.closed,
            crew=sorted(crew_of(self.roster.following())),
        )

    def adopt(self, step: Step, commit: pb.Commit) -> None:
        """Takes over a Commit that a trainer before this one has sent: it is finished as it is."""
        step.loss = self.arithmetic.mean(from_scalar(commit.loss, "loss", "a Commit"), step.tokens)
        step.grad_norm = self.arithmetic.norm(self._squared_norm(commit.choices), step.tokens)
        step.final = commit.totals
        step.seconds = commit.past.seconds
        self.ledger.settle(step.number, range(self.manifest.stages))

    def _squared_norm(self, choices: Sequence[pb.Choice]) -> Scalar:
        """Over all stages; a tied group, which two stages report, counts once."""
        total = self.arithmetic.zero
        seen: set[str] = set()
        for choice in sorted(choices, key=lambda choice: choice.stage):
            for group in choice.groups:
                name = group.name if group.name == "tied" else f"stage {choice.stage}"
                if name not in seen:
                    seen.add(name)
                    total = self.arithmetic.add(total, from_scalar(group.squared_norm, "squared norm", name))
        return total

    async def announce(self, commit: pb.Commit) -> None:
        """Sends a Commit to every replica that has not applied it."""
        self.commits[commit.step] = commit
        self.committed = max(self.committed, commit.step + 1)
        for member in self.roster.following():
            if member.version <= commit.step:
                await self.tell(member, self._as_of_now(commit))

    async def catch_up(self, member: Member) -> None:
        """Sends a replica every Commit that it has not applied."""
        for step in sorted(self.commits):
            if step >= member.version:
                await self.tell(member, self._as_of_now(self.commits[step]))

    async def remind(self) -> None:
        """Sends Commits again to replicas that do not get on with them: holders come and go.

        One that gets nowhere for long, though another of its stage did, is left behind: no step waits for it.
        """
        stuck: dict[int, tuple[int, int]] = {}
        while True:
            await asyncio.sleep(REMIND_SECONDS)
            before, stuck = stuck, {}
            for member in self.roster.following():
                if member.version >= self.committed:
                    continue
                version, rounds = before.get(member.number, (-1, 0))
                rounds = rounds + 1 if version == member.version else 0
                stuck[member.number] = (member.version, rounds)
                if rounds >= LAGGING_ROUNDS and self.roster.is_overtaken(member):
                    self.leave_behind(member, f"it has not made version {version + 1}, which others have")
                elif rounds:
                    await self.catch_up(member)

    def _as_of_now(self, commit: pb.Commit) -> pb.Commit:
        """The same Commit in this trainer's name, with those who hold its reductions now."""
        fresh = pb.Commit()
        fresh.CopyFrom(commit)
        fresh.term.CopyFrom(self.term)
        fresh.closed = self.closed
        for choice in fresh.choices:
            replicas = self.roster.live(choice.stage)
            holders = [member for member in replicas if member.holds(commit.step, choice.term, choice.attempt)]
            choice.ClearField("holders")
            choice.holders.extend(holder.to_message() for holder in holders)
            choice.holders.extend(self.restores(commit.step))
        return fresh

    async def settle(self, step: Step, commit: pb.Commit, units: Sequence[Unit]) -> pb.Commit:
        """Waits until every live replica has applied an announced Commit; then moves the closed marker beyond the step.
        The Commit that was applied.

        If the reduction of a unit is gone everywhere before anyone applied it, that unit alone is reduced anew.
        """
        version = step.number + 1
        while True:
            await self.signal.wait_for(
                partial(lambda sent: self._applied(version, units) or self._any_gone(units, sent, version), commit)
            )
            gone = [unit for unit in units if self._gone(unit, commit, version)]
            if not gone:
                break
            for unit in gone:
                commit = await self._redo(step, commit, unit)
            await self.announce(commit)
        self.closed = version
        self.ledger.close(step.number)
        for old in [old for old in self.commits if old < version - 1]:
            del self.commits[old]
        for member in self.roster.live():
            member.kept = {entry for entry in member.kept if entry[0] >= version - 1}
        for key in [key for key in self._outcomes if key[0] <= step.number]:
            del self._outcomes[key]
        for attempted in [attempted for attempted in self._attempts if attempted[0] <= step.number]:
            del self._attempts[attempted]
        for member in self.roster.live():
            await self.tell(member, pb.Closed(term=self.term, epoch=self.epoch(), closed=self.closed))
        self.signal.notify()
        return commit

    def _applied(self, version: int, units: Sequence[Unit]) -> bool:
        """Whether every stage has replicas, and all have a version: those that are catching up too."""
        stages = [stage for unit in units for stage in unit.stages]
        return all(self.roster.ready(stage) for stage in stages) and all(
            member.version >= version for member in self.roster.following()
        )

    def _any_gone(self, units: Sequence[Unit], commit: pb.Commit, version: int) -> bool:
        return any(self._gone(unit, commit, version) for unit in units)

    def _gone(self, unit: Unit, commit: pb.Commit, version: int) -> bool:
        """Whether a stage of the unit has live replicas, but none that holds the chosen reduction or its result."""
        for choice in commit.choices:
            replicas = [member for member in self.roster.following() if member.stage == choice.stage]
            holding = any(member.holds(version - 1, choice.term, choice.attempt) for member in replicas)
            if choice.stage in unit.stages and replicas and not holding:
                return True
        return False

    def lost_stage(self) -> int | None:
        """The lowest stage that is lost."""
        stages = range(self.roster.stages)
        absent = (stage for stage in stages if not self.roster.has_state(stage, self.closed))
        return next((stage for stage in absent if self.is_lost(stage)), None)

    def is_lost(self, stage: int) -> bool:
        """Whether nobody live has the state of a stage, or one that what is held can still bring up to date."""
        replicas = [member for member in self.roster.following() if member.stage == stage]
        return not any(
            all(self._is_held(step, stage) for step in range(member.version, self.closed)) for member in replicas
        )

    def _is_held(self, step: int, stage: int) -> bool:
        """Whether the reduction by which a closed step was committed is to be had."""
        choices = self.commits[step].choices if step in self.commits else ()
        return any(
            bool(self.restores(step))
            or any(member.holds(step, choice.term, choice.attempt) for member in self.roster.live(stage))
            for choice in choices
            if choice.stage == stage
        )

    async def _redo(self, step: Step, commit: pb.Commit, unit: Unit) -> pb.Commit:
        """The same Commit with a new reduction of one unit; the factor that was sent stays. As it was if somebody comes
        who holds the reduction: he may be about to apply it."""
        live = {member.number for member in self.roster.live()}
        self.ledger.reopen(step.number, unit.stages, live)
        for index in self.ledger.missing_indices(step.number, unit.stages):
            self.rerun(step.number, index)
        held = {key: indices for key, indices in step.held.items() if key[0] in unit.stages}
        for key in held:
            del step.held[key]
        reducing = asyncio.ensure_future(self.reduce(step, unit))
        waiting = asyncio.ensure_future(self.signal.wait_for(lambda: not self._gone(unit, commit, step.number + 1)))
        try:
            await asyncio.wait((reducing, waiting), return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                for key in [key for key in step.held if key[0] in unit.stages]:
                    del step.held[key]  # both may have come about at once
                step.held.update(held)
                self.ledger.settle(step.number, unit.stages)
                return commit
            again = reducing.result()
        finally:
            reducing.cancel()
            waiting.cancel()
            await asyncio.gather(reducing, waiting, return_exceptions=True)
        renewed = pb.Commit()
        renewed.CopyFrom(commit)
        kept = [choice for choice in commit.choices if choice.stage not in unit.stages]
        renewed.ClearField("choices")
        renewed.choices.extend([*kept, *again])
        return renewed
