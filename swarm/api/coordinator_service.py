"""The coordinator's service: its run as the dashboard shows it, and what the organizer may do to it.

Reads from the chronicle (`watching.py`); acts through `Helm`, which the coordinator gives. Errors: `UsageError` for
what cannot be done, `TrustError` for who may not do it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc

from ...protos import api_pb2 as pb
from ..chronicle import Chronicle
from ..dashboard.server import parse_place, reachable
from ..events import Kept
from .server import serving, tls
from .token import Doorkeeper, load_or_create
from .watching import Ticks, status_of, to_json


class Helm(Protocol):
    """What can be done to the run."""

    @property
    def run_id(self) -> str: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def drain(self, peer: str, why: str) -> None: ...

    def ban(self, peer: str, why: str) -> None: ...

    async def evaluate(self) -> Mapping[str, float]: ...

    async def export(self, merge: bool, tell: Callable[[str], None]) -> Kept: ...


class CoordinatorService:
    """The handlers, by the names of the methods."""

    def __init__(self, ticks: Ticks, helm: Helm, doorkeeper: Doorkeeper) -> None:
        self._ticks = ticks
        self._helm = helm
        self._doorkeeper = doorkeeper

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
        document = self._ticks.document()
        status = status_of(document)
        status.document = to_json(document)
        return status

    async def _watch(self, request: pb.WatchRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.Change]:
        async with aclosing(self._ticks.watch()) as changes:
            async for change in changes:
                yield change

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

    async def _export(
        self, request: pb.ExportRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ExportProgress]:
        await self._doorkeeper.check(context.invocation_metadata() or ())
        lines: asyncio.Queue[str | None] = asyncio.Queue()
        export = asyncio.create_task(self._helm.export(request.merge, lines.put_nowait))
        export.add_done_callback(lambda task: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None:
                yield pb.ExportProgress(line=line)
            kept = await export
        finally:
            export.cancel()
        files = [pb.File(name=name, bytes=size, sha256=digest) for name, size, digest in kept.files]
        yield pb.ExportProgress(exported=pb.Exported(folder=kept.folder, version=kept.version, files=files))


@asynccontextmanager
async def serve_api(
    chronicle: Chronicle, helm: Helm, place: str, certified: tuple[Path, Path] | None
) -> AsyncIterator[str]:
    """Serves the API of a run for as long as the block lasts; its HOST:PORT. `certified`: certificate and key."""
    host, _ = parse_place(place)
    ticks = Ticks(chronicle)
    handlers = CoordinatorService(ticks, helm, Doorkeeper(load_or_create(helm.run_id))).handlers()
    credentials = None if certified is None else tls(*certified)
    making = asyncio.create_task(ticks.run())
    try:
        async with serving(pb.DESCRIPTOR.services_by_name["Coordinator"], handlers, place, credentials) as port:
            yield reachable(host, port)
    finally:
        making.cancel()
