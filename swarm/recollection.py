"""What a peer remembers of Commits: those of open steps as they are, of older ones what the report shows, so that a
trainer which comes later knows what has been. Pure bookkeeping.
"""

from dataclasses import dataclass, field

from ..protos import swarm_pb2 as pb

KEPT_PAST = 4096
"""Committed steps of which a peer can tell a new trainer: about 100 bytes each, so that all go into one message."""


@dataclass
class Recollection:
    commits: dict[int, pb.Commit] = field(default_factory=dict)
    past: dict[int, pb.Past] = field(default_factory=dict)

    def take(self, commit: pb.Commit) -> None:
        """Keeps a Commit until its step is closed, and what the report shows of it for longer."""
        self.commits[commit.step] = commit
        if commit.past.step == commit.step:
            self.past[commit.step] = commit.past
            for old in [step for step in self.past if step <= commit.step - KEPT_PAST]:
                del self.past[old]

    def go_back(self, first: int) -> None:
        """An epoch has begun with step `first`: what came after it before is no part of the run."""
        self.commits.clear()
        for step in [step for step in self.past if step >= first]:
            del self.past[step]

    def close(self, closed: int) -> None:
        for step in [step for step in self.commits if step < closed - 1]:
            del self.commits[step]
