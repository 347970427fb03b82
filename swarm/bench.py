"""Who sits out: replicas that another one of their stage cannot reach, though the trainer hears both.

They would fail every all-reduce of the stage. Each time a peer sits out for twice as long. Knows no clock, no socket.
"""

from dataclasses import dataclass, field

FIRST_SECONDS = 10.0


@dataclass
class Bench:
    """By peer: until when it sits out, and for how long it was told to."""

    _out: dict[str, tuple[float, float]] = field(default_factory=dict)

    def send(self, peer: str, now: float) -> float:
        """Has a peer sit out from now on; for how many seconds."""
        _, before = self._out.get(peer, (0.0, FIRST_SECONDS / 2))
        self._out[peer] = now + 2 * before, 2 * before
        return 2 * before

    def holds(self, peer: str, now: float) -> bool:
        until, _ = self._out.get(peer, (0.0, 0.0))
        return now < until

    def call_back(self, peer: str) -> None:
        """Its time is over; how often it was here is remembered."""
        _, seconds = self._out[peer]
        self._out[peer] = 0.0, seconds
