"""The transport of real runs: binary streams of libp2p, carried by hivemind's daemon (p2pd).

Owns one p2pd process, its Unix sockets (in a folder that the caller names), every stream and every handler's task. The
daemon proves who is at the other end, and resends, orders and encrypts; it knows nothing of frames.

Talks to p2pd over its control socket: `_ask` speaks that protocol itself where hivemind's own client would leak a
socket per failed or cancelled call. `p2p` is there for the directory, which shares the daemon.

Errors: `UnreachableError` and `WireError` as the seam says; `UsageError` for a socket folder whose path is too long.
"""

import asyncio
import contextlib
import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.p2p.p2p_daemon_bindings.utils import read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2

from ..errors import SwarmError, UnreachableError, UsageError, WireError
from .addresses import RELAY, announceable, any_port, dialable, is_relayed, peer_bytes, peer_in
from .keys import Identity
from .p2p_stream import READ_BUFFER_BYTES, P2PStream
from .reach import HOP_PROTOCOL, REACH_PROTOCOL, ask, call_back, is_only_here, relays
from .transport import Contacts, StreamHandler

logger = logging.getLogger(__name__)

STREAM_PROTOCOL = "/swarm-peer/1"

STARTUP_SECONDS = 60.0
"""How long p2pd may take to start: hivemind's own 15 s are too few on a busy machine."""

DIAL_SECONDS = 5.0
"""Limit of one `open` or `connect`, the search for the peer's addresses included."""

BOOTSTRAP_TRIES = 3
"""Of all initial peers, when none has answered: where a swarm is just starting, they may be slow to."""

SEARCH_SECONDS = 5.0
_NOBODY_TO_ASK = "failed to find any peer in table"

SHUTDOWN_SECONDS = 5.0
"""How long p2pd and the handlers may take to end before they are killed or left."""

MAX_STREAMS_PER_PEER = 256
"""Incoming streams served at once for one peer; more are closed as they come."""

RELAY_SECONDS = 15.0
"""How long relays may take to take a node in."""

RELAY_STARTS = 5
"""How often p2pd is started again when its two parts have come in the wrong order (`reach.py`), which on a busy machine
they do once in twenty times."""

REUSE_PORT = "LIBP2P_TCP_REUSEPORT"
"""Of p2pd's environment: whether it dials from the port that it listens on."""

UNREACHED = (
    "nobody reaches this machine from outside, and no peer that it knows relays for it. Forward a port of the router "
    "to it (--listen /ip4/0.0.0.0/tcp/PORT), and name the router's if that is another one "
    "(--announce /ip4/ADDRESS/tcp/PORT)"
)

_RELAY_LIMITS = {
    "relayDiscovery": False,
    "relayDataLimit": 1 << 50,
    "relayTimeLimit": "8760h",
    "relayMaxCircuits": 1024,
    "relayBufferSize": 1 << 16,
}
"""Of p2pd, which by itself cuts a relayed connection after 4 GiB or half an hour, and has 16 of a peer."""

_SOCKET_PATH_BYTES = 103
"""Longest Unix socket path that both Linux (107) and macOS (103) take."""


class P2PTransport:
    """A libp2p node. Make it with `create`; use it in the loop that made it."""

    def __init__(self, p2p: P2P, addresses: tuple[str, ...], *, relayed: bool = False) -> None:
        self.p2p = p2p
        self.relayed = relayed
        """Whether it is reached through relays, as nobody reaches it otherwise."""

        self.contacts = Contacts()
        self._peer_id = str(p2p.peer_id)
        self._addresses = addresses
        self._handler: StreamHandler | None = None
        self._streams: set[P2PStream] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._incoming: Counter[str] = Counter()
        self._closed = False

    @classmethod
    async def create(
        cls,
        identity: Identity,
        *,
        socket_folder: Path,
        listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
        announce: Sequence[str] = (),
        initial_peers: Sequence[str] = (),
        through: Sequence[str] = (),
        relays: bool = False,
        startup_timeout: float = STARTUP_SECONDS,
    ) -> "P2PTransport":
        """Starts p2pd as `identity` and connects it to `initial_peers` (multiaddrs ending in /p2p/<peer id>).

        Others are told the addresses `announce` in place of those it listens on, if there are any: a forwarded port's,
        say. It is reached `through` those peers, if any are named, as one that is behind a router; two such whose
        routers allow it connect directly all the same (libp2p's hole punching); it listens on any port then, as libp2p
        dials from the one it listens on, and a connection that was just closed keeps that for a while. Or it `relays`
        for such peers itself.

        `socket_folder` is made if need be (0700) and gets the daemon's sockets; the private key lies there, 0600, only
        until p2pd has read it. Raises `UnreachableError` if p2pd does not start, or no initial peer or no relay
        answers, `UsageError` if the folder's path leaves no room for a socket's name or nobody could dial what is
        announced.
        """
        start = partial(
            cls._start,
            identity,
            socket_folder=socket_folder,
            listen=listen,
            announced=announceable(announce, identity.peer_id),
            through=through,
            relays=relays,
            startup_timeout=startup_timeout,
        )
        transport = await start()
        try:
            for _ in range(RELAY_STARTS if relays else 0):
                if is_only_here(transport.addresses) or await transport._relays_enough(socket_folder, listen):
                    break
                await transport.close()
                transport = await start()
            await transport.p2p.add_binary_stream_handler(REACH_PROTOCOL, transport._call_back)
            await transport._bootstrap(initial_peers)
            if through:
                await transport._wait_for_relay()
        except BaseException:
            await transport.close()
            raise
        return transport

    @classmethod
    async def _start(
        cls,
        identity: Identity,
        *,
        socket_folder: Path,
        listen: Sequence[str],
        announced: Sequence[str],
        through: Sequence[str],
        relays: bool,
        startup_timeout: float,
    ) -> "P2PTransport":
        daemon = _daemon_in(socket_folder, _environment(relays=relays, meets=bool(through)))
        key_file = _write_key(identity, socket_folder)
        try:
            p2p = await daemon.create(
                identity_path=str(key_file),
                host_maddrs=[any_port(address) for address in listen] if through else list(listen),
                announce_maddrs=list(announced) or None,
                auto_nat=True,  # with it p2pd has hole punching
                nat_port_map=False,
                force_reachability="private" if through else "public",
                dht_mode="client" if through else "server",
                use_auto_relay=bool(through),
                trusted_relays=list(through) or None,
                check_if_identity_free=False,
                startup_timeout=startup_timeout,
            )
        except Exception as error:
            raise UnreachableError(f"p2pd did not start: {error}") from error
        finally:
            key_file.unlink(missing_ok=True)
        return cls(p2p, await _visible(p2p), relayed=bool(through))

    async def _relays_enough(self, socket_folder: Path, listen: Sequence[str]) -> bool:
        """Whether it relays as much as training takes, by another p2pd; also if that does not reach it."""
        here = [address.replace("/0.0.0.0/", "/127.0.0.1/") for address in listen if not address.endswith("/tcp/0")]
        try:
            stranger = await P2PTransport.create(Identity.generate(), socket_folder=socket_folder, listen=())
            try:
                await stranger.connect(self.peer_id, [*here, *self.addresses])
                return await stranger._is_relayed_by(self.peer_id)
            finally:
                await stranger.close()
        except UnreachableError:
            return True

    async def _bootstrap(self, initial_peers: Sequence[str]) -> None:
        if not initial_peers:
            return
        failures: list[BaseException] = []
        for _ in range(BOOTSTRAP_TRIES):
            dials = (self.connect(peer_in(address), [address]) for address in initial_peers)
            outcomes = await asyncio.gather(*dials, return_exceptions=True)
            failures = [outcome for outcome in outcomes if outcome is not None]
            for failure in failures:
                if not isinstance(failure, UnreachableError):
                    raise failure
            if len(failures) < len(initial_peers):
                await self._can_search()
                return
        reasons = "\n".join(f"  {failure}" for failure in failures)
        raise UnreachableError(f"none of the {len(failures)} initial peers answers:\n{reasons}")

    async def _wait_for_relay(self) -> None:
        try:
            async with asyncio.timeout(RELAY_SECONDS):
                while not any(RELAY in address for address in self._addresses):
                    await asyncio.sleep(0.1)
                    self._addresses = await _visible(self.p2p)
        except TimeoutError:
            raise UnreachableError(UNREACHED) from None

    async def is_reached(self, initial_peers: Sequence[str]) -> bool | None:
        """Whether any of these peers, which it knows, reaches this one when it calls; None if none of them can tell."""
        ports = [int(found) for address in self._addresses for found in re.findall(r"/tcp/(\d+)", address)[:1]]
        answers = await asyncio.gather(
            *(self._is_reached_by(peer_in(address), port) for address in initial_peers for port in ports[:1])
        )
        told = [answer for answer in answers if answer is not None]
        return any(told) if told else None

    async def _is_reached_by(self, peer: str, port: int) -> bool | None:
        with contextlib.suppress(UnreachableError, WireError):
            return await ask(await self._open(peer, REACH_PROTOCOL), port)
        return None

    async def relays_among(self, initial_peers: Sequence[str]) -> list[str]:
        """Which of these peers relay for this one. Raises `UnreachableError` if none does."""
        answers = await asyncio.gather(*(self._is_relayed_by(peer_in(address)) for address in initial_peers))
        found = [address for address, relays in zip(initial_peers, answers, strict=True) if relays]
        if not found:
            raise UnreachableError(UNREACHED)
        return found

    async def _is_relayed_by(self, peer: str) -> bool:
        with contextlib.suppress(UnreachableError):
            _, reader, writer = await self._ask(_opening(peer, HOP_PROTOCOL), f"no stream to {peer}")
            try:
                return await relays(reader, writer)
            finally:
                writer.transport.abort()
        return False

    async def _call_back(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._hold(info, reader, writer, partial(call_back, seen=str(info.addr)))

    async def _can_search(self) -> None:
        """Waits until libp2p can look for addresses: it counts on a new connection only after an exchange of its own,
        of which nothing tells. After `SEARCH_SECONDS` it is left at that: an initial peer may serve no searches."""
        search = p2pd_pb2.DHTRequest(type=p2pd_pb2.DHTRequest.FIND_PEER, peer=peer_bytes(self._peer_id))
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.DHT, dht=search)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEARCH_SECONDS):
                while True:
                    try:
                        _, _, writer = await self._ask(request, "no search")
                    except UnreachableError as error:
                        if _NOBODY_TO_ASK not in str(error):
                            return
                        await asyncio.sleep(0.02)
                    else:
                        writer.transport.abort()
                        return

    @property
    def peer_id(self) -> str:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    @property
    def alive(self) -> bool:
        """Whether p2pd runs and this transport is open. A daemon that has ended is not started again."""
        return not self._closed and self.p2p._child.returncode is None

    async def serve(self, handler: StreamHandler) -> None:
        known, self._handler = self._handler, handler
        if known is not None:
            return
        await self.p2p.add_binary_stream_handler(STREAM_PROTOCOL, self._serve)

    async def _serve(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._hold(info, reader, writer, self._handler)

    async def _hold(
        self,
        info: StreamInfo,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handler: StreamHandler | None,
    ) -> None:
        """Has an incoming stream handled, to its end."""
        peer = str(info.peer_id)
        stream = P2PStream(
            peer, reader, writer, self.contacts.of(peer), relayed=is_relayed(bytes(info.addr.to_bytes()))
        )
        if self._closed or handler is None or self._incoming[peer] >= MAX_STREAMS_PER_PEER:
            stream.cut()
            return
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._streams.add(stream)
        self._incoming[peer] += 1
        try:
            await handler(stream)
        except SwarmError as error:
            # How the other side behaved is its affair; any other exception is ours, and asyncio reports it.
            logger.debug("the stream from %s ended: %s", peer, error)
        except asyncio.CancelledError:
            # asyncio would report the end of a cancelled handler as an error; when we close it is none.
            if not self._closed:
                raise
        finally:
            stream.close()
            self._serving.discard(task)
            self._streams.discard(stream)
            self._incoming[peer] -= 1
            if not self._incoming[peer]:
                del self._incoming[peer]

    async def connect(self, peer: str, addresses: Sequence[str] = ()) -> None:
        """Makes sure that p2pd has a connection to `peer`, dialled under `addresses` and those that libp2p knows.

        Raises `UnreachableError`, after `DIAL_SECONDS` at most.
        """
        request = p2pd_pb2.ConnectRequest(
            peer=peer_bytes(peer), addrs=dialable(peer, addresses), timeout=int(DIAL_SECONDS)
        )
        _, _, writer = await self._ask(
            p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=request), f"{peer} cannot be dialled"
        )
        writer.transport.abort()

    async def open(self, peer: str, addresses: Sequence[str] = ()) -> P2PStream:
        return await self._open(peer, STREAM_PROTOCOL, addresses)

    async def _open(self, peer: str, protocol: str, addresses: Sequence[str] = ()) -> P2PStream:
        opening = _opening(peer, protocol)
        try:
            # One limit for both questions.
            async with asyncio.timeout(DIAL_SECONDS):
                if addresses:
                    await self.connect(peer, addresses)
                response, reader, writer = await self._ask(opening, f"no stream to {peer}")
        except TimeoutError as error:
            raise UnreachableError(f"no stream to {peer} within {DIAL_SECONDS:.0f} s") from error
        answered = str(PeerID(response.streamInfo.peer))
        if answered != peer:
            writer.transport.abort()
            raise UnreachableError(f"asked for a stream to {peer}, got one to {answered}")
        for ended in [stream for stream in self._streams if stream.closed]:
            self._streams.discard(ended)
        relayed = is_relayed(response.streamInfo.addr)
        stream = P2PStream(peer, reader, writer, self.contacts.of(peer), relayed=relayed)
        self._streams.add(stream)
        return stream

    async def _ask(
        self, request: p2pd_pb2.Request, failed: str
    ) -> tuple[p2pd_pb2.Response, asyncio.StreamReader, asyncio.StreamWriter]:
        """One question to p2pd on a socket of its own, which becomes the stream's. `failed` begins the error's text."""
        if self._closed:
            raise UnreachableError(f"{failed}: this transport is closed")
        writer: asyncio.StreamWriter | None = None
        response = p2pd_pb2.Response()
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                reader, writer = await asyncio.open_unix_connection(
                    self.p2p.daemon_listen_maddr["unix"], limit=READ_BUFFER_BYTES
                )
                await write_pbmsg(writer, request)
                await read_pbmsg_safe(reader, response)
            if response.type == p2pd_pb2.Response.ERROR:
                raise UnreachableError(f"{failed}: {response.error.msg}")
            if self._closed:
                raise UnreachableError(f"{failed}: this transport is closed")
        except BaseException as error:
            if writer is not None:
                writer.transport.abort()
            if isinstance(error, TimeoutError):
                raise UnreachableError(f"{failed}: no answer within {DIAL_SECONDS:.0f} s") from error
            if isinstance(error, (OSError, EOFError, ValueError)):
                raise UnreachableError(f"{failed}: p2pd does not answer ({error!r})") from error
            raise
        return response, reader, writer

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for stream in list(self._streams):
            stream.cut()
        here = asyncio.current_task()
        ending = [task for task in self._serving if task is not here]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending, timeout=SHUTDOWN_SECONDS)
        listening = self.p2p._listen_task
        child = self.p2p._child
        try:
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                await self.p2p.shutdown()
        except TimeoutError:
            child.kill()
            await child.wait()
        if listening is not None:
            await asyncio.wait([listening], timeout=SHUTDOWN_SECONDS)
        for address in (self.p2p._daemon_listen_maddr, self.p2p._client_listen_maddr):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address["unix"])


def _opening(peer: str, protocol: str) -> p2pd_pb2.Request:
    request = p2pd_pb2.StreamOpenRequest(peer=peer_bytes(peer), proto=[protocol], timeout=int(DIAL_SECONDS))
    return p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=request)


def _environment(*, relays: bool, meets: bool) -> list[str]:
    """p2pd's, beside our own. Two who dial each other at once, each from the port it listens on, have one connection of
    which both are the dialler, and it fails: only those dial so who have to `meets` others from behind routers."""
    ordered = ["GOMAXPROCS=1"] if relays else []  # see `reach.py`
    reuse = REUSE_PORT not in os.environ and not meets
    return [*ordered, *([f"{REUSE_PORT}=false"] if reuse else [])]


def _daemon_in(socket_folder: Path, environment: Sequence[str]) -> type[P2P]:
    """hivemind's P2P with its sockets in this folder: a class of its own, because the folder is a class attribute."""
    folder = socket_folder.absolute()
    longest = len(os.fsencode(folder / f"p2pclient-{secrets.token_urlsafe(8)}.sock"))
    if longest > _SOCKET_PATH_BYTES:
        raise UsageError(
            f"{folder} is too long a path for sockets: {longest} bytes with a socket's name, "
            f"{_SOCKET_PATH_BYTES} at most; choose a shorter one"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    arguments = staticmethod(partial(_process_arguments, environment))
    return type("_Daemon", (P2P,), {"_UNIX_SOCKET_PREFIX": f"/unix{folder}/", "_make_process_args": arguments})


def _process_arguments(environment: Sequence[str], *arguments: Any, **options: Any) -> list[str]:
    made: list[str] = P2P._make_process_args("env", *environment, *arguments, **options, **_RELAY_LIMITS)
    return made


async def _visible(p2p: P2P) -> tuple[str, ...]:
    """The addresses of which p2pd tells others."""
    try:
        return tuple(str(address) for address in await p2p.get_visible_maddrs(latest=True))
    except ValueError:  # it listens nowhere
        return ()


def _write_key(identity: Identity, socket_folder: Path) -> Path:
    key_file = socket_folder.absolute() / f"key-{secrets.token_hex(8)}"
    with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(identity.libp2p_private_key())
    return key_file
