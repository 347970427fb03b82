"""Who is in a run, up to date and about to stay, as its coordinators' events tell: for those who choose whom to kill.

Follows whoever leads, and when two do for a moment, of one term even, the one that goes on: a coordinator that begins
to follow another one leads no more, and what it said of members no longer counts. Pure bookkeeping, no errors.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Said:
    """What one that leads has said: peers that are up to date and do not leave, and where everybody is."""

    ready: set[str] = field(default_factory=set)
    stages: dict[str, int] = field(default_factory=dict)


class Watching:
    """What the coordinators say of their run."""

    def __init__(self) -> None:
        self._leading: dict[str, _Said] = {}
        """By the name of the coordinator; who began last is last."""

    @property
    def leader(self) -> str:
        """The name of the coordinator that leads, empty before one does."""
        return next(reversed(self._leading), "")

    @property
    def ready(self) -> set[str]:
        """Peers that are up to date and do not leave."""
        return self._said.ready

    @property
    def stages(self) -> dict[str, int]:
        """Where everybody is, whether up to date or not."""
        return self._said.stages

    @property
    def _said(self) -> _Said:
        return self._leading.get(self.leader) or _Said()

    def see(self, event: dict[str, Any]) -> bool:
        """Takes one event; whether it comes from the leader."""
        kind, by = event["event"], event["by"]
        if kind == "leads":
            self._leading.pop(by, None)
            self._leading[by] = _Said()
        elif kind == "follows" and len(self._leading) > 1:
            self._leading.pop(by, None)
        if by not in self._leading:
            return False
        said = self._leading[by]
        if kind == "joined":
            said.stages[event["peer"]] = event["stage"]
        elif kind == "ready":
            said.ready.add(event["peer"])
        elif kind == "draining":
            said.ready.discard(event["peer"])
        elif kind in ("left", "lost"):
            said.ready.discard(event["peer"])
            said.stages.pop(event["peer"], None)
        return bool(by == self.leader)

    def may_fail(self, down: Collection[str] = (), machine: Callable[[str], str] = lambda peer: peer) -> list[str]:
        """The peers whose `machine` can be done without: each stage that it hosts has an up-to-date replica on another
        one. None of them is among those that are `down`."""
        hosts: dict[int, set[str]] = {}
        for peer in self.ready.difference(down):
            hosts.setdefault(self.stages[peer], set()).add(machine(peer))
        needed = {next(iter(machines)) for machines in hosts.values() if len(machines) == 1}
        return sorted(peer for peer in self.ready.difference(down) if machine(peer) not in needed)
