"""Where a run stands when a trainer takes it over: found out from what peers hold and what a standby was told.

What peers hold counts for whatever lacks a credit; a Commit that any of them has is finished as it is. Who speaks
later is heard too. Pure bookkeeping over the ledger and the steps.
"""

from dataclasses import dataclass

from ..protos import swarm_pb2 as pb
from .beginning import Beginning
from .closing import Closing
from .crew import Crew, renews
from .history import History
from .ledger import Ledger
from .messages import from_scalar
from .roster import Member, Roster
from .steps import Step


@dataclass
class TakingOver:
    """Reads the reports of a `Crew` into the books of a trainer."""

    roster: Roster
    crew: Crew
    history: History
    ledger: Ledger
    steps: dict[int, Step]
    closing: Closing
    beginning: Beginning

    def find_out(self) -> None:
        """Sets the markers of what is closed and committed, and takes up the Commits of closed steps that some replica
        may still lack; those of the others are taken up when their step is opened."""
        commits = self.crew.commits()
        versions = [member.version for member in self.roster.following()]
        known = (self.closing.closed, self.beginning.lineage.first)  # whoever comes in an epoch may hold nothing of it
        self.closing.closed = max([*known, *(held.closed for _, held in self.crew.reports)])
        self.closing.committed = max([self.closing.closed, *(commit.step + 1 for commit in commits), *versions])
        self.history.recall(self.closing.closed)
        for commit in commits:
            if commit.step >= self.closing.closed:
                continue
            self.closing.commits.setdefault(commit.step, commit)
            if commit.step not in self.steps:
                step = self.steps[commit.step] = Step(commit.step, tokens=commit.tokens, committed=True)
                self.closing.adopt(step, commit)
        self._renew()

    def _renew(self) -> None:
        """Those who lag are sent the last Commit of a step that anyone has told of."""
        for commit in self.crew.commits():
            sent = self.closing.commits.get(commit.step)
            if sent is not None and commit.epoch == self.closing.epoch() and renews(commit, sent):
                self.closing.commits[commit.step] = commit

    def credit_step(self, number: int) -> None:
        """Takes up what all reports say of a step that has been opened."""
        self._adopt(number)
        for member, held in self.crew.reports:
            self._credit(member, held, number)

    def credit_member(self, member: Member) -> None:
        """Takes up what a member that takes part from now on has reported of the steps that are open."""
        self._renew()
        for reporter, held in self.crew.reports:
            if reporter is member:
                for number in list(self.steps):
                    if self.ledger.is_open(number) and not self.steps[number].committed:
                        self._adopt(number)
                        self._credit(member, held, number)

    def _adopt(self, number: int) -> None:
        step = self.steps[number]
        if not step.committed and step.commit is None:
            step.commit = next((commit for commit in self.crew.commits() if commit.step == number), None)

    def _credit(self, member: Member, held: pb.Held, number: int) -> None:
        step = self.steps[number]
        if not member.live or not member.ready or not self.ledger.is_open(number):
            return
        last = member.stage == self.roster.stages - 1
        for entry in held.steps:
            if (entry.epoch, entry.step) != (self.closing.epoch(), number):
                continue
            step.saw_taken_back(member.number, entry.taken_back)
            losses = {loss.index: from_scalar(loss.loss, "loss", member.peer) for loss in entry.losses}
            for index in entry.indices:
                if last and index not in step.losses:
                    if index not in losses:
                        continue
                    step.losses[index] = losses[index]
                self.ledger.credit(number, member.stage, index, member.number)
