"""At the helm of a run that goes on: what its organizer may have its coordinator do, from the API.

Acts through whoever leads in this process. Errors: `UsageError` while another coordinator leads; those of `Steering`,
of evaluation and export.
"""

import asyncio
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import StorageError, UsageError
from .chronicle import Chronicle
from .directory import Directory
from .events import Kept
from .exporting import Export, export_from_run
from .keys import state_folder
from .manifest import Manifest
from .measures import measures
from .messages import from_scalar
from .steering import Steering
from .succession import Succession
from .trainer import Trainer
from .transport import Transport


class RunHelm:
    """The helm of one coordinator's run; what is exported goes under `exports` (default: the state folder's)."""

    def __init__(
        self,
        manifest: Manifest,
        succession: Succession,
        chronicle: Chronicle,
        transport: Transport,
        directory: Directory,
        exports: Path | None = None,
    ) -> None:
        self._manifest = manifest
        self._succession = succession
        self._chronicle = chronicle
        self._transport = transport
        self._directory = directory
        self._exports = exports or state_folder() / "exports"
        self._exporting = False

    @property
    def run_id(self) -> str:
        return self._manifest.run_id

    @property
    def _trainer(self) -> Trainer:
        trainer = self._succession.trainer
        if trainer is None:
            raise UsageError("this coordinator stands by: ask the one that leads the run")
        if trainer.over:
            raise UsageError("this coordinator does not lead the run any more")
        return trainer

    @property
    def _steering(self) -> Steering:
        return self._trainer.steering

    def pause(self) -> None:
        self._steering.pause()

    def resume(self) -> None:
        self._steering.resume()

    def drain(self, peer: str, why: str) -> None:
        self._steering.drain(self._named(peer), why)

    def ban(self, peer: str, why: str) -> None:
        self._steering.ban(self._named(peer), why)

    def _named(self, text: str) -> str:
        """The peer of this id, name or end of an id. Raises `UsageError` unless it is one."""
        peers = self._chronicle.state.peers.values()
        found = [peer.peer for peer in peers if text and (text in (peer.peer, peer.name) or peer.peer.endswith(text))]
        if text in found or len(found) == 1:
            return text if text in found else found[0]
        if not found:
            raise UsageError(f"no peer of this run is called {text[:80]!r}, nor does its id end so")
        raise UsageError(f"{len(found)} peers are called {text[:80]!r}: {', '.join(sorted(found)[:8])}")

    async def evaluate(self) -> Mapping[str, float]:
        """The held-out loss at the version that the run is at, as `swarm-coordinator evaluate` tells it."""
        answer = await self._trainer.errands.ask()
        if not answer.HasField("loss"):
            raise UsageError("the run has no held-out text")
        loss = float(from_scalar(answer.loss, "loss", "the trainer"))
        found = measures(answer.version, loss, answer.tokens, answer.bytes)
        return {**found, "bits_per_byte": 0.0 if math.isnan(found["bits_per_byte"]) else found["bits_per_byte"]}

    async def export(self, merge: bool, tell: Callable[[str], None]) -> Kept:
        """Writes the newest version into a new folder of this coordinator's; whoever asks chooses no path. Raises
        `UsageError` while another export goes on."""
        if self._exporting:
            raise UsageError("an export is under way already: ask again when it is done")
        self._exporting = True
        try:
            export = Export(await asyncio.to_thread(self._new_place), merge)
            tell("fetching the newest version from the replicas")
            await export_from_run(export, self._manifest, self._transport, self._directory, tell)
            tell(f"written to {export.folder}; taking digests")
            kept = await asyncio.to_thread(kept_of, export, self._manifest)
        finally:
            self._exporting = False
        self._chronicle.emit(kept)
        return kept

    def _new_place(self) -> Path:
        """A folder that is not there yet; numbers grow even if older ones are removed. Raises `StorageError`."""
        home = self._exports / self._manifest.run_id[:16]
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            numbers = [int(path.name) for path in home.iterdir() if path.name.isdecimal()]
        except OSError as error:
            raise StorageError(f"exports cannot be kept in {home}: {error.strerror or error}") from error
        return home / f"{max(numbers, default=0) + 1:04}"


def kept_of(export: Export, manifest: Manifest) -> Kept:
    """What was written, with sizes and digests. Blocks."""
    assert export.collected is not None
    files = tuple(_described(path) for path in sorted(export.folder.iterdir()) if path.is_file())
    what = "model" if export.merge or manifest.settings.train.mode == "full" else "adapter"
    return Kept(what, export.collected.version, str(export.folder.absolute()), files)


def _described(path: Path) -> tuple[str, int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.name, path.stat().st_size, digest
