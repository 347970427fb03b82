"""What a coordinator keeps on disk of a run that may have several: who it is there, what it may, what it has known.

One folder per run and identity, `<state>/coordinators/<run id>/<public key>/`: the identity's key, the signed manifest,
the organizer's delegation, the highest term; and beside them where others of the run were met. A living coordinator
holds a lock on its folder; one that was killed does not, and whoever is started next for that run on this machine takes
its place, with its identity and its terms. Every file is written whole or not at all, and read by its owner only.

Errors: `TrustError` for what cannot be kept, or was kept and does not prove itself; `ManifestError`.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import TrustError
from .keys import Identity, SignedManifest, check_signed_manifest, state_folder

_RUN_ID = re.compile(r"[0-9a-f]{64}")
_OVER = "over"
_LOCK, _KEY, _MANIFEST, _SIGNATURE, _DELEGATION, _TERM, _MET = (
    "in-use",
    "identity.key",
    "manifest.json",
    "manifest.signature",
    "delegation",
    "term",
    "met.json",
)


@dataclass
class CoordinatorState:
    """One coordinator's place in one run: a context manager that holds the lock. Make it with `claim`.

    `over`: the run has ended, as this coordinator or another one on this machine has seen: nothing more is to be kept,
    and whoever is started later is told.
    """

    run_id: str
    folder: Path
    identity: Identity
    _lock: int
    over: bool = False

    @classmethod
    def claim(cls, run_id: str, new: Identity | None = None) -> "CoordinatorState":
        """The place of a coordinator of this run that no longer lives (that of the highest term), else a new one.

        With `new` that identity's own place. Raises `TrustError`.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise TrustError(f"{run_id[:80]!r} is not a run id: expected 64 lower-case hex digits")
        home = state_folder() / "coordinators" / run_id
        try:
            places = [path for path in home.glob("*/") if (path / _KEY).is_file()] if new is None else []
            for folder in sorted(places, key=lambda folder: (-_term_in(folder), folder)):
                lock = _lock(folder)
                if lock is not None:
                    return cls(run_id, folder, Identity.load_or_create(folder / _KEY), lock, (home / _OVER).exists())
            identity = new or Identity.generate()
            folder = home / identity.public_hex
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _lock(folder)
            if lock is None:
                raise TrustError(f"another process is this coordinator already ({folder} is in use)")
            _write(folder / _KEY, identity.private)
        except OSError as error:
            raise TrustError(f"the coordinator's state in {home} cannot be kept: {error}") from error
        return cls(run_id, folder, identity, lock, (home / _OVER).exists())

    # ---- what is kept

    def manifest(self) -> SignedManifest | None:
        """The run's manifest, proven; None if this coordinator has not had it yet. Raises `TrustError`."""
        canonical, signature = _read(self.folder / _MANIFEST), _read(self.folder / _SIGNATURE)
        if canonical is None or signature is None:
            return None
        check_signed_manifest(canonical, signature, self.run_id)
        return SignedManifest(canonical, signature)

    def keep_manifest(self, signed: SignedManifest) -> None:
        _keep(self.folder / _MANIFEST, signed.canonical)
        _keep(self.folder / _SIGNATURE, signed.signature)

    def delegation(self) -> bytes | None:
        """The organizer's word that this identity may lead the run."""
        return _read(self.folder / _DELEGATION)

    def keep_delegation(self, delegation: bytes) -> None:
        _keep(self.folder / _DELEGATION, delegation)

    def term(self) -> int:
        """The highest term that this identity has known; 0 before the first."""
        return _term_in(self.folder)

    def keep_term(self, term: int) -> None:
        _keep(self.folder / _TERM, str(max(term, self.term())).encode())

    def met(self) -> tuple[str, ...]:
        """Addresses at which coordinators on this machine met nodes of the run: advice, so that what cannot be read is
        not there."""
        try:
            return tuple(str(address) for address in json.loads(_read(self.folder.parent / _MET) or b"[]"))
        except (ValueError, TypeError):
            return ()

    def keep_met(self, addresses: Iterable[str]) -> None:
        text = json.dumps(sorted(addresses)).encode()
        if text not in (b"[]", _read(self.folder.parent / _MET)):
            _keep(self.folder.parent / _MET, text)

    def __enter__(self) -> "CoordinatorState":
        return self

    def __exit__(self, *problem: object) -> None:
        if self.over:
            (self.folder.parent / _OVER).touch(mode=0o600)
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _term_in(folder: Path) -> int:
    kept = _read(folder / _TERM)
    if kept is not None and not kept.isdigit():
        raise TrustError(f"{folder / _TERM} does not hold a number; without it no term is safe to lead")
    return int(kept or 0)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrustError(f"{path} cannot be read: {error}") from error


def _keep(path: Path, data: bytes) -> None:
    try:
        _write(path, data)
    except OSError as error:
        raise TrustError(f"{path} cannot be written: {error}") from error


def _lock(folder: Path) -> int | None:
    """The lock of a place, as an open file; None if a living process has it."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _write(path: Path, data: bytes) -> None:
    """Replaces a file as a whole, so that a kill or a power cut leaves the old one or the new one."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
