"""How loaded a stage host is, by its own measurement: what its callers are told, and when to ask again for a slot.

Pure; knows no socket and no clock. What callers believe of it is `routing.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..protos import swarm_pb2 as pb
from .loads import Pace, to_message
from .routing import PLACES, Place

_AHEAD, _RETURNING = (
    [phase for phase, place in PLACES.items() if place is those] for those in (Place.AHEAD, Place.RETURNING)
)

BUSY_RETRY_MS, MAX_BUSY_RETRY_MS = 50, 1000


@dataclass
class Workload:
    """`pace`: how long a visit keeps the device."""

    pace: Pace = field(default_factory=Pace)

    def measured(self, phase: str, seconds: float) -> None:
        """The device has done its part of a visit."""
        self.pace = self.pace.measured(phase, seconds)

    def load(self, phases: Mapping[pb.Phase, int], below: float) -> pb.Load:
        """What callers are told, with so many open visits in each phase; `below`: seconds that a visit is expected to
        take at the stages below."""
        ahead = sum([phases.get(phase, 0) for phase in _AHEAD])
        returning = sum([phases.get(phase, 0) for phase in _RETURNING])
        return to_message(self.pace.load(ahead, returning, below))

    def retry_after(self) -> int:
        """Milliseconds after which it is worth asking again for a slot: half of what a visit keeps the device."""
        return max(BUSY_RETRY_MS, min(MAX_BUSY_RETRY_MS, int(500 * (self.pace.forward + self.pace.backward))))
