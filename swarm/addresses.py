"""Addresses of peers: libp2p's multiaddrs, as text and in p2pd's bytes.

`/ip4/203.0.113.7/tcp/4001/p2p/ID`; one that is reached through a relay has `RELAY/p2p-circuit/p2p/ID`, with the relay's
whole address before it.
"""

import contextlib
import re
from collections.abc import Sequence

from hivemind.p2p import PeerID
from hivemind.utils.multiaddr import Multiaddr

from ..errors import TrustError, UnreachableError, UsageError
from .keys import peer_id_of, public_key_of

MAX_ADDRESSES = 16
"""Addresses of one peer that are tried."""

RELAY = "/p2p-circuit"

_P2P_CODE, _RELAY_CODE = b"\xa5\x03", b"\xa2\x02"
"""How /p2p/ and /p2p-circuit begin in a multiaddr's bytes (https://github.com/multiformats/multiaddr/protocols.csv)."""


def is_relayed(address: bytes) -> bool:
    """Whether a connection to this address leads through a relay."""
    with contextlib.suppress(Exception):  # see `dialable`
        return RELAY in str(Multiaddr(address))
    return False


def peer_bytes(peer: str) -> bytes:
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


def any_port(address: str) -> str:
    """The same address to listen on, and whichever port is free."""
    return re.sub(r"/tcp/\d+", "/tcp/0", address, count=1)


def announceable(addresses: Sequence[str], peer: str) -> list[str]:
    """The addresses without the peer's own id at their end. Raises `UsageError` for one that nobody could dial."""
    announced = [address.removesuffix(f"/p2p/{peer}") for address in addresses]
    for address in announced:
        try:
            parsed = Multiaddr(address)
            port = parsed["tcp"]
        except Exception as error:  # see `dialable`
            raise UsageError(f"{address!r} is not a multiaddr such as /ip4/203.0.113.7/tcp/4001: {error}") from error
        if port == "0":
            raise UsageError(f"{address} cannot be announced: it names no port")
    return announced


def dialable(peer: str, addresses: Sequence[str]) -> list[bytes]:
    """The addresses in libp2p's bytes, without the peer id at their end; those that are malformed are left out."""
    coded = []
    for address in addresses[:MAX_ADDRESSES]:
        # Multiaddr's parsers raise whatever their inputs make them raise; an address is only advice.
        with contextlib.suppress(Exception):
            coded.append(_coded(address.removesuffix(f"/p2p/{peer}")))
    return coded


def _coded(address: str) -> bytes:
    """hivemind's Multiaddr codes a peer id that stands within an address in a way that p2pd does not read."""
    direct, relayed, _ = address.partition(RELAY)
    if not relayed:
        return bytes(Multiaddr(address).to_bytes())
    base, _, relay = direct.rpartition("/p2p/")
    peer = peer_bytes(relay)
    return bytes(Multiaddr(base).to_bytes()) + _P2P_CODE + bytes([len(peer)]) + peer + _RELAY_CODE
