"""How many microbatches a trainer has in flight at most: a share of the slots of the stage that has the fewest.

It is asked for before every microbatch and after everything that happens, and looks at all members: of a large run what
was found holds for a while, so that it costs no more than the members' heartbeats do. Who asks meanwhile is told when
that is over: after thousands have come at once nothing else may happen for as long as a microbatch takes.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from .roster import Roster

WINDOW_SHARE = 0.8
"""Share of the narrowest stage's slots that microbatches in flight may take."""

HOLDS_SECONDS = 0.1
"""For each hundred members that the run has had; below a hundred it is found anew each time."""

MOST_SECONDS = 1.0


@dataclass
class Window:
    """`slots`: those that the run wants of each member; `ask_again()`: what was found before holds no more."""

    roster: Roster
    slots: int
    ask_again: Callable[[], None]
    _size: int = 1
    _holds_until: float = -math.inf
    _is_asked_for: bool = False
    """Whether anybody has been told what was found before."""

    def size(self) -> int:
        """At least 1."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._holds_until:
            self._size = max(1, int(WINDOW_SHARE * (self.roster.narrowest(self.slots) or self.slots)))
            self._holds_until = now + min(MOST_SECONDS, HOLDS_SECONDS * (self.roster.admitted // 100))
        elif not self._is_asked_for:
            self._is_asked_for = True
            loop.call_at(self._holds_until, self._end)
        return self._size

    def _end(self) -> None:
        self._is_asked_for = False
        self.ask_again()
