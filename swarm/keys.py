"""Keys and what they prove: identities, the signed manifest, the trainer's delegation and term.

One Ed25519 key is a peer's identity everywhere: for libp2p (its peer id *is* the public key), for its directory
records, and for a trainer's terms. The organizer's key signs the manifest and the delegation of each trainer. Every
signature covers a domain, so that one can never stand for another. A key has one text form (64 lower-case hex digits)
and a peer id has one, so that neither can pass for somebody else in a table. Nothing here talks to anybody.

Errors: `TrustError`, of which `OrganizerError` is final; `ManifestError` for a manifest that cannot be read.
"""

import hashlib
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import OrganizerError, TrustError
from .manifest import Manifest, parse_manifest

_LIBP2P_PRIVATE = b"\x08\x01\x12\x40"
_LIBP2P_PUBLIC = b"\x08\x01\x12\x20"
_IDENTITY_MULTIHASH = b"\x00\x24"

MANIFEST_DOMAIN = "manifest"
DELEGATION_DOMAIN = "delegation"
TERM_DOMAIN = "term"
ERRAND_DOMAIN = "errand"
EPOCH_DOMAIN = "epoch"
CHECKPOINT_DOMAIN = "checkpoint"
INVITE_DOMAIN = "invite"

_PUBLIC_HEX = re.compile(r"[0-9a-f]{64}")
_PEER_ID_CHARACTERS = 52
"""Every Ed25519 peer id has this many; base58 takes quadratic time, so longer texts are not even decoded."""


def state_folder() -> Path:
    """Where keys and the runs of this machine are kept: $SWARM_PEER_STATE, else the user's state folder."""
    chosen = os.environ.get("SWARM_PEER_STATE")
    return Path(chosen) if chosen else Path.home() / ".local" / "state" / "swarm-peer"


def _covered(domain: str, data: bytes) -> bytes:
    return f"swarm-peer/1/{domain}\0".encode() + data


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key (32 bytes), which no `repr` shows."""

    private: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "Identity":
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_seed(cls, seed: str) -> "Identity":
        """An identity that anyone can make again: for simulations and tests only."""
        return cls(hashlib.sha256(seed.encode()).digest())

    @classmethod
    def load_or_create(cls, path: Path) -> "Identity":
        """Reads a key file, or makes one (mode 0600). Raises `TrustError` if others may read it, or it is no key."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return cls._create(path)
        except OSError as error:
            raise TrustError(f"the key file {path} cannot be read: {error}") from error
        with file:
            # Asked of the open file, not of the path, so that what is checked is what is read.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise TrustError(f"{path} can be read or written by others (mode {mode:o}); run chmod 600 on it")
            private = file.read(33)
        if len(private) != 32:
            raise TrustError(f"{path} is not a key file: an Ed25519 private key has exactly 32 bytes")
        return cls(private)

    @classmethod
    def _create(cls, path: Path) -> "Identity":
        identity = cls.generate()
        unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(identity.private)
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, never replaces a key that another process has just made: the first one stays.
            os.link(unfinished, path)
        except FileExistsError:
            return cls.load_or_create(path)
        except OSError as error:
            raise TrustError(f"the key file {path} cannot be made: {error}") from error
        finally:
            unfinished.unlink(missing_ok=True)
        return identity

    @property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.private)

    @property
    def public_hex(self) -> str:
        return self._key.public_key().public_bytes_raw().hex()

    @property
    def peer_id(self) -> str:
        return peer_id_of(self.public_hex)

    def sign(self, domain: str, data: bytes) -> bytes:
        return self._key.sign(_covered(domain, data))

    def libp2p_private_key(self) -> bytes:
        """The key in libp2p's protobuf form."""
        return _LIBP2P_PRIVATE + self.private + bytes.fromhex(self.public_hex)


def _public_bytes(public_hex: str) -> bytes:
    if not _PUBLIC_HEX.fullmatch(public_hex):
        raise TrustError(f"{public_hex[:80]!r} is not a public key: expected 64 lower-case hex digits")
    return bytes.fromhex(public_hex)


def verify(public_hex: str, domain: str, data: bytes, signature: bytes) -> None:
    """Raises `TrustError` unless `signature` was made by this key over this domain and data."""
    public = _public_bytes(public_hex)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _covered(domain, data))
    except (InvalidSignature, ValueError) as error:
        raise TrustError(f"the {domain} is not signed by key {public_hex[:16]}...") from error


def peer_id_of(public_hex: str) -> str:
    """libp2p's text form of a public key: base58 of the identity multihash of its protobuf. Raises `TrustError`."""
    return base58.b58encode(_IDENTITY_MULTIHASH + _LIBP2P_PUBLIC + _public_bytes(public_hex)).decode("ascii")


def public_key_of(peer_id: str) -> str:
    """The public key (hex) that a peer id is. Raises `TrustError` if it is not an Ed25519 one."""
    prefix = _IDENTITY_MULTIHASH + _LIBP2P_PUBLIC
    try:
        raw = base58.b58decode(peer_id) if len(peer_id) == _PEER_ID_CHARACTERS else b""
    except ValueError as error:
        raise TrustError(f"{peer_id!r} is not a peer id") from error
    if not raw.startswith(prefix) or len(raw) != len(prefix) + 32:
        raise TrustError(f"{peer_id[:80]!r} is not the peer id of an Ed25519 key")
    return raw[len(prefix) :].hex()


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """Canonical bytes of a manifest and the organizer's signature over them."""

    canonical: bytes
    signature: bytes


def sign_manifest(organizer: Identity, manifest: Manifest) -> SignedManifest:
    """Raises `TrustError` if the manifest names another organizer."""
    if manifest.organizer != organizer.public_hex:
        raise TrustError("the manifest names another organizer's key")
    canonical = manifest.canonical()
    return SignedManifest(canonical, organizer.sign(MANIFEST_DOMAIN, canonical))


def check_signed_manifest(
    canonical: bytes, signature: bytes, run_id: str | None, organizer: str | None = None
) -> Manifest:
    """The manifest, proven to be the run's, and this organizer's if one is named. Raises `TrustError`,
    `OrganizerError`, `ManifestError`."""
    manifest = parse_manifest(canonical)
    if run_id is not None and manifest.run_id != run_id:
        raise TrustError(f"the manifest is that of run {manifest.run_id}, not of run {run_id}")
    verify(manifest.organizer, MANIFEST_DOMAIN, canonical, signature)
    if organizer is not None and manifest.organizer != organizer:
        raise OrganizerError(
            f"run {manifest.run_id[:12]} is organized by {manifest.organizer[:16]}..., not by {organizer[:16]}... who "
            "invited to it: ask whoever gave you the invite"
        )
    return manifest


@dataclass(frozen=True, slots=True)
class Delegation:
    """The organizer's word that the trainer with this public key (hex) may lead this run."""

    run: str
    trainer: str
    signature: bytes


def _delegated(run_id: str, trainer: str) -> bytes:
    return f"{run_id}/{trainer}".encode()


def delegate(organizer: Identity, run_id: str, trainer: str) -> bytes:
    """The signature of a `Delegation`: it lets a trainer (public key, hex) lead a run."""
    return organizer.sign(DELEGATION_DOMAIN, _delegated(run_id, trainer))


def permit(organizer: Identity, run_id: str, peer_id: str) -> bytes:
    """The organizer's signature that lets a peer ask a run's trainer for what costs the swarm work."""
    return organizer.sign(ERRAND_DOMAIN, f"{run_id}/{peer_id}".encode())


def check_permit(manifest: Manifest, peer_id: str, signature: bytes) -> None:
    """Raises `TrustError` unless the manifest's organizer permits it to this peer."""
    verify(manifest.organizer, ERRAND_DOMAIN, f"{manifest.run_id}/{peer_id}".encode(), signature)


def check_delegation(manifest: Manifest, delegation: Delegation) -> None:
    """Raises `TrustError` unless the manifest's organizer let this trainer lead this run."""
    if delegation.run != manifest.run_id:
        raise TrustError(f"the delegation is for run {delegation.run[:80]}, not for run {manifest.run_id}")
    verify(manifest.organizer, DELEGATION_DOMAIN, _delegated(delegation.run, delegation.trainer), delegation.signature)


@dataclass(frozen=True, slots=True)
class SignedTerm:
    """A trainer's claim to lead: `delegation` is the organizer's signature, `signature` the trainer's own."""

    number: int
    trainer: str
    delegation: bytes
    signature: bytes


def _numbered(run_id: str, number: int) -> bytes:
    return f"{run_id}/{number}".encode()


def sign_term(trainer: Identity, run_id: str, number: int, delegation: bytes) -> SignedTerm:
    return SignedTerm(number, trainer.public_hex, delegation, trainer.sign(TERM_DOMAIN, _numbered(run_id, number)))


def check_term(manifest: Manifest, term: SignedTerm) -> None:
    """Raises `TrustError` unless the organizer delegated the run to this trainer and the trainer signed the number."""
    run_id = manifest.run_id
    check_delegation(manifest, Delegation(run_id, term.trainer, term.delegation))
    verify(term.trainer, TERM_DOMAIN, _numbered(run_id, term.number), term.signature)


def _begun(run_id: str, number: int, first: int) -> bytes:
    return f"{run_id}/{number}/{first}".encode()


def sign_epoch(trainer: Identity, run_id: str, number: int, first: int) -> bytes:
    """A trainer's word that its term `number` began an epoch, with step `first`."""
    return trainer.sign(EPOCH_DOMAIN, _begun(run_id, number, first))


def check_epoch(run_id: str, trainer: str, number: int, first: int, signature: bytes) -> None:
    """Raises `TrustError` unless this trainer (public key, hex) signed it."""
    verify(trainer, EPOCH_DOMAIN, _begun(run_id, number, first), signature)


class ProvenTerms:
    """Remembers the terms of one run that passed `check_term`: every message of a trainer carries one. At most `limit`
    are kept, the oldest goes first; what fails is never remembered."""

    def __init__(self, manifest: Manifest, limit: int = 64) -> None:
        self._manifest = manifest
        self._limit = limit
        self._proven: dict[SignedTerm, None] = {}

    def check(self, term: SignedTerm) -> None:
        """As `check_term`; a term that passed before costs one look-up. Raises `TrustError`."""
        if term in self._proven:
            return
        check_term(self._manifest, term)
        if len(self._proven) >= self._limit:
            del self._proven[next(iter(self._proven))]
        self._proven[term] = None
