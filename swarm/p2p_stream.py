"""One end of a stream of libp2p: frames over a Unix socket to p2pd.

A frame is its length (4 bytes, little-endian) and its bytes; the length is checked before anything is read.
"""

import asyncio
import contextlib
from collections.abc import Callable

from ..errors import UnreachableError, WireError
from .transport import MAX_FRAME_BYTES, Contact

CLOSE_SECONDS = 2.0
"""How long a closed stream may go on handing over what was sent before it is cut."""

_LENGTH_BYTES = 4

READ_BUFFER_BYTES = MAX_FRAME_BYTES + _LENGTH_BYTES
"""asyncio stops reading a socket at twice this: one frame waits while the next one comes in."""


class P2PStream:
    """One task may receive at a time; any may send. `relayed`: whether its connection leads through a relay."""

    def __init__(
        self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, contact: Contact, *, relayed: bool
    ) -> None:
        self.contact = contact
        self.relayed = relayed
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

    def post(self, frame: bytes) -> bool:
        if self._closed or self._writer.transport.get_write_buffer_size():
            return False
        try:
            self._writer.write(len(frame).to_bytes(_LENGTH_BYTES, "little") + frame)
        except (OSError, RuntimeError):
            self.close()
            return False
        return True

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

    async def each(self, take: Callable[[bytes], bool]) -> None:
        while take(await self.receive()):
            pass

    async def _read(self, size: int) -> bytes:
        """So many bytes; on a thin link they come little by little. Raises `EOFError`, `OSError`."""
        while len(self._came) < size:
            came = await self._reader.read(size - len(self._came))
            if not came:
                raise EOFError
            self.contact.heard = asyncio.get_running_loop().time()
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
