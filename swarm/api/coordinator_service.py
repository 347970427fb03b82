"""The coordinator's service: its run as the dashboard shows it, and what the organizer may do to it.

Reads from the chronicle; acts through `Helm`, which the coordinator gives. Errors: `UsageError` for what cannot be
done, `TrustError` for who may not do it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc

from ...errors import RefusedError
from ...protos import api_pb2 as pb
from ..chronicle import Chronicle
from ..dashboard.server import parse_place
from ..events import Kept
from ..merge_patch import difference
from ..run_view import view
from .server import serving, tls
from .token import Doorkeeper, load_or_create

WATCH_SECONDS = 1.0
MAX_WATCHERS = 64


class Helm(Protocol):
    """What can be done to the run."""

    @property
    def run_id(self) -> str: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def drain(self, peer: str, why: str) -> None: ...

    def ban(self, peer: str, why: str) -> None: ...

    async def evaluate(self) -> Mapping[str, float]: ...

    async def export(self, merge: bool) -> Kept: ...


class CoordinatorService:
    """The handlers, by the names of the methods."""

    def __init__(self, chronicle: Chronicle, helm: Helm, doorkeeper: Doorkeeper) -> None:
        self._chronicle = chronicle
        self._helm = helm
        self._doorkeeper = doorkeeper
        self._watchers = 0

    def handlers(self) -> dict[str, Any]:
        return {
            "Status": self._status,
            "Watch": self._watch,
            "Pause": self._pause,
            "Resume": self._resume,
            "Drain": self._drain,
            "Ban": self._ban,
            "Evaluate": self._evaluate,
            "Export": self._export,
        }

    async def _status(self, request: pb.StatusRequest, context: grpc.aio.ServicerContext) -> pb.RunStatus:
        return self._now()

    def _now(self) -> pb.RunStatus:
        document = view(self._chronicle.state)
        status = status_of(document)
        status.document = json.dumps(document, default=str)
        return status

    async def _watch(self, request: pb.WatchRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.Change]:
        if self._watchers >= MAX_WATCHERS:
            raise RefusedError("BUSY", f"{MAX_WATCHERS} watch already; the dashboard is for more", "this coordinator")
        self._watchers += 1
        try:
            told = view(self._chronicle.state)
            yield pb.Change(status=status_of(told), document=json.dumps(told, default=str), whole=True)
            while True:
                sequence = self._chronicle.state.sequence
                await asyncio.sleep(WATCH_SECONDS)
                await self._chronicle.changed.wait_for(lambda: self._chronicle.state.sequence != sequence)  # noqa: B023
                document = view(self._chronicle.state)
                patch = difference(told, document)
                told = document
                yield pb.Change(status=status_of(document), document=json.dumps(patch, default=str))
        finally:
            self._watchers -= 1

    # ---- what needs the token

    async def _pause(self, request: pb.PauseRequest, context: grpc.aio.ServicerContext) -> pb.RunStatus:
        await self._doorkeeper.check(context.invocation_metadata() or ())
        self._helm.pause()
        return self._now()

    async def _resume(self, request: pb.ResumeRequest, context: grpc.aio.ServicerContext) -> pb.RunStatus:
        await self._doorkeeper.check(context.invocation_metadata() or ())
        self._helm.resume()
        return self._now()

    async def _drain(self, request: pb.DrainRequest, context: grpc.aio.ServicerContext) -> pb.RunStatus:
        await self._doorkeeper.check(context.invocation_metadata() or ())
        self._helm.drain(request.peer, request.why)
        return self._now()

    async def _ban(self, request: pb.BanRequest, context: grpc.aio.ServicerContext) -> pb.RunStatus:
        await self._doorkeeper.check(context.invocation_metadata() or ())
        self._helm.ban(request.peer, request.why)
        return self._now()

    async def _evaluate(self, request: pb.EvaluateRequest, context: grpc.aio.ServicerContext) -> pb.Evaluation:
        await self._doorkeeper.check(context.invocation_metadata() or ())
        found: dict[str, Any] = dict(await self._helm.evaluate())
        return pb.Evaluation(**found)

    async def _export(self, request: pb.ExportRequest, context: grpc.aio.ServicerContext) -> pb.Exported:
        await self._doorkeeper.check(context.invocation_metadata() or ())
        kept = await self._helm.export(request.merge)
        files = [pb.File(name=name, bytes=size, sha256=digest) for name, size, digest in kept.files]
        return pb.Exported(folder=kept.folder, version=kept.version, files=files)


@asynccontextmanager
async def serve_api(
    chronicle: Chronicle, helm: Helm, place: str, certified: tuple[Path, Path] | None
) -> AsyncIterator[str]:
    """Serves the API of a run for as long as the block lasts; its HOST:PORT. `certified`: certificate and key."""
    host, _ = parse_place(place)
    doorkeeper = Doorkeeper(load_or_create(helm.run_id))
    handlers = CoordinatorService(chronicle, helm, doorkeeper).handlers()
    credentials = None if certified is None else tls(*certified)
    async with serving(pb.DESCRIPTOR.services_by_name["Coordinator"], handlers, place, credentials) as port:
        yield f"{host}:{port}"


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
