"""Whether others reach a node: it asks nodes that it knows to call it back.

Who is behind a router that translates addresses (NAT) reaches others, but is reached by none who was not called first.
`ask` has one node call back, `call_back` is what that one does: it tries the port that is named, at the address from
which it sees the question come, and nowhere else. What answers there must speak libp2p's first words.

One whom nobody reaches is reached through relays (libp2p's circuits), of which `relays` says whether they are worth it:
p2pd lets 128 KiB pass in a connection where two of its own parts, of which the later one counts, come in the wrong
order. `GOMAXPROCS=1` at its start has them come in the right one (12 of 12 starts; 2 of 12 without; 38 of 40 on a
machine with much else to do), and who relays has itself asked by another p2pd, and starts again if that hears of less.

Addresses of private networks are not asked about: whoever sees one is in the same network, and no relay takes it.

Errors: those of the stream, `UnreachableError` also for one that is silent; `WireError` for what is no question or no
answer.
"""

import asyncio
import ipaddress
import re
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from ..errors import UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .transport import Stream

REACH_PROTOCOL = "/swarm-peer/reach/1"

CALL_SECONDS = 3.0
"""How long a call may take."""

HOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/hop"
"""https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md"""

RELAY_BYTES = 1 << 40
"""What a relay must let pass in a connection."""

MAX_RELAY_ANSWER_BYTES = 4096

_RESERVE = b"\x02\x08\x00"
"""A HopMessage of type RESERVE, and its length before it."""

_RESERVED = 100

ANSWER_SECONDS = 8.0
"""How long an answer, with the call, may take."""

_FIRST_WORDS = b"\x13/multistream/1.0.0\n"
"""https://github.com/multiformats/multistream-select: what both sides of a connection begin with."""

_DIRECT = re.compile(r"^/ip[46]/(?P<host>[0-9a-fA-F.:]+)/(tcp|udp)/")


async def ask(stream: Stream, port: int) -> bool | None:
    """Whether the other side reaches this node at a port; None if it cannot tell. Ends the stream."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await stream.send(pb.CallBack(port=port).SerializeToString())
            answer = pb.CalledBack.FromString(await stream.receive())
    except DecodeError as error:
        raise WireError(f"{stream.peer} answers what is no answer") from error
    except TimeoutError as error:
        raise UnreachableError(f"{stream.peer} does not answer within {ANSWER_SECONDS:.0f} s") from error
    finally:
        stream.close()
    return answer.reached if _is_public(answer.host) else None


async def call_back(stream: Stream, seen: str) -> None:
    """Answers one question; `seen`: the multiaddr from which it comes."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            question = pb.CallBack.FromString(await stream.receive())
            host = host_in(seen)
            reached = 0 < question.port < 1 << 16 and _is_public(host) and await listens(host, question.port)
            await stream.send(pb.CalledBack(reached=reached, host=host).SerializeToString())
    except DecodeError as error:
        raise WireError(f"{stream.peer} asks what is no question") from error
    except TimeoutError as error:
        raise UnreachableError(f"{stream.peer} asks nothing, or takes no answer") from error


async def relays(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether the other side of a stream of `HOP_PROTOCOL` relays for this node, and as much as training takes."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            writer.write(_RESERVE)
            length = await _read_varint(reader)
            if length > MAX_RELAY_ANSWER_BYTES:
                return False
            answer = pb.RelayAnswer.FromString(await reader.readexactly(length))
    except (OSError, EOFError, TimeoutError, DecodeError):
        return False
    unlimited = not answer.HasField("limit") or answer.limit.bytes == 0
    return answer.status == _RESERVED and (unlimited or answer.limit.bytes >= RELAY_BYTES)


async def _read_varint(reader: asyncio.StreamReader) -> int:
    value = 0
    for shift in (0, 7, 14):
        byte = (await reader.readexactly(1))[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value


def host_in(address: str) -> str:
    """The IP address of a multiaddr; empty if that leads through a relay or has none."""
    found = _DIRECT.match(address)
    return found["host"] if found and "/p2p-circuit" not in address else ""


def is_only_here(addresses: Sequence[str]) -> bool:
    """Whether none but this machine can dial a node with these addresses."""
    hosts = [host_in(address) for address in addresses]
    return all(host and ipaddress.ip_address(host).is_loopback for host in hosts)


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False


async def listens(host: str, port: int) -> bool:
    """Whether a libp2p node takes connections there."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_FIRST_WORDS)
                return await reader.readexactly(len(_FIRST_WORDS)) == _FIRST_WORDS
            finally:
                writer.transport.abort()
    except (OSError, EOFError, TimeoutError):
        return False
