"""What a peer has come past on its way from the command to its first credited microbatch, and when. Pure.

Times are those of one clock, in seconds. The first time counts, also if the way is gone twice (a trainer was lost, a
state was too old): then the phase that it interrupted is the longer. Only Commits that are applied before the first
visit begins are a replay; without any that phase takes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

PHASES = ("start", "directory", "place", "weights", "state", "replay", "call", "visit", "credit")
"""Each is named for what it ends with: the peer sets out, a trainer is found, it gives a place, the stage is loaded, a
state is held, the last Commit before the first visit is applied, that visit begins, one has ended with its gradient, a
Reduce names a microbatch of this peer's."""

CREDIT = PHASES[-1]

_ENDS = {"applied": "replay", "queued": "call", "held": "visit", "credited": CREDIT}
"""Phases that end at a `Moment` of the stage host or its membership, by its name."""


@dataclass
class Milestones:
    """`began`: when the command was given; if nobody says, the peer was made then."""

    began: float | None = None
    _ends: dict[str, float] = field(default_factory=dict)

    def reach(self, phase: str, now: float) -> bool:
        """A phase ends now; whether that is new."""
        if phase not in PHASES:
            raise ValueError(f"{phase!r} is none of {', '.join(PHASES)}")
        if phase in self._ends:
            return False
        self._ends[phase] = now
        return True

    def see(self, moment: str, now: float) -> bool:
        """Something happens in the stage; whether with it the first microbatch is credited."""
        phase = _ENDS.get(moment)
        if phase == "replay" and "call" not in self._ends:
            self._ends[phase] = now
        elif phase not in (None, "replay"):
            return self.reach(phase, now) and phase == CREDIT
        return False

    @property
    def took(self) -> Mapping[str, float]:
        """Seconds of each phase, in order; nothing before the first microbatch is credited."""
        if CREDIT not in self._ends:
            return {}
        last = min(self._ends.values()) if self.began is None else self.began
        found = {}
        for phase in PHASES:
            end = max(last, self._ends.get(phase, last))
            found[phase], last = end - last, end
        return found


def in_words(took: Mapping[str, float]) -> str:
    """One line for people."""
    phases = ", ".join(f"{phase} {took[phase]:.1f}" for phase in PHASES if phase in took)
    return f"counted after {sum(took.values()):.1f} s: {phases}"
