"""The versions of one stage's trained state that are live on a peer: up to three, t-1, t and t+1.

A visit reads the version that its Run names and no other; a version is never changed, a new one stands beside it.
Knows no socket.
"""

import asyncio

from .backend import State

KEPT_DIGESTS = 64
"""Of how many versions that are gone the digests stay: a Commit may be sent again."""


class VersionStore:
    """States and their digests by version number."""

    def __init__(self) -> None:
        self._states: dict[int, State] = {}
        self._digests: dict[int, bytes] = {}
        self._grown = asyncio.Event()

    def put(self, version: int, state: State, digest: bytes) -> None:
        self._states[version] = state
        self._digests[version] = digest
        self._grown.set()

    def get(self, version: int) -> State | None:
        return self._states.get(version)

    def digest(self, version: int) -> bytes:
        return self._digests[version]

    @property
    def latest(self) -> int:
        """The newest version; -1 before version 0 is there."""
        return max(self._states, default=-1)

    @property
    def oldest(self) -> int:
        return min(self._states, default=-1)

    async def wait_for(self, version: int, seconds: float) -> bool:
        """Whether `version` is there within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while version > self.latest:
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError:
            pass
        return version in self._states

    def drop_below(self, version: int) -> None:
        for old in [old for old in self._states if old < version]:
            del self._states[old]
        for old in [old for old in self._digests if old < version - KEPT_DIGESTS]:
            del self._digests[old]
