"""One Fetch exchange: reading from a peer what it keeps. Errors: `UnreachableError`, `RefusedError`, `WireError`."""

import asyncio

from ..errors import ProtocolError, RefusedError, UnreachableError
from ..protos import swarm_pb2 as pb
from .exchange import Pool

FETCH_SECONDS = 60.0


async def fetch(
    pool: Pool, peer: str, question: pb.Fetch, max_payload: int, seconds: float = FETCH_SECONDS, payload: bytes = b""
) -> tuple[pb.Fetched, bytes]:
    """The answer and its payload, which may take so many `seconds`. `payload`: of the question."""
    reply: object = None
    data = b""
    try:
        async with asyncio.timeout(seconds), pool.exchange(peer) as channel:
            await channel.send(question, payload)
            reply, data = await channel.receive(max_payload)
            if not isinstance(reply, pb.Fetched | pb.Refused):
                raise ProtocolError(f"{peer} answered a Fetch with {type(reply).__name__}")
    except TimeoutError as error:
        raise UnreachableError(f"{peer} did not answer a Fetch within {seconds:.0f} s") from error
    if isinstance(reply, pb.Refused):
        raise RefusedError(pb.Reason.Name(reply.reason), reply.detail, peer)
    assert isinstance(reply, pb.Fetched)
    return reply, data
