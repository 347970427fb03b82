"""How many microbatches a trainer has in flight at most: a share of the slots of the stage that has the fewest.

It is asked for before every microbatch and after everything that happens, and looks at all members: of a large run what
was found holds for a while, so that it costs no more than the members' heartbeats do.
"""

import asyncio
import math
from dataclasses import dataclass

from .roster import Roster

WINDOW_SHARE = 0.8
"""Share of the narrowest stage's slots that microbatches in flight may take."""

HOLDS_SECONDS = 0.1
"""For each hundred members that the run has had; below a hundred it is found anew each time."""

MOST_SECONDS = 1.0


@dataclass
class Window:
    """`slots`: those that the run wants of each member."""

    roster: Roster
    slots: int
    _size: int = 1
    _holds_until: float = -math.inf

    def size(self) -> int:
        """At least 1."""
        now = asyncio.get_running_loop().time()
        if now >= self._holds_until:
            self._size = max(1, int(WINDOW_SHARE * (self.roster.narrowest(self.slots) or self.slots)))
            self._holds_until = now + min(MOST_SECONDS, HOLDS_SECONDS * (self.roster.admitted // 100))
        return self._size
