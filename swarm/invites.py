"""Invites: all that a volunteer needs to join a run, in one line that its organizer has signed.

    swarm-peer://join/<base64url of a msgpack array and an Ed25519 signature over it>

The array is [1, run id, organizer's public key, model, [[peer's public key, [address, ...]], ...]], keys and ids as raw
bytes, addresses without the peer id at their end: short enough for a QR code. One invite has one text, so that what is
compared is what is meant. The signature says that the organizer's key has invited; that the run is this organizer's
is proven by the run itself, whose manifest names him and hashes to the run id (`keys.check_signed_manifest`).

`read_invite` takes the text itself, a file or an http(s) URL that holds it. Nothing is believed of what they hold but
what is signed, and no size of it.

Errors: `UsageError` for what is no invite, `TrustError` for one that its organizer has not signed, `UnreachableError`
for a URL that cannot be read, `StorageError` for a file that cannot be written.
"""

import base64
import binascii
import os
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import msgpack

from ..errors import StorageError, TrustError, UnreachableError, UsageError
from .keys import INVITE_DOMAIN, Identity, peer_id_of, public_key_of, verify

SCHEME = "swarm-peer://join/"
VERSION = 1
MAX_CHARACTERS = 2000
"""Of the text: a QR code holds 2,331 at its second-lowest error correction."""

MAX_ADDRESSES = 8
MAX_ADDRESS_CHARACTERS = 256
MAX_MODEL_CHARACTERS = 512
MAX_SOURCE_BYTES = 8 << 10
"""Of a file or a URL's answer, the white space around the invite included."""

SOURCE_SECONDS = 20.0
"""How long a URL may take, from the connection to the last byte; each wait in it at most half of that."""

_SIGNATURE_BYTES = 64
_KEY_BYTES = 32
_RUN_ID = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"(?:/[A-Za-z0-9.:%_-]+)+")
_MODEL = re.compile(r"[A-Za-z0-9][!-~]*")
_TEXT = re.compile(r"[A-Za-z0-9_-]+")
_LOOPBACK = ("/ip4/127.", "/ip6/::1/")


@dataclass(frozen=True, slots=True)
class Invite:
    """`run_id` and `organizer` (a public key) in hex; `model`: where the weights can be had, "" to ask the peers of the
    run; `addresses`: multiaddrs in the run, each with a peer id at its end. Raises `UsageError` for what cannot be."""

    run_id: str
    organizer: str
    model: str
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _RUN_ID.fullmatch(self.run_id) or not _RUN_ID.fullmatch(self.organizer):
            raise UsageError("this is no invite: run id and organizer are 64 lower-case hex digits each")
        if self.model and not is_shareable_model(self.model):
            raise UsageError("this is no invite: its model is not the name of one that can be had elsewhere")
        if not 0 < len(self.addresses) <= MAX_ADDRESSES or len(set(self.addresses)) != len(self.addresses):
            raise UsageError(
                f"this is no invite: it names {len(self.addresses)} addresses; 1 to {MAX_ADDRESSES} can be"
            )
        if not all(is_address(address) for address in self.addresses):
            raise UsageError("this is no invite: an address in it is not a multiaddr with a peer id at its end")

    def signed(self, organizer: Identity) -> str:
        """Its text. Raises `TrustError` if it names another organizer, `UsageError` if it is too long."""
        if organizer.public_hex != self.organizer:
            raise TrustError("the invite names another organizer's key")
        packed = _packed(self)
        text = SCHEME + _encoded(packed + organizer.sign(INVITE_DOMAIN, packed))
        if len(text) > MAX_CHARACTERS:
            raise UsageError(
                f"an invite of {len(text)} characters; the limit is {MAX_CHARACTERS}: name fewer addresses"
            )
        return text

    @classmethod
    def parse(cls, text: str) -> "Invite":
        """The invite in a text, proven to be its organizer's. Raises `UsageError`, `TrustError`."""
        if len(text) > MAX_CHARACTERS:
            raise UsageError(f"this is no invite: it has {len(text)} characters; the limit is {MAX_CHARACTERS}")
        if not text.startswith(SCHEME):
            raise UsageError(f"this is no invite: it does not begin with {SCHEME}")
        data = _decoded(text.removeprefix(SCHEME))
        packed, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
        invite = _unpacked(packed)
        verify(invite.organizer, INVITE_DOMAIN, packed, signature)
        return invite


def is_address(text: str) -> bool:
    """Whether this is a multiaddr in form, with an Ed25519 peer id at its end."""
    if len(text) > MAX_ADDRESS_CHARACTERS or not _ADDRESS.fullmatch(text):
        return False
    before, _, peer = text.rpartition("/p2p/")
    try:
        return bool(before) and bool(public_key_of(peer))
    except TrustError:
        return False


def is_shareable_model(name: str) -> bool:
    """Whether a model's name can stand in an invite: plain characters, and no path that begins in a folder."""
    return len(name) <= MAX_MODEL_CHARACTERS and bool(_MODEL.fullmatch(name))


def make_invite(organizer: Identity, run_id: str, model: str, addresses: Iterable[str]) -> str:
    """The text of an invite to a run, with as many of the addresses as fit: those that come first. One of this machine
    alone stands in it only if there are no others. Raises `UsageError` if there is no address that can be dialled."""
    usable = [address for address in dict.fromkeys(addresses) if is_address(address)]
    chosen = [address for address in usable if not address.startswith(_LOOPBACK)] or usable
    model = model if is_shareable_model(model) else ""
    for count in range(min(len(chosen), MAX_ADDRESSES), 1, -1):
        try:
            return Invite(run_id, organizer.public_hex, model, tuple(chosen[:count])).signed(organizer)
        except UsageError:
            continue
    return Invite(run_id, organizer.public_hex, model, tuple(chosen[:1])).signed(organizer)


# ---- its bytes


def _packed(invite: Invite) -> bytes:
    split = [address.rpartition("/p2p/") for address in invite.addresses]
    nodes = [
        [bytes.fromhex(public_key_of(peer)), [before for before, _, _ in group]]
        for peer, group in groupby(split, key=lambda parts: parts[2])
    ]
    run, organizer = bytes.fromhex(invite.run_id), bytes.fromhex(invite.organizer)
    packed: bytes = msgpack.packb([VERSION, run, organizer, invite.model, nodes], use_bin_type=True)
    return packed


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def _unpacked(packed: bytes) -> Invite:
    try:
        entries = msgpack.unpackb(packed, use_list=False, ext_hook=_no_extension)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise UsageError("this is no invite, or a part of it is missing: copy all of it") from error
    if type(entries) is tuple and entries and type(entries[0]) is int and entries[0] != VERSION:
        raise UsageError(
            f"this invite is of version {entries[0]}, not {VERSION}: another version of swarm-peer made it"
        )
    if not _has_form(entries, (int, bytes, bytes, str, tuple)):
        raise UsageError("this is no invite: it does not have the fields of one")
    _, run, organizer, model, nodes = entries
    if not 0 < len(nodes) <= MAX_ADDRESSES or not all(_has_form(node, (bytes, tuple)) for node in nodes):
        raise UsageError("this is no invite: it does not name peers as one does")
    addresses = tuple(_address(key, before) for key, all_before in nodes for before in all_before[: MAX_ADDRESSES + 1])
    invite = Invite(run.hex(), organizer.hex(), model, addresses)
    if _packed(invite) != packed:
        raise UsageError("this is no invite: it is not in its one byte form")
    return invite


def _has_form(entries: Any, kinds: Sequence[type]) -> bool:
    return type(entries) is tuple and [type(entry) for entry in entries] == list(kinds)


def _address(key: bytes, before: Any) -> str:
    if len(key) != _KEY_BYTES or type(before) is not str:
        raise UsageError("this is no invite: it does not name peers as one does")
    return f"{before}/p2p/{peer_id_of(key.hex())}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _decoded(text: str) -> bytes:
    try:
        if not _TEXT.fullmatch(text):
            raise ValueError("another alphabet")
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error) as error:
        raise UsageError("this is no invite, or a part of it is missing: it is not base64url") from error
    if _encoded(data) != text:
        raise UsageError("this is no invite: it is not in its one text form")
    return data


# ---- where it comes from, and goes to


def read_invite(source: str) -> Invite:
    """The invite that a command line means: its text, a file or an http(s) URL. Raises `UsageError`, `TrustError`,
    `UnreachableError`."""
    if source.startswith(SCHEME):
        return Invite.parse(source.strip())
    is_url = source.startswith(("http://", "https://"))
    content = _fetched(source) if is_url else _from_file(source)
    try:
        if len(content) > MAX_SOURCE_BYTES:
            raise UsageError(f"it has more than {MAX_SOURCE_BYTES} bytes")
        return Invite.parse(content.decode("ascii").strip())
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: this is no invite: it is not plain text") from error
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    except TrustError as error:
        raise TrustError(f"{source}: {error}") from error


def _from_file(source: str) -> bytes:
    try:
        with open(source, "rb") as file:
            return file.read(MAX_SOURCE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{source[:200]!r} is no invite: expected {SCHEME}..., or a file or http(s) URL that holds it ({error})"
        ) from error


def _fetched(url: str) -> bytes:
    """At most one byte more than an answer may have."""
    # Imported here: most invites are texts, and the client takes a moment to load.
    import httpx2

    content = bytearray()
    deadline = time.monotonic() + SOURCE_SECONDS
    headers = {"Accept-Encoding": "identity", "User-Agent": "swarm-peer"}
    options: dict[str, Any] = {"timeout": SOURCE_SECONDS / 2, "follow_redirects": True, "max_redirects": 5}
    try:
        with httpx2.Client(headers=headers, **options) as client, client.stream("GET", url) as response:
            if response.status_code != 200:
                raise UnreachableError(f"{url}: the server answered {response.status_code}; wanted 200")
            if url.startswith("https:") and response.url.scheme != "https":
                raise TrustError(f"{url}: leads to {response.url.host} without encryption; wanted https throughout")
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > MAX_SOURCE_BYTES:
                    break
                if time.monotonic() > deadline:
                    raise UnreachableError(f"{url}: gave no whole invite within {SOURCE_SECONDS:.0f} s")
    except httpx2.InvalidURL as error:
        raise UsageError(f"{url[:200]!r} is no URL: {error}") from error
    except httpx2.HTTPError as error:
        raise UnreachableError(f"{url}: cannot be read: {str(error) or type(error).__name__}") from error
    return bytes(content[: MAX_SOURCE_BYTES + 1])


def write_invite(path: Path, text: str) -> None:
    """Writes it for everyone to read, whole or not at all. Raises `StorageError`."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(f"{text}\n".encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise StorageError(f"the invite cannot be written to {path}: {error}") from error
