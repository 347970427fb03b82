"""The transport of real runs: binary streams of libp2p, carried by hivemind's daemon (p2pd).

Owns one p2pd process, its Unix sockets (in a folder that the caller names), every stream and every handler's task. A
frame is its length (4 bytes, little-endian) and its bytes; the length is checked before anything is read. The daemon
proves who is at the other end, and resends, orders and encrypts; it knows nothing of frames.

Talks to p2pd over its control socket: `_ask` speaks that protocol itself where hivemind's own client would leak a
socket per failed or cancelled call. `p2p` is there for the directory, which shares the daemon.

Errors: `UnreachableError` and `WireError` as the seam says; `UsageError` for a socket folder whose path is too long.
"""

import asyncio
import contextlib
import logging
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.p2p.p2p_daemon_bindings.utils import read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from ..errors import SwarmError, TrustError, UnreachableError, UsageError, WireError
from .keys import Identity, peer_id_of, public_key_of
from .transport import MAX_FRAME_BYTES, Heard, Hearing, StreamHandler

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

CLOSE_SECONDS = 2.0
"""How long a closed stream may go on handing over what was sent before it is cut."""

SHUTDOWN_SECONDS = 5.0
"""How long p2pd and the handlers may take to end before they are killed or left."""

MAX_STREAMS_PER_PEER = 256
"""Incoming streams served at once for one peer; more are closed as they come."""

MAX_ADDRESSES = 16
"""Addresses of one peer that are tried."""

_LENGTH_BYTES = 4
_SOCKET_PATH_BYTES = 103
"""Longest Unix socket path that both Linux (107) and macOS (103) take."""

_READ_BUFFER_BYTES = MAX_FRAME_BYTES + _LENGTH_BYTES
"""asyncio stops reading a socket at twice this: one frame waits while the next one comes in."""


class P2PStream:
    """One end of a pipe of frames over a Unix socket to p2pd. One task may receive at a time; any may send."""

    def __init__(self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard) -> None:
        self.heard = heard
        self._peer = peer
        self._reader = reader
        self._writer = writer
        self._closed = False
        self._length: int | None = None
        self._came = bytearray()

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def ended(self) -> bool:
        return self._closed or self._reader.at_eof()

    async def send(self, frame: bytes) -> None:
        if self._closed:
            raise self._ended()
        if len(frame) > MAX_FRAME_BYTES:
            self.close()
            raise WireError(f"a frame of {len(frame)} bytes to {self._peer} is above the limit of {MAX_FRAME_BYTES}")
        try:
            # One call, so that a cancelled `send` leaves no half of a frame behind.
            self._writer.write(len(frame).to_bytes(_LENGTH_BYTES, "little") + frame)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            self.close()
            raise self._ended() from error

    async def receive(self) -> bytes:
        if self._closed:
            raise self._ended()
        try:
            # Kept in the stream, so that a cancelled `receive` may be called again.
            if self._length is None:
                self._length = int.from_bytes(await self._read(_LENGTH_BYTES), "little")
            if self._length > MAX_FRAME_BYTES:
                self.close()
                raise WireError(
                    f"{self._peer} announced a frame of {self._length} bytes; the limit is {MAX_FRAME_BYTES}"
                )
            frame = await self._read(self._length)
        except (EOFError, OSError) as error:
            self.close()
            raise self._ended() from error
        self._length = None
        return frame

    async def _read(self, size: int) -> bytes:
        """So many bytes; on a thin link they come little by little. Raises `EOFError`, `OSError`."""
        while len(self._came) < size:
            came = await self._reader.read(size - len(self._came))
            if not came:
                raise EOFError
            self.heard.at = asyncio.get_running_loop().time()
            self._came += came
        read = bytes(self._came)
        self._came.clear()
        return read

    def _ended(self) -> UnreachableError:
        return UnreachableError(f"the stream with {self._peer} has ended")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        # A receive in progress ends now, and not when the last of what was sent is gone.
        self._reader.feed_eof()
        with contextlib.suppress(RuntimeError):  # no loop runs any more: then nothing is left to hand over either
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.cut)

    def cut(self) -> None:
        """Ends the stream without handing over what was sent. Idempotent."""
        self._closed = True
        self._writer.transport.abort()


class P2PTransport:
    """A libp2p node. Make it with `create`; use it in the loop that made it."""

    def __init__(self, p2p: P2P, addresses: tuple[str, ...]) -> None:
        self.p2p = p2p
        self.hearing = Hearing()
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
        startup_timeout: float = STARTUP_SECONDS,
    ) -> "P2PTransport":
        """Starts p2pd as `identity` and connects it to `initial_peers` (multiaddrs ending in /p2p/<peer id>).

        Others are told the addresses `announce` in place of those it listens on, if there are any: a forwarded port's,
        say. `socket_folder` is made if need be (0700) and gets the daemon's sockets; the private key lies there, 0600,
        only until p2pd has read it. Raises `UnreachableError` if p2pd does not start or no initial peer answers,
        `UsageError` if the folder's path leaves no room for a socket's name or nobody could dial what is announced.
        """
        announced = _announceable(announce, identity.peer_id)
        daemon = _daemon_in(socket_folder)
        key_file = _write_key(identity, socket_folder)
        try:
            p2p = await daemon.create(
                identity_path=str(key_file),
                host_maddrs=list(listen),
                announce_maddrs=announced or None,
                auto_nat=False,
                nat_port_map=False,
                check_if_identity_free=False,
                startup_timeout=startup_timeout,
            )
        except Exception as error:
            raise UnreachableError(f"p2pd did not start: {error}") from error
        finally:
            key_file.unlink(missing_ok=True)
        try:
            visible = await p2p.get_visible_maddrs()
        except ValueError:  # it listens nowhere
            visible = []
        transport = cls(p2p, tuple(str(address) for address in visible))
        try:
            await transport._bootstrap(initial_peers)
        except BaseException:
            await transport.close()
            raise
        return transport

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

    async def _can_search(self) -> None:
        """Waits until libp2p can look for addresses: it counts on a new connection only after an exchange of its own,
        of which nothing tells. After `SEARCH_SECONDS` it is left at that: an initial peer may serve no searches."""
        search = p2pd_pb2.DHTRequest(type=p2pd_pb2.DHTRequest.FIND_PEER, peer=_peer_bytes(self._peer_id))
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
        peer = str(info.peer_id)
        stream = P2PStream(peer, reader, writer, self.hearing.of(peer))
        if self._closed or self._handler is None or self._incoming[peer] >= MAX_STREAMS_PER_PEER:
            stream.cut()
            return
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._streams.add(stream)
        self._incoming[peer] += 1
        try:
            await self._handler(stream)
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
            peer=_peer_bytes(peer), addrs=_dialable(peer, addresses), timeout=int(DIAL_SECONDS)
        )
        _, _, writer = await self._ask(
            p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=request), f"{peer} cannot be dialled"
        )
        writer.transport.abort()

    async def open(self, peer: str, addresses: Sequence[str] = ()) -> P2PStream:
        request = p2pd_pb2.StreamOpenRequest(peer=_peer_bytes(peer), proto=[STREAM_PROTOCOL], timeout=int(DIAL_SECONDS))
        try:
            # One limit for both questions.
            async with asyncio.timeout(DIAL_SECONDS):
                if addresses:
                    await self.connect(peer, addresses)
                response, reader, writer = await self._ask(
                    p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=request), f"no stream to {peer}"
                )
        except TimeoutError as error:
            raise UnreachableError(f"no stream to {peer} within {DIAL_SECONDS:.0f} s") from error
        answered = str(PeerID(response.streamInfo.peer))
        if answered != peer:
            writer.transport.abort()
            raise UnreachableError(f"asked for a stream to {peer}, got one to {answered}")
        for ended in [stream for stream in self._streams if stream.closed]:
            self._streams.discard(ended)
        stream = P2PStream(peer, reader, writer, self.hearing.of(peer))
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
                    self.p2p.daemon_listen_maddr["unix"], limit=_READ_BUFFER_BYTES
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


def _daemon_in(socket_folder: Path) -> type[P2P]:
    """hivemind's P2P with its sockets in this folder: a class of its own, because the folder is a class attribute."""
    folder = socket_folder.absolute()
    longest = len(os.fsencode(folder / f"p2pclient-{secrets.token_urlsafe(8)}.sock"))
    if longest > _SOCKET_PATH_BYTES:
        raise UsageError(
            f"{folder} is too long a path for sockets: {longest} bytes with a socket's name, "
            f"{_SOCKET_PATH_BYTES} at most; choose a shorter one"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return type("_Daemon", (P2P,), {"_UNIX_SOCKET_PREFIX": f"/unix{folder}/"})


def _write_key(identity: Identity, socket_folder: Path) -> Path:
    key_file = socket_folder.absolute() / f"key-{secrets.token_hex(8)}"
    with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(identity.libp2p_private_key())
    return key_file


def _peer_bytes(peer: str) -> bytes:
    try:
        public_key_of(peer)
    except TrustError as error:
        raise UnreachableError(f"{peer!r} cannot be reached: {error}") from error
    return bytes(PeerID.from_base58(peer).to_bytes())


def peer_in(address: str) -> str:
    """The peer id at the end of a multiaddr. Raises `UnreachableError` if there is none."""
    peer = address.rpartition("/p2p/")[2]
    try:
        return peer_id_of(public_key_of(peer))
    except TrustError as error:
        raise UnreachableError(f"{address!r} does not end in /p2p/ and an Ed25519 peer id") from error


def _announceable(addresses: Sequence[str], peer: str) -> list[str]:
    """The addresses without the peer's own id at their end. Raises `UsageError` for one that nobody could dial."""
    announced = [address.removesuffix(f"/p2p/{peer}") for address in addresses]
    for address in announced:
        try:
            parsed = Multiaddr(address)
            port = parsed["tcp"]
        except Exception as error:  # see `_dialable`
            raise UsageError(f"{address!r} is not a multiaddr such as /ip4/203.0.113.7/tcp/4001: {error}") from error
        if port == "0":
            raise UsageError(f"{address} cannot be announced: it names no port")
    return announced


def _dialable(peer: str, addresses: Sequence[str]) -> list[bytes]:
    """The addresses in libp2p's bytes, without the peer id at their end; those that are malformed are left out."""
    coded = []
    for address in addresses[:MAX_ADDRESSES]:
        # Multiaddr's parsers raise whatever their inputs make them raise; an address is only advice.
        with contextlib.suppress(Exception):
            coded.append(Multiaddr(address.removesuffix(f"/p2p/{peer}")).to_bytes())
    return coded
