"""How loaded a replica is: what it measures of itself, and what its callers believe of what it says.

A callee sends its load with every answer (`Load` in `protos/swarm.proto`), a few bytes on what flows anyway. `Pace` is
its own measurement. Pure; knows no socket and no clock. Nothing here can fail: what came from the wire is bounded.
"""

from typing import NamedTuple

from ..protos import swarm_pb2 as pb
from .compute import BACKWARD, FORWARD

SMOOTHING = 0.2
"""Weight of the newest measurement of a device."""

MAX_SECONDS = 600.0
"""No time that a callee claims counts for more."""

UNMEASURED = (0.3, 0.6)
"""Seconds of a forward and a backward before anything is known: only their ratio matters."""


class Load(NamedTuple):
    """Seconds: a visit's own forward and backward, the own compute that open visits still need, and the expected time
    of the stages below."""

    forward: float
    backward: float
    backlog: float = 0.0
    below: float = 0.0

    @property
    def service(self) -> float:
        """Seconds of compute of one visit."""
        return self.forward + self.backward


def to_message(load: Load) -> pb.Load:
    return pb.Load(
        forward=_microseconds(load.forward),
        backward=_microseconds(load.backward),
        backlog=_microseconds(load.backlog),
        below=_microseconds(load.below),
    )


def from_message(message: pb.Load) -> Load | None:
    """What a callee says of itself, bounded; None if it has not measured itself yet."""
    forward, backward = message.forward, message.backward
    if not forward and not backward:
        return None
    return Load(_seconds(forward), _seconds(backward), _seconds(message.backlog), _seconds(message.below))


def _seconds(microseconds: int) -> float:
    return min(microseconds / 1e6, MAX_SECONDS)


def _microseconds(seconds: float) -> int:
    return int(min(max(seconds, 0.0), MAX_SECONDS) * 1e6) if seconds else 0


class Pace(NamedTuple):
    """Smoothed seconds of a forward and of a backward on this device; 0 before the first."""

    forward: float = 0.0
    backward: float = 0.0

    def measured(self, phase: str, seconds: float) -> "Pace":
        if phase == FORWARD:
            return self._replace(forward=_smooth(self.forward, seconds))
        if phase == BACKWARD:
            return self._replace(backward=_smooth(self.backward, seconds))
        return self

    @property
    def throughput(self) -> float:
        """Visits a second of an unshared device; 0 before both phases are measured."""
        return 1 / (self.forward + self.backward) if self.forward and self.backward else 0.0

    def load(self, ahead: int, returning: int, below: float) -> Load:
        """The load with `ahead` open visits whose forward is not done and `returning` ones that need their backward."""
        work = ahead * (self.forward + self.backward) + returning * self.backward
        return Load(self.forward, self.backward, work, below)


def _smooth(mean: float, newest: float) -> float:
    return mean + SMOOTHING * (newest - mean) if mean else newest
