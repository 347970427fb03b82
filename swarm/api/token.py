"""The organizer's token: who shows it may change a run. One a run, on the coordinator's disk, its owner's alone.

Errors: `TrustError` for a call without it, or for a token that cannot be kept.
"""

import asyncio
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from ...errors import TrustError
from ..keys import state_folder

FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.05, 1.0
"""What a wrong token costs whoever shows it, doubling: guessing must be slow. The right one is never held up."""


def token_path(run_id: str) -> Path:
    return state_folder() / "tokens" / run_id


def load_or_create(run_id: str) -> str:
    """The token of a run, made on first use. Raises `TrustError`."""
    path = token_path(run_id)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return _read(path)
        token = secrets.token_urlsafe(32)
        with os.fdopen(file, "w", encoding="ascii") as new:
            new.write(token)
        return token
    except OSError as error:
        raise TrustError(f"the API's token cannot be kept in {path}: {error}") from error


def _read(path: Path) -> str:
    if path.stat().st_mode & 0o077:
        raise TrustError(f"{path} can be read by others: make it yours alone (chmod 600) or remove it")
    return path.read_text(encoding="ascii").strip()


class Doorkeeper:
    """Lets in who shows the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._delay = FIRST_DELAY_SECONDS

    async def check(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Raises `TrustError` unless the metadata hold the token."""
        shown = [value for key, value in metadata if key == "authorization"]
        said = shown[0] if len(shown) == 1 and isinstance(shown[0], str) else ""
        word, _, token = said.partition(" ")
        if word.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token):
            self._delay = FIRST_DELAY_SECONDS
            return
        delay, self._delay = self._delay, min(2 * self._delay, MAX_DELAY_SECONDS)
        await asyncio.sleep(delay)
        raise TrustError(
            "this call needs the organizer's token in the metadata: authorization: Bearer <token>"
            if not said
            else "the token is not this run's"
        )
