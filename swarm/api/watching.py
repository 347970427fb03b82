"""What those are told who watch a run: everything at first, then once a second what has changed.

A tick is made once for all watchers, when the chronicle has something new. Whoever takes longer than a tick to take one
in misses some and is told the difference to the newest, so that nothing piles up for anybody; whoever takes much longer
is dropped by the server (`server.py`).

Errors: `RefusedError` if too many watch.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import RefusedError
from ...protos import api_pb2 as pb
from ..chronicle import Chronicle
from ..conditions import Signal
from ..merge_patch import difference
from ..run_view import view

TICK_SECONDS = 1.0
MAX_WATCHERS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Tick:
    """`change` leads from `before`, the document of the tick before it, to `document`."""

    document: Mapping[str, Any]
    before: Mapping[str, Any]
    change: pb.Change

    def since(self, told: Mapping[str, Any]) -> pb.Change:
        """What leads from a document to this one."""
        return self.change if told is self.before else change_between(told, self.document)


class Ticks:
    """The ticks of one chronicle."""

    def __init__(self, chronicle: Chronicle) -> None:
        self._chronicle = chronicle
        self._made = Signal()
        self._document = view(chronicle.state)
        self._tick = Tick(self._document, self._document, pb.Change())
        self.watchers = 0

    def document(self) -> Mapping[str, Any]:
        """The document of this moment."""
        if self._document["sequence"] != self._chronicle.state.sequence:
            self._document = view(self._chronicle.state)
        return self._document

    async def run(self) -> None:
        """Makes ticks while somebody watches. Never returns."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self._chronicle.changed.wait_for(self._is_due)
            before, document = self._tick.document, self.document()
            self._tick = Tick(document, before, change_between(before, document))
            self._made.notify()

    def _is_due(self) -> bool:
        return self.watchers > 0 and self._tick.document["sequence"] < self._chronicle.state.sequence

    async def watch(self) -> AsyncGenerator[pb.Change, None]:
        """What one watcher is told. Raises `RefusedError`."""
        if self.watchers >= MAX_WATCHERS:
            raise RefusedError("BUSY", f"{MAX_WATCHERS} watch already; the dashboard is for more", "this coordinator")
        self.watchers += 1
        try:
            told = self.document()
            yield pb.Change(status=status_of(told), document=to_json(told), whole=True)
            while True:
                sequence = told["sequence"]
                await self._made.wait_for(lambda: self._tick.document["sequence"] > sequence)  # noqa: B023
                tick = self._tick
                change, told = tick.since(told), tick.document
                yield change
        finally:
            self.watchers -= 1


def change_between(told: Mapping[str, Any], document: Mapping[str, Any]) -> pb.Change:
    return pb.Change(status=status_of(document), document=to_json(difference(told, document)))


def to_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, default=str)


def status_of(document: Mapping[str, Any]) -> pb.RunStatus:
    """The document's heart, typed."""
    progress, ledger, peers = document["progress"], document["ledger"], document["peers"]
    return pb.RunStatus(
        run=document["run"]["run_id"],
        phase=document["phase"],
        sentence=document["sentence"],
        step=progress["step"] + 1,
        steps=document["run"].get("steps", 0),
        loss=progress["loss"],
        heldout=progress["heldout"],
        tokens_per_second=progress["tokens_per_second"],
        ideal_tokens_per_second=progress["ideal_tokens_per_second"],
        seconds_left=progress["seconds_left"],
        microbatches=ledger["microbatches"],
        lost=ledger["lost"],
        duplicated=ledger["duplicated"],
        faults=ledger["faults"],
        stages=[
            pb.Stage(
                stage=int(stage),
                replicas=found["replicas"],
                rate=found["rate"],
                queue=found["queue"],
                slowest=found["is_slowest"],
            )
            for stage, found in document["stages"].items()
        ],
        members=[
            pb.Member(
                peer=member["peer"],
                name=peers[member["peer"]]["name"],
                stage=member["stage"],
                state=member["state"],
                counted=member["counted"],
                credit=peers[member["peer"]]["credit"],
                waits=member["waits"],
            )
            for member in document["members"].values()
        ],
    )
