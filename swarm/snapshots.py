"""A donor's end of catching up: gives a version of its stage's state, in parts.

Owns the exports: one a version, made once however many ask for it, kept while somebody reads it, two at the most. What
takes time (export, digests) is done on the device in the background; of parts no more than four leave at once, so that
visits find room on the link. Nothing of the donor's own work waits for a newcomer.

A version that is not kept is refused (NOT_KEPT), and so is a third one while two are being read (NOT_READY). Errors:
`ProtocolError` for a question about another run or stage, `UnreachableError` for an asker that takes nothing in.
"""

import asyncio
import hashlib
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ..errors import ProtocolError, UnreachableError
from ..protos import swarm_pb2 as pb
from .backend import State
from .compute import BACKGROUND, Device
from .serving import Incoming
from .snapshot_parts import MAX_STATE_PARTS, part_bytes, parts_of
from .versions import VersionStore

STATE_PART_BYTES = 1 << 20
HASHED_AT_ONCE = 32
"""Parts whose digests are one piece of work: what closes a step takes its turn in between."""

MAX_EXPORTS = 2
KEPT_SECONDS = 30.0
"""How long an export is kept that nobody asks for."""

READ_SECONDS = 3.0
"""An export that somebody has asked for so recently gives way to none of another version."""

SENDING_AT_ONCE = 4
SEND_SECONDS = 60.0
"""How long a part may take to leave: who takes it in more slowly would keep others from their turn."""


@dataclass(eq=False)
class _Export:
    """A version, as bytes once they are made. `readers`: the questions about it that are being answered."""

    state: State
    asked: float
    readers: int = 0
    data: bytes | None = None
    digests: tuple[bytes, ...] = ()
    making: asyncio.Lock = field(default_factory=asyncio.Lock)


class Exporter(Protocol):
    """What makes bytes of a state: a backend, or whoever has them already."""

    def export(self, state: State) -> bytes: ...


@dataclass
class Snapshots:
    """Answers for one stage, in parts of no more than `max_payload` bytes."""

    run_id: str
    stage: int
    backend: Exporter
    device: Device
    max_payload: int
    epoch: int = 0
    """Of the versions; who asks for another epoch's gets none."""

    _exports: dict[int, _Export] = field(default_factory=dict)
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SENDING_AT_ONCE))

    @property
    def held(self) -> int:
        """How many exports it holds."""
        return len(self._exports)

    def clear(self) -> None:
        """What it holds is not to be given any more."""
        self._exports.clear()

    async def serve(self, incoming: Incoming, question: pb.Fetch, versions: VersionStore) -> None:
        """Answers a Fetch of a part of the oldest version kept here, or of the newest, or of the one that is asked for.

        A part beyond the last is answered by the digests of all.
        """
        version = versions.latest if question.newest else versions.oldest
        if question.HasField("version"):
            version = question.version
        if question.run != self.run_id or question.stage != self.stage or version < 0:
            raise ProtocolError(f"{incoming.peer} asks for a state of stage {question.stage}; this is {self.stage}")
        if question.epoch != self.epoch and not question.newest:
            detail = f"version {version} of stage {self.stage} is of epoch {self.epoch} here"
            await self._refuse(incoming, pb.NOT_KEPT, detail)
            return
        export = self._exports.get(version)
        if export is None:
            state = versions.get(version)
            if state is None:
                await self._refuse(incoming, pb.NOT_KEPT, f"version {version} of stage {self.stage} is not kept")
                return
            if not self._make_room():
                being_read = f"versions {sorted(self._exports)} of stage {self.stage} are being read"
                await self._refuse(incoming, pb.NOT_READY, f"{being_read}; version {version} must wait")
                return
            export = self._exports[version] = _Export(state, _now())
            self._expire(version, export)
        export.readers += 1
        try:
            await self._make(version, export)
            await self._answer(incoming, question.part, version, export)
        finally:
            export.readers -= 1
            export.asked = _now()

    async def _refuse(self, incoming: Incoming, reason: pb.Reason, detail: str) -> None:
        await incoming.channel.send(pb.Refused(reason=reason, detail=detail))

    def _make_room(self) -> bool:
        """Whether there is room for one more export; the one that nobody has read for longest gives way."""
        if len(self._exports) < MAX_EXPORTS:
            return True
        idle = [(export.asked, version) for version, export in self._exports.items() if not export.readers]
        asked, version = min(idle, default=(_now(), -1))
        if asked + READ_SECONDS > _now():
            return False
        del self._exports[version]
        return True

    def _expire(self, version: int, export: _Export) -> None:
        """Lets go of an export when nobody has asked for it for a while."""
        if self._exports.get(version) is not export:
            return
        left = KEPT_SECONDS if export.readers else export.asked + KEPT_SECONDS - _now()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._expire, version, export)
        else:
            del self._exports[version]

    async def _make(self, version: int, export: _Export) -> None:
        """Sees to it that an export is there: whoever asks first makes it, and if he is cancelled, the next one."""
        async with export.making:
            if export.data is not None or self._exports.get(version) is not export:
                return
            try:
                data = await self.device.run(BACKGROUND, lambda: self.backend.export(export.state))
                most = max(STATE_PART_BYTES, -(-len(data) // MAX_STATE_PARTS))
                parts = parts_of(len(data), min(most, self.max_payload))
                digests: list[bytes] = []
                for first in range(0, parts, HASHED_AT_ONCE):
                    some = range(first, min(parts, first + HASHED_AT_ONCE))
                    digests += await self.device.run(BACKGROUND, partial(_digests, data, parts, some))
            except Exception:
                if self._exports.get(version) is export:
                    del self._exports[version]
                raise
            export.data, export.digests, export.state = data, tuple(digests), None

    async def _answer(self, incoming: Incoming, part: int, version: int, export: _Export) -> None:
        parts = len(export.digests)
        if part < parts:
            async with self._turns:
                await self._give(incoming, part, version, export)
        else:
            await self._give(incoming, part, version, export)

    async def _give(self, incoming: Incoming, part: int, version: int, export: _Export) -> None:
        data, parts = export.data, len(export.digests)
        if data is None or self._exports.get(version) is not export:
            await self._refuse(incoming, pb.NOT_KEPT, f"version {version} of stage {self.stage} is no longer given")
            return
        answer = pb.Fetched(version=version, parts=parts, size=len(data), epoch=self.epoch)
        if part >= parts:
            answer.digests.extend(export.digests)
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await incoming.channel.send(answer, _part(data, parts, part))
        except TimeoutError as error:
            raise UnreachableError(f"{incoming.peer} takes in no part within {SEND_SECONDS:.0f} s") from error


def _now() -> float:
    return asyncio.get_running_loop().time()


def _part(data: bytes, parts: int, part: int) -> memoryview:
    """A part, not copied; nothing of one beyond the last."""
    length = part_bytes(len(data), parts)
    return memoryview(data)[part * length : (part + 1) * length]


def _digests(data: bytes, parts: int, some: range) -> list[bytes]:
    return [hashlib.sha256(_part(data, parts, part)).digest() for part in some]
