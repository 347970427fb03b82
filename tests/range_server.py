"""A real HTTP server of one folder with byte ranges, counting what it sends, and failing where a test says so."""

import hashlib
import re
import socket
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Request:
    path: str
    range: str | None
    authorization: str | None


class RangeServer(ThreadingHTTPServer):
    """A context manager. `served`: body bytes by file name. What follows may be changed while it serves:

    `ranges`: whether Range is understood; `tags`: whether an ETag is sent; `statuses`: by file name, in place of the
    file; `drops`: each cuts one later response with a body larger than it after so many bytes; `redirect`: where
    safetensors are sent to; `commit`: as the Hub names it; `moved`: what paths began with, and begin with now.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.served: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.ranges = True
        self.tags = True
        self.statuses: dict[str, list[int]] = {}
        self.drops: list[int] = []
        self.redirect = ""
        self.commit = ""
        self.moved = ("", "")

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that closes early is part of the tests; anything else is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    @property
    def bytes_served(self) -> int:
        return self.served.total()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.shutdown()
        self.server_close()


def _digest(file: Path) -> str:
    """Of a file as it is now; a large one is read once."""
    state = file.stat()
    return _digest_of(file, state.st_size, state.st_mtime_ns)


@cache
def _digest_of(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RangeServer

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at `requests` instead."""

    def do_GET(self) -> None:
        server, path = self.server, self.path.lstrip("/")
        file, name = server.folder / path, Path(path).name
        server.requests.append(Request(path, self.headers["Range"], self.headers["Authorization"]))
        waiting = server.statuses.get(name)
        old, new = server.moved
        if old and path.startswith(old):
            self._answer(307, name, b"", {"Location": f"/{new}{path.removeprefix(old)}"})
        elif waiting:
            self._answer(waiting.pop(0), name, b"")
        elif not file.is_file():
            self._answer(404, name, b"")
        elif server.redirect and name.endswith(".safetensors"):
            headers = {"Location": server.redirect + path, "X-Linked-ETag": _digest(file)}
            self._answer(302, name, b"", headers)
        else:
            self._file(name, file)

    def _file(self, name: str, file: Path) -> None:
        size, tag = file.stat().st_size, f'"{_digest(file)[:16]}"'
        headers = {"ETag": tag} if self.server.tags else {}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if not wanted or not self.server.ranges or self.headers.get("If-Range", tag) != tag:
            self._answer(200, name, file.read_bytes(), headers)
            return
        start, last = int(wanted[1]), min(int(wanted[2]), size - 1)
        if start >= size:
            self._answer(416, name, b"", headers | {"Content-Range": f"bytes */{size}"})
            return
        headers["Content-Range"] = f"bytes {start}-{last}/{size}"
        with file.open("rb") as content:
            content.seek(start)
            self._answer(206, name, content.read(last + 1 - start), headers)

    def _answer(self, status: int, name: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        server = self.server
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if server.commit and status != 307:
            self.send_header("X-Repo-Commit", server.commit)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        drop = server.drops.pop(0) if server.drops and len(body) > server.drops[0] else None
        sent = body if drop is None else body[:drop]
        server.served[name] += len(sent)
        try:
            self.wfile.write(sent)
            self.wfile.flush()
            if drop is not None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            self.close_connection = True  # the reader had seen enough
