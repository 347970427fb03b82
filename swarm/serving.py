"""The callee's side of exchanges (`exchange.py`): what comes in on a stream is answered, one exchange after the other.

Errors: `UnreachableError` for a caller that goes away, `ProtocolError` for one that does not wait for its answer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from ..errors import ProtocolError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .exchange import Channel, Meter
from .messages import Body
from .transport import Stream


class Incoming:
    """One exchange as its callee sees it: answers go out, and the caller's going away is noticed."""

    def __init__(self, channel: Channel, following: "asyncio.Task[tuple[Body, bytes]]") -> None:
        self.channel = channel
        self._following = following

    @property
    def peer(self) -> str:
        return self.channel.peer

    async def race(self, event: asyncio.Event) -> None:
        """Waits until `event` is set, unless the caller goes away first: then raises `UnreachableError`.

        A caller that speaks before it was answered in full breaks the protocol: `ProtocolError`. In both cases the
        event is set, so nobody else may wait for it.
        """
        if not event.is_set() and not self._following.done():
            wake = partial(_set, event)
            self._following.add_done_callback(wake)
            try:
                await event.wait()
            finally:
                self._following.remove_done_callback(wake)
        if not self._following.done():
            return
        if self._following.exception() is None:
            raise ProtocolError(f"{self.peer} sent a second question before the answer to its first")
        raise UnreachableError(f"{self.peer} went away")


def _set(event: asyncio.Event, ended: object) -> None:
    event.set()


Dispatch = Callable[[Incoming, Body, bytes], Awaitable[None]]


async def _given(body: Body) -> tuple[Body, bytes]:
    return body, b""


async def serve_exchanges(
    stream: Stream,
    meter: Meter,
    max_payload: Callable[[], int],
    dispatch: Dispatch,
    first: Body | None = None,
    at_once: Callable[[Body, str], Body | None] = lambda body, sender: None,
) -> None:
    """Answers exchanges on one incoming stream until the other side closes it or breaks the protocol.

    `dispatch(incoming, message, payload)` sends every answer of the exchange before it returns; `max_payload()` is
    asked anew for each. `first`: a question that has been read already. `at_once(message, sender)` may have the whole
    answer to one whose payload is still to come.
    """
    channel, is_free = Channel(stream, meter), True

    def answer(body: Body, sender: str) -> Body | None:
        return at_once(body, sender) if is_free else None

    following = asyncio.ensure_future(_given(first) if first is not None else channel.receive(max_payload(), answer))
    try:
        while True:
            try:
                body, payload = await following
                is_free = False
                following = asyncio.ensure_future(channel.receive(max_payload(), answer))
                await dispatch(Incoming(channel, following), body, payload)
                is_free = True
            except WireError as error:
                await channel.send(pb.Refused(reason=pb.MALFORMED, detail=str(error)))
                return
    except UnreachableError:
        return
    finally:
        following.cancel()
        stream.close()
