"""Who is in a run and up to date, as its coordinators' events tell: for those who choose whom to kill.

Follows whoever leads last; what others say of members no longer counts. Pure bookkeeping, no errors.
"""

from collections.abc import Collection
from typing import Any


class Watching:
    """`leader`: the name of the coordinator that leads, empty before one does; `ready`: peers that are up to date."""

    def __init__(self) -> None:
        self.leader = ""
        self.ready: set[str] = set()
        self.stages: dict[str, int] = {}

    def see(self, event: dict[str, Any]) -> bool:
        """Takes one event; whether it comes from the leader."""
        if event["event"] == "leads":
            self.leader = event["by"]
            self.ready.clear()
        if event["by"] != self.leader:
            return False
        if event["event"] == "joined":
            self.stages[event["peer"]] = event["stage"]
        elif event["event"] == "ready":
            self.ready.add(event["peer"])
        elif event["event"] == "lost":
            self.ready.discard(event["peer"])
        return True

    def may_fail(self, down: Collection[str] = ()) -> list[str]:
        """The peers whose stage has another up-to-date replica; neither is among those that are `down`."""
        well = [peer for peer in self.ready if peer not in down]
        stages = [self.stages[peer] for peer in well]
        return sorted(peer for peer in well if stages.count(self.stages[peer]) > 1)
