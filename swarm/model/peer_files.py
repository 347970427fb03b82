"""A checkpoint's files from peers of the run that have them on their disks (`file_serving.py`).

`PeerFiles` reads them, part by part, from whichever peer answers; what came is proven by the digests of the manifest
(`Weights.pieces`), as from any other source. It works in the thread that loads, and has the event loop do the fetching.

Errors: `ModelError` for a file that nobody has, `UnreachableError` if no peer answers.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ...errors import ModelError, RefusedError, UnreachableError, WireError
from ...protos import swarm_pb2 as pb
from ..directory import Directory
from ..exchange import Pool
from ..fetching import FETCH_SECONDS, fetch
from ..manifest import Manifest
from .file_serving import PART_BYTES

MAX_FILE_BYTES = 1 << 45
BEYOND_EVERY_PART = (1 << 32) - 1
KEPT_PARTS = 4
"""Of what came last, as many are kept: the next tensor often begins in one of them."""

POLL_SECONDS = 0.5
"""How often a thread that waits for a part looks whether it is to go on."""


@dataclass
class PeerFiles:
    """Implements `Files`. `loop`: the one that `pool` and `directory` live on."""

    manifest: Manifest
    pool: Pool
    directory: Directory
    loop: asyncio.AbstractEventLoop
    where: str = "the peers of the run"
    is_local: bool = False
    received: int = 0
    _donors: list[str] = field(default_factory=list)
    _kept: dict[tuple[str, int], bytes] = field(default_factory=dict)

    def name_of(self, name: str) -> str:
        return f"{name} of {self.where}"

    def has(self, name: str) -> bool:
        try:
            self._part(name, BEYOND_EVERY_PART)
        except ModelError:
            return False
        return True

    def size(self, name: str) -> int:
        return self._part(name, BEYOND_EVERY_PART)[0]

    def whole(self, name: str, limit: int) -> bytes:
        size = self.size(name)
        if size > limit:
            raise ModelError(f"{self.name_of(name)}: is larger than {limit} bytes; that is not what is expected there")
        content = bytearray(size)
        self.read(name, 0, memoryview(content), lambda count: None)
        return bytes(content)

    def read(self, name: str, start: int, into: memoryview, came: Callable[[int], None]) -> None:
        filled = 0
        while filled < len(into):
            part, offset = divmod(start + filled, PART_BYTES)
            data = self._kept.pop((name, part), None)
            if data is None:
                data = self._part(name, part, came)[1]
            self._kept[name, part] = data
            if len(self._kept) > KEPT_PARTS:
                del self._kept[next(iter(self._kept))]
            piece = data[offset : offset + len(into) - filled]
            if not piece:
                raise ModelError(f"{self.name_of(name)}: ends at byte {start + filled}")
            into[filled : filled + len(piece)] = piece
            filled += len(piece)
            came(len(piece))

    def forget(self, wrong: Sequence[tuple[str, int, int]]) -> None:
        """Whoever gave these bytes is not asked first any more."""
        self._kept.clear()
        self._ask_another_first()

    def _ask_another_first(self) -> None:
        if self._donors:
            self._donors.append(self._donors.pop(0))

    def revision(self, names: Iterable[str]) -> str:
        return ""

    def check_revision(self, revision: str, names: Iterable[str]) -> None:
        """The digests of the manifest say more."""

    def close(self) -> None:
        """Lets go of what is kept; the pool is others'."""
        self._kept.clear()

    def _part(self, name: str, part: int, came: Callable[[int], None] = lambda count: None) -> tuple[int, bytes]:
        """A part of a file and the size of all of it. `came(0)` is called while it is waited for, and may raise."""
        waiting = asyncio.run_coroutine_threadsafe(self._fetch(name, part), self.loop)
        for _ in range(int(2 * FETCH_SECONDS / POLL_SECONDS)):
            try:
                return waiting.result(POLL_SECONDS)
            except concurrent.futures.TimeoutError:
                try:
                    came(0)
                except BaseException:
                    waiting.cancel()
                    raise
        waiting.cancel()
        raise UnreachableError(f"{self.name_of(name)}: nothing came for {2 * FETCH_SECONDS:.0f} s")

    async def _fetch(self, name: str, part: int) -> tuple[int, bytes]:
        if not self._donors:
            await self._find_donors()
        question = pb.Fetch(run=self.manifest.run_id, kind=pb.Fetch.FILE, group=name, part=part)
        limit = self.manifest.settings.limits.payload_bytes
        problems = []
        for donor in list(self._donors):
            try:
                answer, data = await fetch(self.pool, donor, question, limit)
            except (UnreachableError, RefusedError, WireError) as error:
                problems.append(error)
                self._ask_another_first()
                continue
            expected = max(0, min(PART_BYTES, answer.size - part * PART_BYTES))
            if answer.size <= MAX_FILE_BYTES and len(data) == expected:
                return answer.size, data
            problems.append(WireError(f"{donor} gave {len(data)} bytes of {name}; {expected} are due"))
            self._ask_another_first()
        said = "; ".join(str(problem) for problem in problems[:4])
        if problems and all(isinstance(problem, RefusedError) for problem in problems):
            raise ModelError(f"{self.name_of(name)}: none of {len(problems)} peers has it: name a source with --model")
        raise UnreachableError(f"{self.name_of(name)}: {said or 'there is no peer to ask'}; name a source with --model")

    async def _find_donors(self) -> None:
        for stage in range(self.manifest.stages):
            for record in await self.directory.read(self.manifest.run_id, stage):
                self.pool.addresses.setdefault(record.peer, record.addresses)
                if record.peer not in self._donors:
                    self._donors.append(record.peer)
