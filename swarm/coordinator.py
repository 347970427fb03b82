"""The coordinator: the organizer's process. Node of the directory, and trainer or standby of one run.

`coordinate` starts a run: it freezes the settings into a manifest, signs it with the organizer's key, delegates the run
to itself and leads. `stand_by` belongs to a run that has begun: it follows whoever leads and leads when nobody does
(`succession.py`). Either keeps what it needs to come again (`coordinator_state.py`) if the run has standbys. What
happens goes out as events (`events.py`); how they are shown is the command line's.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ManifestError, StoppedError, TrustError, UnreachableError, UsageError
from .addresses import peer_in
from .arithmetic import RealArithmetic
from .checkpoint import Checkpoint
from .checkpoint_folder import CheckpointFolder, find_checkpoint, open_checkpoint
from .chronicle import Chronicle, open_chronicle
from .coordinator_state import CoordinatorState
from .dht_directory import DHTDirectory
from .directory import TRAINER_STAGE
from .driving import Samples
from .events import Event, Listening
from .exporting import Export
from .first_contact import ask_for_manifest
from .freezing import prepare, take_up
from .helm import RunHelm, kept_of
from .invites import is_address, make_invite, write_invite
from .keys import Delegation, Identity, SignedManifest, check_delegation, delegate, sign_manifest, state_folder
from .local_runs import LocalRun, advertised
from .manifest import Manifest, Settings, parse_manifest
from .p2p_transport import P2PTransport
from .presence import keep_listed
from .process import network_node
from .shared_folder import SharedFolder
from .showing import NOWHERE, Places, Shown, shown
from .succession import Succession

MEETING_SECONDS = 1.0
LOOKS = 10
"""How often a coordinator keeps where the members of the run are that it leads, and, every so many times, asks the
directory for others: it must find the run when it comes again."""


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The run is over, and this coordinator led it to its end; `error` is empty if it came to its last step."""

    kind: ClassVar[str] = "ended"
    error: str
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Over(Event):
    """The run is over; the coordinator that led it then has the report."""

    kind: ClassVar[str] = "over"


@dataclass(frozen=True, slots=True)
class Exported(Event):
    """What the run has trained is in `folder`; with an `error` it is not, and the run is over all the same."""

    kind: ClassVar[str] = "exported"
    folder: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Keeping:
    """A checkpoint after every so many steps; the last `keep` stay, in `root` or else in the state folder."""

    every: int = 20
    keep: int = 2
    root: Path | None = None

    def folder(self, manifest: Manifest, identity: Identity) -> CheckpointFolder:
        root = self.root or state_folder() / "checkpoints" / manifest.run_id
        return CheckpointFolder(root, manifest, identity, self.every, self.keep)


@dataclass(frozen=True, slots=True)
class Node:
    """How this process shows itself on the network; `announce`: the addresses to tell others, if they are not those it
    listens on. `emit` takes events; `give_up` is the trainer's; `export`: what is kept of the run at its end;
    `exports`: where the API may export to, if not the state folder; `keeping`: how checkpoints are kept, None for not
    at all; `invite`: the file that the invite is written to; `listed`: whether the run stands in the directory's
    index."""

    folder: SharedFolder
    listen: Sequence[str]
    emit: Callable[[Event], None]
    announce: Sequence[str] = ()
    give_up: float | None = None
    export: Export | None = None
    places: Places = NOWHERE
    exports: Path | None = None
    keeping: Keeping | None = None
    invite: Path | None = None
    listed: bool = True

    @asynccontextmanager
    async def network(
        self, identity: Identity, initial_peers: Sequence[str]
    ) -> AsyncIterator[tuple[P2PTransport, DHTDirectory]]:
        """This process's node, under an identity of the run. Raises `UnreachableError`."""
        where = self.folder.path / identity.peer_id[-8:]
        async with network_node(identity, where, self.listen, initial_peers, self.announce, relays=True) as made:
            yield made


async def coordinate(
    settings: Settings, *, organizer: Identity, node: Node, initial_peers: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Leads a run from its settings to its report; None if another coordinator led it at its end. `initial_peers`:
    nodes of a directory to stand in; without any it founds one.

    Raises `ManifestError`, `DataError`, `ModelError` before anything is started, `UnreachableError` if the node cannot
    listen, `StoppedError` (after an `Ended` event with the report so far) if the run cannot go on.
    """
    prepared = prepare(settings, organizer=organizer.public_hex, nonce=secrets.token_hex(16))
    manifest = prepared.manifest
    identity = Identity.generate()
    part = _Part(
        signed=sign_manifest(organizer, manifest),
        manifest=manifest,
        samples=prepared.samples(),
        identity=identity,
        delegation=delegate(organizer, manifest.run_id, identity.public_hex),
        organizer=organizer,
    )
    with CoordinatorState.claim(manifest.run_id, identity) if settings.pipeline.standby else nullcontext() as state:
        async with node.network(identity, initial_peers) as (transport, directory):
            return await part.take(node, transport, directory, state, lead=True)


async def resume(path: Path, *, organizer: Identity, initial_peers: Sequence[str], node: Node) -> dict[str, Any] | None:
    """Leads a run from a checkpoint to its report, in a new epoch; `path`: the checkpoint, or a folder of them.

    `initial_peers`: peers of the run that are still there, if any. Raises as `coordinate` does, `CheckpointError`, and
    `TrustError` if the organizer's key is not the run's.
    """
    checkpoint = await asyncio.to_thread(lambda: open_checkpoint(find_checkpoint(path)))
    manifest = parse_manifest(checkpoint.signed.canonical)
    if organizer.public_hex != manifest.organizer:
        raise TrustError(
            f"the checkpoint is of a run whose organizer has key {manifest.organizer[:16]}...; the one here is "
            f"{organizer.public_hex[:16]}...: name the right one with --organizer-key"
        )
    identity = Identity.generate()
    part = _Part(
        signed=checkpoint.signed,
        manifest=manifest,
        samples=take_up(manifest).samples(),
        identity=identity,
        delegation=delegate(organizer, manifest.run_id, identity.public_hex),
        organizer=organizer,
    )
    standby = manifest.settings.pipeline.standby
    with CoordinatorState.claim(manifest.run_id, identity) if standby else nullcontext() as state:
        async with _network_of_the_run(node, identity, initial_peers, checkpoint.met) as (transport, directory):
            return await part.take(node, transport, directory, state, lead=True, origin=checkpoint)


@asynccontextmanager
async def _network_of_the_run(
    node: Node, identity: Identity, initial_peers: Sequence[str], met: Sequence[str]
) -> AsyncIterator[tuple[P2PTransport, DHTDirectory]]:
    """A node among those who are named, or who were met when the checkpoint was taken and are still there; on its own
    if nobody is."""
    async with AsyncExitStack() as stack:
        try:
            made = await stack.enter_async_context(node.network(identity, initial_peers or met))
        except (UnreachableError, UsageError):
            if initial_peers:
                raise
            made = await stack.enter_async_context(node.network(identity, ()))
        yield made


async def stand_by(
    run_id: str, *, organizer: Identity | None, initial_peers: Sequence[str], node: Node
) -> dict[str, Any] | None:
    """Follows whoever leads a run, leads it when nobody does, and so on to its end: the report if it led then.

    `organizer` may be None where this coordinator has been before. Raises as `coordinate` does, and `TrustError` if the
    organizer's key is not the run's.
    """
    with CoordinatorState.claim(run_id) as state:
        if state.over:
            node.emit(Over())
            return None
        identity = state.identity
        known = dict.fromkeys((*initial_peers, *state.met()))
        others = [address for address in known if peer_in(address) != identity.peer_id]
        async with node.network(identity, others) as (transport, directory):
            signed = state.manifest() or await ask_for_manifest(transport, directory, run_id)
            manifest = parse_manifest(signed.canonical)
            if not manifest.settings.pipeline.standby:
                raise ManifestError(f"run {run_id[:12]} has no standbys: its manifest lacks pipeline.standby = true")
            delegation = _delegation(state, manifest, organizer)
            inviter = organizer if organizer is not None and organizer.public_hex == manifest.organizer else None
            part = _Part(signed, manifest, take_up(manifest).samples(), identity, delegation, inviter)
            return await part.take(node, transport, directory, state, lead=False)


def _delegation(state: CoordinatorState, manifest: Manifest, organizer: Identity | None) -> bytes:
    """The organizer's word that this coordinator may lead: the one that was kept, else a new one."""
    kept = state.delegation()
    if kept is not None:
        check_delegation(manifest, Delegation(manifest.run_id, state.identity.public_hex, kept))
        return kept
    if organizer is None or organizer.public_hex != manifest.organizer:
        found = "there is none here" if organizer is None else f"the one here is {organizer.public_hex[:16]}..."
        raise TrustError(
            f"a standby needs the key of the run's organizer ({manifest.organizer[:16]}...), and {found}: "
            "copy it to this machine, or name its file with --organizer-key"
        )
    return delegate(organizer, manifest.run_id, state.identity.public_hex)


@dataclass(frozen=True, slots=True)
class _Part:
    """One coordinator's part in a run: all that it needs to lead it. `organizer`: who invites to it, where the key is
    at hand."""

    signed: SignedManifest
    manifest: Manifest
    samples: Samples
    identity: Identity
    delegation: bytes
    organizer: Identity | None

    async def take(
        self,
        node: Node,
        transport: P2PTransport,
        directory: DHTDirectory,
        state: CoordinatorState | None,
        *,
        lead: bool,
        origin: Checkpoint | None = None,
    ) -> dict[str, Any] | None:
        """To the end of the run: the report; if another led it then, as far as it has told. `origin`: the checkpoint
        that it begins with."""
        chronicle = open_chronicle(self.manifest.run_id, self.identity.public_hex, node.emit)
        try:
            return await self._take(node, chronicle, transport, directory, state, lead, origin)
        finally:
            chronicle.close()

    async def _take(
        self,
        node: Node,
        chronicle: Chronicle,
        transport: P2PTransport,
        directory: DHTDirectory,
        state: CoordinatorState | None,
        lead: bool,
        origin: Checkpoint | None,
    ) -> dict[str, Any] | None:
        node = replace(node, emit=chronicle.emit)
        succession = Succession(
            manifest=self.manifest,
            signature=self.signed.signature,
            identity=self.identity,
            delegation=self.delegation,
            transport=transport,
            directory=directory,
            arithmetic=RealArithmetic(self.manifest),
            samples=self.samples,
            emit=node.emit,
            give_up=node.give_up,
            checkpoints=None if node.keeping is None else node.keeping.folder(self.manifest, self.identity),
            origin=origin,
            banned=lambda: {peer.peer: peer.banned for peer in chronicle.state.peers.values() if peer.banned},
        )
        if node.export is not None:
            succession.keep = node.export.keep
        if state is not None:
            state.keep_manifest(self.signed)
            state.keep_delegation(self.delegation)
            succession.highest, succession.remember = state.term(), state.keep_term
        helm = RunHelm(self.manifest, succession, chronicle, transport, directory, node.exports)
        async with shown(chronicle, node.places, helm) as shows:
            run = LocalRun(
                self.manifest.run_id,
                self.manifest.settings.model.name,
                transport.addresses,
                os.getpid(),
                shows.api,
                str(node.places.tls[0].absolute()) if node.places.tls else "",
                self._invite(transport.addresses),
            )
            if node.invite is not None and run.invite:
                write_invite(node.invite, run.invite)
            with advertised(run):
                node.emit(self._listening(run, shows))
                background = [
                    asyncio.create_task(self._meet(succession, directory, state)),
                    asyncio.create_task(self._list(node, succession, transport, directory)),
                ]
                try:
                    report = await succession.run(lead=lead)
                except StoppedError as error:
                    if succession.trainer is not None:
                        node.emit(Ended(str(error), succession.trainer.report()))
                    raise
                finally:
                    for task in background:
                        task.cancel()
            if state is not None:
                state.over = True
            if report is None:
                node.emit(Over())
                return succession.known_report()
            if node.export is not None:
                await asyncio.to_thread(node.export.finish, self.manifest)
                if not node.export.problem:
                    node.emit(await asyncio.to_thread(kept_of, node.export, self.manifest))
            node.emit(Ended("", report))
            if node.export is not None:
                node.emit(Exported(str(node.export.folder), node.export.problem))
        return report

    def _listening(self, run: LocalRun, shows: Shown) -> Listening:
        settings, model = self.manifest.settings, self._model_elsewhere()
        where = f"--run {run.run_id} --initial-peers {' '.join(run.addresses)}"
        return Listening(
            run_id=run.run_id,
            model=run.model,
            addresses=run.addresses,
            pid=run.pid,
            stages=self.manifest.stages,
            steps=settings.train.steps,
            microbatches=self.manifest.microbatches,
            join=f"swarm-peer join {f'--model {model} ' if model else ''}{where}",
            stand_by=f"swarm-coordinator start --standby {where}" if settings.pipeline.standby else "",
            dashboard=shows.dashboard,
            api=shows.api,
            invite=run.invite,
        )

    def _model_elsewhere(self) -> str:
        """A folder here is none elsewhere: then peers give the weights to each other."""
        name = self.manifest.settings.model.name
        return "" if Path(name).is_dir() else name

    def _invite(self, addresses: Sequence[str]) -> str:
        """Empty without the organizer's key, or an address that anybody could dial."""
        if self.organizer is None or not any(is_address(address) for address in addresses):
            return ""
        return make_invite(self.organizer, self.manifest.run_id, self._model_elsewhere(), addresses)

    async def _list(self, node: Node, succession: Succession, transport: P2PTransport, directory: DHTDirectory) -> None:
        """Has the run stand in the index while this coordinator leads it."""

        def term() -> int | None:
            trainer = succession.trainer
            return None if trainer is None or trainer.over else trainer.term.number

        if node.listed:
            await keep_listed(self.manifest, transport, directory, term)

    async def _meet(self, succession: Succession, directory: DHTDirectory, state: CoordinatorState | None) -> None:
        """Keeps the addresses of those who are in the run: this coordinator may come again when its own are gone."""
        for beat in count():
            if state is None:
                return
            for stage in (TRAINER_STAGE, *range(self.manifest.stages)) if beat % LOOKS == 0 else ():
                with suppress(UnreachableError):
                    await directory.read(self.manifest.run_id, stage)
            members = [] if succession.trainer is None else succession.trainer.roster.live()
            state.keep_met({*directory.met, *(address for member in members for address in member.addresses)})
            await asyncio.sleep(MEETING_SECONDS)
