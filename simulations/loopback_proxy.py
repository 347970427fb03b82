"""Bad links between real processes on one machine: a TCP proxy that delays, thins, stalls and cuts.

Every process of a `ProxyNet` listens on a loopback address of its own (`listen_for`) and announces only its proxy's
(`address_for`). libp2p dials from the port it listens on (SO_REUSEPORT), so the proxy knows the dialer by the address
that a connection comes from (or, when libp2p falls back to another port because the last connection is not quite gone,
by who has the other end: `socket_owners.py`), the target by the port that it comes to, and so the pair. Each pair of
processes, whoever dialled, has two `_Way`s that can be made worse and better while connections are open. What arrives
is what was sent, in order, later: a link holds, it never loses or changes.

Owns a thread with an event loop, one listening socket a process, and at most `buffer_bytes` of each connection's each
direction; who sends faster than the link carries is held up. A side that ends its connection lets go of it at once,
and the other side hears of it over the link. A connection from a process that is not of the net is refused.

Needs 127.0.0.0/8 to be local, which is so on Linux. Errors: `UsageError` where it is not.
"""

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from ..errors import UsageError
from .socket_owners import listener_with

T = TypeVar("T")

LISTEN_PORT = 4001
"""Of every process, each on its own address, and the following ones if it has several; the proxies have it and the
following ones on the net's first address."""

CHUNK_BYTES = 64 << 10
BUFFER_BYTES = 32 << 20
PIECE_SECONDS = 0.02
"""A thinned link carries what it can in this time at once, so that a change of its rate is soon felt."""

SMALLEST_PIECE = 256
NETS = 1 << 14


@dataclass(eq=False)
class _Downlink:
    """What comes to one process, from whomever: a token bucket of `PIECE_SECONDS`, without limit if `rate` is 0."""

    rate: float = 0.0
    _free_at: float = 0.0

    async def pass_through(self, size: int) -> None:
        """Returns when so many bytes have come through; in the order of the calls."""
        if not self.rate:
            return
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time() - PIECE_SECONDS) + size / self.rate
        if self._free_at > loop.time():
            await asyncio.sleep(self._free_at - loop.time())


class _Way:
    """One direction between two processes, shared by all their connections."""

    def __init__(self, delay: float, rate: float, into: _Downlink) -> None:
        self.into = into
        self.delay = delay
        self.rate = rate
        self.cut = False
        self.stalled_until = 0.0
        self.carried = 0
        self._free_at = 0.0
        self._changed = asyncio.Event()

    def change(self, **settings: Any) -> None:
        """Sets attributes; what is on its way is carried on by the new ones."""
        for name, value in settings.items():
            setattr(self, name, value)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def arrive(self, sent: float) -> None:
        """Returns when what left at `sent` is at the other end: never while the link is cut."""
        loop = asyncio.get_running_loop()
        while True:
            due = max(sent + self.delay, self.stalled_until)
            if not self.cut and due <= loop.time():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if self.cut else due):
                    await self._changed.wait()

    async def carry(self, sent: float, data: bytes, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
        """Brings data that left at `sent` to the other end, at no more than the link's rate."""
        loop = asyncio.get_running_loop()
        while data:
            await self.arrive(sent)
            piece = data
            if self.rate:
                piece = data[: max(SMALLEST_PIECE, int(self.rate * PIECE_SECONDS))]
                self._free_at = max(self._free_at, loop.time()) + len(piece) / self.rate
                await asyncio.sleep(self._free_at - loop.time())
                await self.arrive(sent)
            await self.into.pass_through(len(piece))
            await write(piece)
            self.carried += len(piece)
            data = data[len(piece) :]


@dataclass(eq=False)
class _Side:
    """One end of a proxied connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Ends it at once, leaving neither kernel anything to remember: the same pair of ports may be used again."""
        if not self.writer.is_closing():
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()


@dataclass(eq=False)
class _Buffer:
    """What one side has sent and the other has not got, with the times at which it was sent; None is its end."""

    limit: int
    entries: deque[tuple[float, bytes | None]] = field(default_factory=deque)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _held: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def fill(self, side: _Side) -> None:
        """Takes in what a side sends, to its end."""
        loop = asyncio.get_running_loop()
        data: bytes | None = b""
        while data is not None:
            while self._held >= self.limit:
                self._news.clear()
                await self._news.wait()
            try:
                data = await side.reader.read(CHUNK_BYTES) or None
            except OSError:
                data = None
            self.entries.append((loop.time(), data))
            self._held += len(data or b"")
            self._news.set()
        self.ended.set()
        side.reset()

    async def empty(self, way: _Way, side: _Side, since: float) -> None:
        """Brings it all to a side, whose end has been connected `since`; then ends that side's connection."""
        while True:
            while not self.entries:
                self._news.clear()
                await self._news.wait()
            sent, data = self.entries.popleft()
            if data is None:
                await way.arrive(sent)
                side.writer.close()
                return
            await way.carry(max(sent, since), data, side.write)
            self._held -= len(data)
            self._news.set()


class ProxyNet:
    """The links of a group of processes, known by any names. `delay` (seconds each way) and `bytes_per_second` (0: no
    limit) are those of every pair until told otherwise. A process may listen at `ports` ports, one after the other, and
    each has a proxy, at ports one after the other too. To be driven from any thread; close it when done."""

    def __init__(
        self,
        *,
        delay: float = 0.0,
        bytes_per_second: float = 0.0,
        buffer_bytes: int = BUFFER_BYTES,
        ports: int = 1,
    ) -> None:
        self._delay = delay
        self._rate = bytes_per_second
        self._buffer_bytes = buffer_bytes
        self._ports = ports
        self._numbers: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._ways: dict[tuple[str, str], _Way] = {}
        self._downlinks: dict[str, _Downlink] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], None] = {}
        self.refused = 0
        self._claim, self._prefix = _claim_prefix()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loopback-proxy", daemon=True)
        self._thread.start()

    # ---- addresses

    def listen_for(self, name: str) -> str:
        """The (first) multiaddr at which this process is to listen."""
        return f"/ip4/{self._prefix}.{self._number(name) + 2}/tcp/{LISTEN_PORT}"

    def address_for(self, name: str) -> str:
        """The (first) multiaddr that this process is to announce: its proxy's."""
        return f"/ip4/{self._prefix}.1/tcp/{LISTEN_PORT + self._number(name) * self._ports}"

    def _number(self, name: str) -> int:
        return self._do(lambda: self._add(name))

    async def _add(self, name: str) -> int:
        if name not in self._numbers:
            number = self._numbers[name] = len(self._numbers)
            self._names[f"{self._prefix}.{number + 2}"] = name

            def accept(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = self._loop.create_task(self._accept(name, port, _Side(reader, writer)))
                self._connections[task] = None
                task.add_done_callback(self._connections.pop)

            for port in range(self._ports):
                at = LISTEN_PORT + number * self._ports + port
                self._servers.append(await asyncio.start_server(partial(accept, port), f"{self._prefix}.1", at))
        return self._numbers[name]

    # ---- links

    def cut(self, one: str, other: str, *, both: bool = True) -> None:
        """From now on nothing passes from `one` to `other`, and with `both` nothing back; no connection is made."""
        self._change(one, other, both, cut=True)

    def heal(self, one: str, other: str) -> None:
        """Ends a cut, either way; what was held goes on."""
        self._change(one, other, True, cut=False)

    def stall(self, one: str, other: str, seconds: float) -> None:
        """Nothing passes for `seconds`, either way."""

        async def stall() -> None:
            for way in (self._way(one, other), self._way(other, one)):
                way.change(stalled_until=max(way.stalled_until, self._loop.time() + seconds))

        self._do(stall)

    def thin(self, one: str, other: str, bytes_per_second: float) -> None:
        """Each way carries no more than this; 0 takes the limit away."""
        self._change(one, other, True, rate=bytes_per_second)

    def narrow(self, name: str, bytes_per_second: float) -> None:
        """All that comes to this process together is no more than this; 0 takes the limit away."""

        async def narrow() -> None:
            self._downlink(name).rate = bytes_per_second

        self._do(narrow)

    def delay(self, one: str, other: str, seconds: float) -> None:
        """Each way takes this long; a round trip takes twice as long."""
        self._change(one, other, True, delay=seconds)

    def carried(self, one: str, other: str) -> int:
        """Bytes that have come from `one` to `other`."""

        async def carried() -> int:
            return self._way(one, other).carried

        return self._do(carried)

    def _change(self, one: str, other: str, both: bool, **settings: Any) -> None:
        async def change() -> None:
            for way in [(one, other), (other, one)][: 1 + both]:
                self._way(*way).change(**settings)

        self._do(change)

    def _way(self, sender: str, receiver: str) -> _Way:
        if (sender, receiver) not in self._ways:
            self._ways[sender, receiver] = _Way(self._delay, self._rate, self._downlink(receiver))
        return self._ways[sender, receiver]

    def _downlink(self, name: str) -> _Downlink:
        return self._downlinks.setdefault(name, _Downlink())

    # ---- connections

    async def _accept(self, target: str, port: int, near: _Side) -> None:
        try:
            dialer = await self._dialer(near.writer.get_extra_info("peername"))
            if dialer is None:
                self.refused += 1
                raise OSError("a connection from nobody of this net")
            await self._connect(dialer, target, port, near)
        except* OSError:
            pass  # nobody listens there: the dialer hears of it by the end of its connection
        finally:
            near.reset()

    async def _dialer(self, source: tuple[str, int]) -> str | None:
        """Which process a connection comes from."""
        if source[0] in self._names:
            return self._names[source[0]]
        listeners = [(address, LISTEN_PORT + port) for address in self._names for port in range(self._ports)]
        found = await self._loop.run_in_executor(None, listener_with, source, listeners)
        return self._names[found[0]] if found else None

    async def _connect(self, dialer: str, target: str, port: int, near: _Side) -> None:
        there, back = self._way(dialer, target), self._way(target, dialer)
        outgoing, incoming = _Buffer(self._buffer_bytes), _Buffer(self._buffer_bytes)
        async with asyncio.TaskGroup() as tasks:
            filling = [tasks.create_task(outgoing.fill(near))]
            # A connection takes a round trip before anything can be sent on it.
            reached = tasks.create_task(self._round_trip(there, back))
            given_up = tasks.create_task(outgoing.ended.wait())
            await asyncio.wait((reached, given_up), return_when=asyncio.FIRST_COMPLETED)
            given_up.cancel()
            if not reached.done():
                reached.cancel()
                return
            far = _Side(*await asyncio.open_connection(*self._where(target, port)))
            try:
                since = self._loop.time()
                filling.append(tasks.create_task(incoming.fill(far)))
                emptying = (
                    tasks.create_task(_quietly(outgoing.empty(there, far, since))),
                    tasks.create_task(_quietly(incoming.empty(back, near, since))),
                )
                await asyncio.wait(emptying)
            finally:
                for task in filling:
                    task.cancel()
                far.reset()

    async def _round_trip(self, there: _Way, back: _Way) -> None:
        await there.arrive(self._loop.time())
        await back.arrive(self._loop.time())

    def _where(self, target: str, port: int) -> tuple[str, int]:
        return f"{self._prefix}.{self._numbers[target] + 2}", LISTEN_PORT + port

    # ---- its thread

    def _do(self, what: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(what(), self._loop).result()

    def close(self) -> None:
        """Ends every connection and the thread. Idempotent."""
        if self._loop.is_closed():
            return
        self._do(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._claim.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._loop.shutdown_default_executor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(OSError):
        await work


def _claim_prefix() -> tuple[socket.socket, str]:
    """Three bytes of loopback address that no other net of this machine uses, and the socket that keeps them."""
    for attempt in range(NETS):
        number = (os.getpid() + attempt) % NETS
        prefix = f"127.{64 + number // 256}.{number % 256}"
        claim = socket.socket()
        try:
            claim.bind((f"{prefix}.1", LISTEN_PORT - 1))
            claim.listen(1)
        except OSError as error:
            claim.close()
            failure = error
        else:
            return claim, prefix
    raise UsageError(f"no loopback address of 127.64.0.0/10 can be had ({failure}): these proxies need Linux")
