"""Who is in a run, up to date and about to stay, as its coordinators' events tell: for those who choose whom to kill.

Follows whoever leads last; what others say of members no longer counts. Pure bookkeeping, no errors.
"""

from collections.abc import Callable, Collection
from typing import Any


class Watching:
    """`leader`: the name of the coordinator that leads, empty before one does; `ready`: peers that are up to date and
    do not leave; `stages`: where everybody is, whether up to date or not."""

    def __init__(self) -> None:
        self.leader = ""
        self.ready: set[str] = set()
        self.stages: dict[str, int] = {}

    def see(self, event: dict[str, Any]) -> bool:
        """Takes one event; whether it comes from the leader."""
        if event["event"] == "leads":
            self.leader = event["by"]
            self.ready.clear()
            self.stages.clear()
        if event["by"] != self.leader:
            return False
        if event["event"] == "joined":
            self.stages[event["peer"]] = event["stage"]
        elif event["event"] == "ready":
            self.ready.add(event["peer"])
        elif event["event"] == "draining":
            self.ready.discard(event["peer"])
        elif event["event"] in ("left", "lost"):
            self.ready.discard(event["peer"])
            self.stages.pop(event["peer"], None)
        return True

    def may_fail(self, down: Collection[str] = (), machine: Callable[[str], str] = lambda peer: peer) -> list[str]:
        """The peers whose `machine` can be done without: each stage that it hosts has an up-to-date replica on another
        one. None of them is among those that are `down`."""
        hosts: dict[int, set[str]] = {}
        for peer in self.ready.difference(down):
            hosts.setdefault(self.stages[peer], set()).add(machine(peer))
        needed = {next(iter(machines)) for machines in hosts.values() if len(machines) == 1}
        return sorted(peer for peer in self.ready.difference(down) if machine(peer) not in needed)
