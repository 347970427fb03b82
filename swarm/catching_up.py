"""How a peer gets the state of its stage from another replica: newcomers, peers that were away, peers whose state is
wrong.

A donor gives the oldest version that it keeps, in parts; the Commits since then, which the trainer sends again, bring
it up to date by the reductions that replicas keep. Nothing stops for it. The trainer compares the digest of what
came with that of the other replicas before the peer takes part.

Errors: `UnreachableError` when no donor gave a whole state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import ProtocolError, RefusedError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .backend import State
from .compute import BACKGROUND, Device
from .exchange import Incoming, Pool
from .fetching import fetch
from .versions import VersionStore

STATE_PART_BYTES = 64 << 20
MAX_STATE_PARTS = 1 << 14


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version of a stage's state as a donor exported it."""

    version: int
    data: bytes


async def fetch_snapshot(
    pool: Pool,
    donors: Sequence[pb.Member],
    run_id: str,
    stage: int,
    max_payload: int,
    version: int | None = None,
    *,
    epoch: int = 0,
) -> Snapshot:
    """The oldest version that one of `donors` keeps, or this one; they are asked in turn. Raises `UnreachableError`."""
    problems: list[str] = []
    for donor in donors:
        pool.addresses.setdefault(donor.peer, tuple(donor.addresses))
        try:
            return await _from_one(pool, donor.peer, run_id, stage, max_payload, version, epoch)
        except (UnreachableError, RefusedError, WireError) as error:
            problems.append(str(error))
    raise UnreachableError(f"nobody gives the state of stage {stage}: {'; '.join(problems) or 'no replica is ready'}")


async def _from_one(
    pool: Pool, donor: str, run_id: str, stage: int, max_payload: int, version: int | None, epoch: int
) -> Snapshot:
    question = pb.Fetch(run=run_id, kind=pb.Fetch.STATE, stage=stage, version=version, epoch=epoch)
    first, data = await fetch(pool, donor, question, max_payload)
    if version not in (None, first.version):
        raise WireError(f"{donor} was asked for version {version} and gave {first.version}")
    if not 1 <= first.parts <= MAX_STATE_PARTS:
        raise WireError(f"{donor} offers a state in {first.parts} parts; 1 to {MAX_STATE_PARTS} are allowed")
    parts = [data]
    question.version = first.version
    for part in range(1, first.parts):
        question.part = part
        answer, data = await fetch(pool, donor, question, max_payload)
        if (answer.version, answer.parts) != (first.version, first.parts):
            raise WireError(f"{donor} began with version {first.version} and went on with {answer.version}")
        parts.append(data)
    return Snapshot(first.version, b"".join(parts))


class Exporter(Protocol):
    def export(self, state: State) -> bytes: ...


@dataclass
class Snapshots:
    """A donor's end: gives its state in parts of no more than `max_payload` bytes, and keeps the last export."""

    run_id: str
    stage: int
    backend: Exporter
    device: Device
    max_payload: int
    _exported: tuple[int, bytes] = (-1, b"")

    def clear(self) -> None:
        """What it holds is not to be given any more."""
        self._exported = (-1, b"")

    async def serve(self, incoming: Incoming, question: pb.Fetch, versions: VersionStore) -> None:
        """Answers a Fetch of a part of the oldest version kept here, or of the one that is asked for."""
        version = versions.latest if question.newest else versions.oldest
        if question.HasField("version"):
            version = question.version
        if question.run != self.run_id or question.stage != self.stage or version < 0:
            raise ProtocolError(f"{incoming.peer} asks for a state of stage {question.stage}; this is {self.stage}")
        if self._exported[0] != version:
            state = versions.get(version)
            if state is None:
                detail = f"version {version} of stage {self.stage} is not kept"
                await incoming.channel.send(pb.Refused(reason=pb.NOT_KEPT, detail=detail))
                return
            self._exported = version, await self.device.run(BACKGROUND, lambda: self.backend.export(state))
        data = self._exported[1]
        size = min(STATE_PART_BYTES, self.max_payload)
        parts = max(1, -(-len(data) // size))
        part = data[question.part * size : (question.part + 1) * size]
        await incoming.channel.send(pb.Fetched(version=version, parts=parts), part)
