"""The HTTP server: the page, the document and its parts as JSON, the live feed, downloads.

Only GET and HEAD, and only paths that are named here: nothing that a client sends becomes a path of a file. What goes
wrong with a client ends with its connection. `serve_live` shows a chronicle, `serve_replay` a log that is over.

Errors: `UnreachableError` if it cannot listen.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from ...errors import UnreachableError, UsageError
from ..chronicle import Chronicle
from ..events import Kept
from .assets import Asset, read_assets
from .feed import Feed, to_json
from .guard import Guard
from .metrics import metrics_text
from .replaying import Replaying

MAX_LISTENERS = 4096
MAX_URL_BYTES, MAX_HEADER_BYTES = 2048, 8192
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
CHUNK_BYTES = 256 << 10

Route = tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]


def parse_place(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT; an IPv6 host in brackets. Raises `UsageError`."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{text!r} is no place to listen at: expected HOST:PORT, such as 127.0.0.1:8080, or off")
    return host.strip("[]"), int(port)


def reachable(host: str, port: int) -> str:
    """HOST:PORT of what listens there, as somebody on this machine reaches it."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{shown}:{port}"


def url_of(host: str, port: int) -> str:
    """The page's address, as somebody on this machine would type it."""
    return f"http://{reachable(host, port)}/"


@contextlib.asynccontextmanager
async def serve_live(chronicle: Chronicle, place: str) -> AsyncIterator[str]:
    """Shows a run for as long as the block lasts; the page's address."""
    feed = Feed(chronicle)

    async def state(request: web.Request) -> web.StreamResponse:
        feed.refresh()
        plain, compressed = feed.whole()
        return _cached(request, Asset(plain, compressed, "application/json", f"{feed.identity}-{feed.tick}"), 1)

    async def listen(request: web.Request) -> web.StreamResponse:
        return await _listen(request, feed)

    async def part(request: web.Request) -> web.StreamResponse:
        feed.refresh()
        return _part(feed.document, request)

    async def download(request: web.Request) -> web.StreamResponse:
        return await _download(request, chronicle.state.kept)

    async def metrics(request: web.Request) -> web.StreamResponse:
        return web.Response(body=metrics_text(chronicle.state), headers={"Content-Type": CONTENT_TYPE_LATEST})

    routes = [
        ("/metrics", metrics),
        ("/api/state", state),
        ("/api/events", listen),
        ("/api/{section:[a-z]+}", part),
        ("/api/{section:peers|members|stages}/{key:[0-9A-Za-z]+}", part),
        (r"/files/{number:\d+}/{name:[\w.-]+}", download),
    ]
    async with _serving(routes, place) as url:
        making = asyncio.create_task(feed.run())
        try:
            yield url
        finally:
            making.cancel()
            for transport in list(feed.listeners):
                transport.abort()


@contextlib.asynccontextmanager
async def serve_replay(replaying: Replaying, place: str) -> AsyncIterator[str]:
    """Shows a run that is past; the page's address."""

    async def state(request: web.Request) -> web.StreamResponse:
        text = request.query.get("sequence", "")
        if text and not (text.isdecimal() and len(text) < 16):
            raise web.HTTPBadRequest(text=f"sequence must be a number, not {text[:40]!r}")
        return web.json_response(body=to_json(replaying.document_at(int(text) if text else replaying.last)))

    async def about(request: web.Request) -> web.StreamResponse:
        return web.json_response(body=to_json(replaying.about()))

    async with _serving([("/api/state", state), ("/api/replay", about)], place) as url:
        yield url


@contextlib.asynccontextmanager
async def _serving(routes: Sequence[Route], place: str) -> AsyncIterator[str]:
    host, port = parse_place(place)
    page, files = read_assets()
    guard: Guard

    @web.middleware
    async def watched(request: web.Request, handler: Handler) -> web.StreamResponse:
        guard.began(request.protocol)
        try:
            answer = await handler(request)
        except web.HTTPException as refusal:
            refusal.headers.update(SAFE)
            raise
        finally:
            guard.ended(request.protocol)
        if not answer.prepared:
            answer.headers.update(SAFE)
        return answer

    async def index(request: web.Request) -> web.StreamResponse:
        return _cached(request, page, 0)

    async def static(request: web.Request) -> web.StreamResponse:
        found = files.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound(text="there is no such file")
        return _cached(request, found, 31536000)

    async def health(request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    app = web.Application(middlewares=[watched], client_max_size=0)
    for path, answer in (("/", index), (r"/static/{name:[\w.]+}", static), ("/healthz", health), *routes):
        app.router.add_get(path, answer)
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        max_line_size=MAX_URL_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        keepalive_timeout=30.0,
    )
    await runner.setup()
    try:
        assert runner.server is not None
        guard = Guard(runner.server)
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(guard.accept, host, port, backlog=1024)
        except OSError as error:
            raise UnreachableError(f"the dashboard cannot listen at {place}: {error.strerror or error}") from error
        watching = asyncio.create_task(guard.run())
        try:
            yield url_of(host, server.sockets[0].getsockname()[1])
        finally:
            watching.cancel()
            server.close()
    finally:
        await runner.cleanup()


def _cached(request: web.Request, found: Asset, seconds: int) -> web.Response:
    """An answer that caches may keep: its tag says whether they have it already."""
    tag = f'"{found.tag}"'
    age = f"public, max-age={seconds}" + (", immutable" if seconds > 3600 else "") if seconds else "no-cache"
    headers = {"ETag": tag, "Cache-Control": age, "Vary": "Accept-Encoding"}
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    headers["Content-Type"] = f"{found.type}; charset=utf-8"
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return web.Response(body=found.compressed, headers={**headers, "Content-Encoding": "gzip"})
    return web.Response(body=found.content, headers=headers)


def _part(document: dict[str, object], request: web.Request) -> web.Response:
    found: object = document.get(request.match_info["section"])
    key = request.match_info.get("key")
    if key is not None:
        found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        raise web.HTTPNotFound(text="there is no such part of the document")
    return web.json_response(body=to_json(found), headers={"Cache-Control": "public, max-age=1"})


async def _listen(request: web.Request, feed: Feed) -> web.StreamResponse:
    if len(feed.listeners) >= MAX_LISTENERS:
        raise web.HTTPServiceUnavailable(text="too many listen; ask again later", headers={"Retry-After": "30"})
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", **SAFE})
    answer.enable_chunked_encoding()
    await answer.prepare(request)
    transport = request.transport
    if transport is None or request.method == "HEAD":
        return answer
    over = asyncio.get_running_loop().create_future()

    def dropped() -> None:
        if not over.done():
            over.set_result(None)

    last = request.headers.get("Last-Event-ID", request.query.get("since", ""))
    # No await from here to `listen`: no tick may come between.
    transport.write(feed.catch_up(last))
    feed.listen(transport, dropped)
    try:
        await over
    finally:
        feed.leave(transport)
        transport.abort()
    return answer


async def _download(request: web.Request, kept: Sequence[Kept]) -> web.StreamResponse:
    """A file that an event names, of the folder that it names."""
    number, name = int(request.match_info["number"][:6]), request.match_info["name"]
    named = {entry[0]: entry for entry in kept[number].files} if number < len(kept) else {}
    if name not in named:
        raise web.HTTPNotFound(text="there is no such file")
    _, size, digest = named[name]
    path = Path(kept[number].folder) / name
    if path.is_symlink() or not path.is_file() or path.stat().st_size != size:
        raise web.HTTPNotFound(text="the file is not there any more")
    answer = web.StreamResponse(
        headers={
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f'attachment; filename="{name}"',
            "Content-Length": str(size),
            "X-SHA256": digest,
            **SAFE,
        }
    )
    await answer.prepare(request)
    if request.method == "HEAD":
        return answer
    with path.open("rb") as file:
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            await answer.write(data)
    await answer.write_eof()
    return answer
