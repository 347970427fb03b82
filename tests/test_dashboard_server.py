"""The dashboard's server: what it serves, and what it does not let itself be made to do."""

import asyncio
import contextlib
import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from swarm_peer.errors import UnreachableError, UsageError
from swarm_peer.swarm import events
from swarm_peer.swarm.chronicle import Chronicle
from swarm_peer.swarm.dashboard import feed, guard, server
from swarm_peer.swarm.dashboard.replaying import Replaying, find_log
from swarm_peer.swarm.event_log import EventLog
from swarm_peer.swarm.merge_patch import apply
from swarm_peer.swarm.run_view import view

from tests.watched_run import beginning, stepped, told

Look = Callable[[str, Chronicle], Awaitable[Any]]


def serving(look: Look, *story: events.Event) -> Any:
    """Runs `look(url, chronicle)` beside a live server, on the loop that a coordinator has."""

    async def main() -> Any:
        chronicle = told(*(story or beginning()))
        async with server.serve_live(chronicle, "127.0.0.1:0") as url:
            return await asyncio.wait_for(look(url, chronicle), 60.0)

    return uvloop.run(main())


async def get(url: str, path: str = "", **headers: str) -> tuple[int, Any, bytes]:
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(url + path.lstrip("/"), headers={"Accept-Encoding": "identity", **headers}) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


async def raw(url: str, *parts: bytes) -> bytes:
    """What comes back for these bytes until the server hangs up or has answered."""
    port = int(url.rstrip("/").rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read(65536)
    except ConnectionError:
        return b""
    finally:
        writer.close()


# ---- what it serves


def test_the_page_and_its_files() -> None:
    async def look(url: str, chronicle: Chronicle) -> None:
        status, headers, page = await get(url)
        assert (status, headers["Cache-Control"]) == (200, "no-cache")
        assert b"{{" not in page
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert b"http://" not in page.replace(b"http://www.w3.org", b"")
        assert b"https://" not in page
        names = [part.split(b'"')[0].decode() for part in page.split(b'"/static/')[1:]]
        assert {name.split(".")[0] for name in names} >= {"app", "style", "charts"}
        for name in names:
            status, headers, content = await get(url, f"static/{name}", **{"Accept-Encoding": "gzip"})
            assert (status, headers["Content-Encoding"]) == (200, "gzip")
            assert "immutable" in headers["Cache-Control"]
            plain = (await get(url, f"static/{name}", **{"Accept-Encoding": "identity"}))[2]
            assert gzip.decompress(content) == plain
            assert hashlib.sha256(plain).hexdigest().startswith(name.split(".")[1])

    serving(look)


def test_the_document_its_parts_and_their_tags() -> None:
    async def look(url: str, chronicle: Chronicle) -> None:
        status, headers, content = await get(url, "api/state")
        document = json.loads(content)
        assert (status, document) == (200, json.loads(json.dumps({**view(chronicle.state), "live": True})))
        assert (await get(url, "api/state", **{"If-None-Match": headers["ETag"]}))[0] == 304
        for section in ("run", "progress", "steps", "stages", "members", "peers", "links", "ledger", "wire", "notes"):
            assert json.loads((await get(url, f"api/{section}"))[2]) == document[section]
        assert json.loads((await get(url, "api/peers/peer2"))[2]) == document["peers"]["peer2"]
        for nothing in ("api/secrets", "api/peers/nobody", "api/replay", "api/sequence/1", "metric", "files/0/x"):
            assert (await get(url, nothing))[0] == 404
        chronicle.emit(stepped(1))
        assert (await get(url, "api/state", **{"If-None-Match": headers["ETag"]}))[0] == 200
        assert (await get(url, "healthz"))[2] == b"ok"

    serving(look)


class Listener:
    """Reads the live feed, and keeps the document by it."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}
        self.kinds: list[str] = []
        self.last = ""

    async def follow(self, url: str, until: Callable[[dict[str, Any]], bool]) -> None:
        headers = {"Last-Event-ID": self.last} if self.last else {}
        async with (
            aiohttp.ClientSession(read_bufsize=1 << 22) as session,
            session.get(url + "api/events", headers=headers) as answer,
        ):
            assert answer.content_type == "text/event-stream"
            kind = ""
            async for line in answer.content:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "id":
                    self.last = value
                elif name == "data":
                    self.kinds.append(kind)
                    said = json.loads(value)
                    self.document = said if kind == "snapshot" else apply(self.document, said)
                    if until(self.document):
                        return


def test_listeners_are_told_what_changes_and_go_on_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "TICK_SECONDS", 0.02)

    async def look(url: str, chronicle: Chronicle) -> None:
        listener, other = Listener(), Listener()
        await listener.follow(url, lambda document: True)
        assert listener.kinds == ["snapshot"]
        for step in range(1, 6):
            chronicle.emit(stepped(step))
        await listener.follow(url, lambda document: document["progress"]["step"] == 5)
        assert set(listener.kinds[1:]) == {"patch"}
        await other.follow(url, lambda document: document["progress"]["step"] == 5)
        assert listener.document == other.document == apply({}, json.loads((await get(url, "api/state"))[2]))
        for strange in ("x-1", f"{listener.last.partition('-')[0]}-999999", "-", "1" * 500):
            unknown = Listener()
            unknown.last = strange
            await unknown.follow(url, lambda document: True)
            assert unknown.kinds == ["snapshot"]

    serving(look)


def test_many_listeners_all_have_the_same_and_the_slow_one_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "TICK_SECONDS", 0.02)

    async def look(url: str, chronicle: Chronicle) -> None:
        port = int(url.rstrip("/").rpartition(":")[2])
        _, slow_writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        slow_writer.write(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\n")  # and never reads
        listeners = [Listener() for _ in range(40)]

        def ended(document: dict[str, Any]) -> bool:
            return bool(document["phase"] == "finished")

        following = [asyncio.create_task(listener.follow(url, ended)) for listener in listeners]
        for number in range(1000):
            # Large events, so that what the system buffers for a slow listener is soon full.
            chronicle.emit(events.Kept("adapter", number, "/x", ((f"{number}" + "a" * 200_000, 1, "00"),)))
            await asyncio.sleep(0.03)
            if made_feeds[0].dropped:
                break
        assert made_feeds[0].dropped == 1
        chronicle.emit(events.Concluded(""))
        await asyncio.gather(*following)
        assert all(listener.document == listeners[0].document for listener in listeners)
        whole = json.loads((await get(url, "api/state"))[2])
        assert listeners[0].document == apply({}, whole)  # what is null is not told
        slow_writer.close()

    made_feeds: list[feed.Feed] = []
    made = server.Feed
    monkeypatch.setattr(server, "Feed", lambda chronicle: made_feeds.append(made(chronicle)) or made_feeds[-1])
    serving(look)


def test_downloads_are_what_the_event_names_and_nothing_else(tmp_path: Path) -> None:
    content = b"weights" * 1000
    (tmp_path / "adapter.safetensors").write_bytes(content)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "linked").symlink_to(tmp_path / "secret")
    digest = hashlib.sha256(content).hexdigest()
    files = (("adapter.safetensors", len(content), digest), ("linked", 6, "0"), ("gone", 6, "0"), ("../secret", 6, "0"))

    async def look(url: str, chronicle: Chronicle) -> None:
        status, headers, came = await get(url, "files/0/adapter.safetensors")
        assert (status, came, headers["X-SHA256"]) == (200, content, digest)
        assert "attachment" in headers["Content-Disposition"]
        for path in ("files/0/secret", "files/0/linked", "files/0/gone", "files/0/..%2fsecret", "files/1/secret"):
            assert (await get(url, path))[0] == 404

    serving(look, *beginning(), events.Kept("adapter", 10, str(tmp_path), files))


# ---- what it does not do


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/static/../server.py",
        "/static/..%2f..%2fserver.py",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/static//etc/passwd",
        "/static/..\\..\\server.py",
        "/static/index.html%00.js",
        "/files/0/../../etc/passwd",
        "/files/-1/x",
        "/api/../../x",
        "/api/__class__",
    ],
)
def test_no_path_leads_out(path: str) -> None:
    async def look(url: str, chronicle: Chronicle) -> bytes:
        return await raw(url, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    answer = serving(look)
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), answer[:200]
    assert b"root:" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading_is_allowed(method: str) -> None:
    async def look(url: str, chronicle: Chronicle) -> bytes:
        return await raw(url, f"{method} /api/state HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    assert serving(look).startswith(b"HTTP/1.1 405")


def test_a_head_has_no_body() -> None:
    async def look(url: str, chronicle: Chronicle) -> bytes:
        return await raw(url, b"HEAD /api/state HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    head, _, body = serving(look).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(50000)) + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nzzzzz",
    ],
)
def test_floods_and_nonsense_are_refused_and_the_next_client_is_served(request_bytes: bytes) -> None:
    async def look(url: str, chronicle: Chronicle) -> tuple[bytes, int]:
        answer = await raw(url, request_bytes)
        return answer, (await get(url))[0]

    answer, after = serving(look)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer[:100]
    assert after == 200


def test_slow_requests_and_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(guard, "IDLE_SECONDS", 0.5)

    async def look(url: str, chronicle: Chronicle) -> None:
        port = int(url.rstrip("/").rpartition(":")[2])
        silent = await asyncio.open_connection("127.0.0.1", port)
        dripping = await asyncio.open_connection("127.0.0.1", port)
        idle = await asyncio.open_connection("127.0.0.1", port)
        idle[1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 4000:
                    dripping[1].write(bytes([byte]))
                    await dripping[1].drain()
                    await asyncio.sleep(0.02)

        dripped = asyncio.create_task(drip())
        listener = Listener()
        listening = asyncio.create_task(listener.follow(url, lambda document: document["phase"] == "finished"))
        for reader, _ in (silent, dripping, idle):
            with contextlib.suppress(ConnectionError):
                while await reader.read(1000):
                    pass
        dripped.cancel()
        assert (await get(url, "healthz"))[0] == 200
        chronicle.emit(events.Concluded(""))  # whoever listens is not idle
        await listening
        for _, writer in (silent, dripping, idle):
            writer.close()

    serving(look)


def test_too_many_listeners_are_told_to_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_LISTENERS", 2)

    async def look(url: str, chronicle: Chronicle) -> tuple[int, str]:
        heard = [asyncio.Event(), asyncio.Event()]

        def hear(event: asyncio.Event) -> Callable[[dict[str, Any]], bool]:
            return lambda document: event.set() or False

        listening = [asyncio.create_task(Listener().follow(url, hear(event))) for event in heard]
        for event in heard:
            await event.wait()
        status, headers, _ = await get(url, "api/events")
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
        return status, headers["Retry-After"]

    assert serving(look) == (503, "30")


@pytest.mark.parametrize("place", ["8080", "localhost", ":80", "x:y", "127.0.0.1:99999"])
def test_a_place_that_is_none_is_said(place: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        server.parse_place(place)


def test_a_port_that_is_taken_is_said() -> None:
    async def look(url: str, chronicle: Chronicle) -> None:
        with pytest.raises(UnreachableError, match=r"cannot listen at 127\.0\.0\.1"):
            async with server.serve_live(chronicle, url.removeprefix("http://").rstrip("/")):
                raise AssertionError("it listens twice")

    serving(look)


# ---- a past run


def past_run(folder: Path) -> EventLog:
    log = EventLog(folder)
    for at, event in enumerate([*beginning(), *(stepped(step) for step in range(1, 10)), events.Concluded("")]):
        log.append(event, 1000.0 + at)
    log.close()
    return log


def test_a_past_run_is_shown_at_any_moment(tmp_path: Path) -> None:
    log = past_run(tmp_path / "run" / "coordinator")
    replaying = Replaying(tmp_path)
    for sequence in range(log.state.sequence + 1):
        assert replaying.document_at(sequence)["sequence"] == sequence
    assert replaying.document_at(10**9) == {**view(log.state), "live": False}

    async def main() -> None:
        async with server.serve_replay(replaying, "127.0.0.1:0") as url:
            about = json.loads((await get(url, "api/replay"))[2])
            assert (about["first"], about["last"]) == (0, log.state.sequence)
            assert about["marks"][-1][0] == log.state.sequence
            assert "the run is finished" in [text for _, _, text in about["stops"]]
            early = json.loads((await get(url, "api/state?sequence=5"))[2])
            assert (early["sequence"], early["live"]) == (5, False)
            for wrong in ("-1", "x", "1" * 30, "1.5"):
                assert (await get(url, f"api/state?sequence={wrong}"))[0] == 400
            assert (await get(url, "api/events"))[0] == 404
            assert (await get(url))[0] == 200

    uvloop.run(main())


def test_which_past_run_is_meant_must_be_clear(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no events are in"):
        find_log(tmp_path)
    past_run(tmp_path / "a")
    assert find_log(tmp_path) == tmp_path / "a"
    past_run(tmp_path / "b")
    with pytest.raises(UsageError, match=r"2 coordinators; name one:\n"):
        find_log(tmp_path)
    assert find_log(tmp_path / "b" / "000001.events") == tmp_path / "b" / "000001.events"
