"""Checks of one run that with a standby each Commit is made by a majority of those who made the one before it."""

from collections.abc import Callable, Iterable

from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.swarm.crew import name_in_crew
from swarm_peer.swarm.events import WentBack
from swarm_peer.swarm.host import StageHost


class Crews:
    """By epoch and step, who made a Commit that somebody has applied. `fail` is told what is wrong; `peers`: with whom
    the run begins, if nobody knows better."""

    def __init__(self, fail: Callable[[Exception], None], peers: Iterable[str]) -> None:
        self._fail = fail
        self._founders = frozenset(name_in_crew(peer) for peer in peers)
        self._crews: dict[tuple[int, int], frozenset[int]] = {}
        self._last: frozenset[int] = frozenset()

    def went_back(self, swarm: SimulatedSwarm, event: WentBack) -> None:
        """The Commit before the first step of an epoch is the last one that its trainer had made, whatever its step."""
        (crew,) = {of.crew.last for of in swarm.trainers if of.beginning.epoch == event.epoch}
        self._crews[event.epoch, event.step - 1] = crew or self._last

    def applied(self, swarm: SimulatedSwarm, host: StageHost, step: int) -> None:
        """A peer has applied the Commit of a step."""
        commit = host.recollection.commits.get(step)
        if commit is None or self._crews.get((commit.epoch, step)) == frozenset(commit.crew):
            return
        told = (frozenset(host.authority.founders), *(trainer.crew.founders for trainer in swarm.trainers))
        before = self._crews.get((commit.epoch, step - 1), max(told, key=len) or self._founders)
        self._crews[commit.epoch, step] = self._last = frozenset(commit.crew)
        both = len(self._last & before)
        if 2 * both <= len(before):
            self._fail(AssertionError(f"step {step} was committed by {both} of {len(before)} members"))
