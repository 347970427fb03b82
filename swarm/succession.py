"""Who leads: one coordinator's part in a run, as its trainer, as a standby that follows one, and from one to the other.

A standby keeps an exchange with the trainer (Follow), learns the closed steps from it and hears a heartbeat a second.
When the trainer has been silent for the limit and nobody of a higher term is there, it leads in the next term. A
trainer that is shown a higher term has nothing more to say, and follows.

Errors: what `Trainer.run` raises, but `FencedError` where a standby is configured.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import (
    FencedError,
    GoingBackError,
    ManifestError,
    ProtocolError,
    RefusedError,
    SilentError,
    TrustError,
    UnreachableError,
    WireError,
)
from ..protos import swarm_pb2 as pb
from . import events
from .authority import from_term, to_term
from .backend import Arithmetic
from .checkpoint import Checkpoint, Checkpoints
from .compute import Device, ThreadDevice
from .conditions import heed_cancellation, in_own_task
from .directory import TRAINER_STAGE, Directory, Record
from .driving import Samples
from .epochs import Lineage, begin_epoch, read_lineage
from .exchange import Channel, Meter
from .keys import Identity, ProvenTerms, SignedTerm, check_term, public_key_of, sign_term
from .manifest import Manifest
from .trainer import Trainer
from .transport import Transport

PAUSE_SECONDS = 0.2
FIRST_TERM = 1


class _Over(Exception):  # noqa: N818
    """The trainer says that the run is over."""


@dataclass
class Succession:
    """One coordinator of a run. `delegation`: the organizer's word that this identity may lead."""

    manifest: Manifest
    signature: bytes
    identity: Identity
    delegation: bytes
    transport: Transport
    directory: Directory
    arithmetic: Arithmetic
    samples: Samples
    emit: Callable[[events.Event], None] = field(default=lambda event: None)
    give_up: float | None = None
    keep: Callable[[Trainer], Awaitable[None]] | None = None
    banned: Callable[[], Mapping[str, str]] = field(default=dict)
    """Whom the organizer has banned, as far as this coordinator knows when it begins to lead."""

    highest: int = 0
    """The highest term that this identity has known before: a term is led by one process only."""

    checkpoints: Checkpoints | None = None
    origin: Checkpoint | None = None
    """The checkpoint that the first term of this coordinator goes back to."""

    device: Device = field(default_factory=ThreadDevice)
    """Where checkpoints are read."""

    remember: Callable[[int], None] = field(default=lambda term: None)
    """Told of every term before this coordinator leads in it; whoever starts it again passes the highest."""

    def __post_init__(self) -> None:
        self.trainer: Trainer | None = None
        self.follows = False
        """Whether it hears a trainer, and has been told what is past."""

        self._followed = 0
        """The term of the trainer that it has said to follow; 0 while it leads."""

        self.lineage = Lineage() if self.origin is None else self.origin.lineage
        if self.origin is not None:
            self.highest = max(self.highest, self.origin.term.number)
        self._proven = ProvenTerms(self.manifest)
        self._past: dict[int, pb.Past] = {}
        self._back_to: Checkpoint | None = self.origin
        self._last_crew: frozenset[int] = frozenset()
        self._begins = self.origin is not None
        """Whether the next term begins an epoch."""

    async def run(self, *, lead: bool) -> dict[str, Any] | None:
        """To the end of the run: the report if this coordinator led it then, else None. With `lead` it begins as the
        trainer."""
        if not lead:
            self.highest = max(self.highest, FIRST_TERM)  # somebody else's, though nothing may ever be heard of it
            try:
                await self._follow()
            except _Over:
                return None
        while True:
            try:
                return await self._lead()
            except GoingBackError:
                heed_cancellation()
                await self._go_back()
                continue
            except FencedError:
                if self._was_resuming and not self.trainer_began:
                    self._try_again()
                    continue
                if not self.manifest.settings.pipeline.standby:
                    raise
                heed_cancellation()
                assert self.trainer is not None
                self._take_past(of_closed=True)
                if self.trainer.fenced_by is not None:
                    self.highest = max(self.highest, self.trainer.fenced_by.number)
            try:
                await self._follow()
            except _Over:
                return None

    @property
    def _was_resuming(self) -> bool:
        """Whether the last term was to begin at the checkpoint that this coordinator was started with."""
        return self.origin is not None and self.trainer is not None and self.trainer.origin is self.origin

    @property
    def trainer_began(self) -> bool:
        return self.trainer is not None and self.trainer.began

    def _try_again(self) -> None:
        """Peers that have been in the run know a higher term than the checkpoint does: it is resumed beyond that."""
        heed_cancellation()
        assert self.trainer is not None
        if self.trainer.fenced_by is not None:
            self.highest = max(self.highest, self.trainer.fenced_by.number)
        self._begins, self._back_to = True, self.origin

    def _take_past(self, *, of_closed: bool) -> None:
        """Takes over what the trainer that was knows of all steps that are committed, or `of_closed` ones: those that
        are not may be closed by somebody else, and its ledger may have been in the middle of doing them anew."""
        assert self.trainer is not None
        self.lineage = self.trainer.beginning.lineage
        closed = self.trainer.closed_marker()
        pasts = (past for past in self.trainer.past(0) if not of_closed or past.step < closed)
        self._past.update((past.step, past) for past in pasts)

    async def _go_back(self) -> None:
        """The next term begins at the last checkpoint, or anew if there is none."""
        self._take_past(of_closed=False)
        assert self.trainer is not None
        self._begins, self._last_crew = True, self.trainer.crew.whole
        self._back_to = None if self.checkpoints is None else await self.checkpoints.latest(self.lineage)

    async def _lead(self) -> dict[str, Any]:
        number = self.highest + 1
        self.remember(number)
        term = sign_term(self.identity, self.manifest.run_id, number, self.delegation)
        self.highest, self._followed = number, 0
        begun = self._begin(term) if self._begins else None
        self.trainer = self._make_trainer(term)
        self._begins, self._back_to, self._last_crew = False, None, frozenset()
        self.emit(events.Leads(number))
        if begun is not None:
            self.emit(begun)
        try:
            report: dict[str, Any] = await in_own_task(self.trainer.run())
        finally:
            self.trainer.beginning.release()
        return report

    def _begin(self, term: SignedTerm) -> events.WentBack:
        """This term begins an epoch."""
        first = 0
        if self._back_to is not None:
            first = self._back_to.closed
            for past in self._back_to.past:
                self._past.setdefault(past.step, past)
        self.lineage = self.lineage.followed_by(begin_epoch(self.identity, self.manifest.run_id, term, first))
        undone = [step for step in self._past if step >= first]
        for step in undone:
            del self._past[step]
        return events.WentBack(first, len(undone), term.number)

    def known_report(self) -> dict[str, Any] | None:
        """After a run that another has led to its end: the report of what it has told, if it has told everything."""
        trainer = self._make_trainer(sign_term(self.identity, self.manifest.run_id, self.highest, self.delegation))
        return trainer.recall()

    def _make_trainer(self, term: SignedTerm) -> Trainer:
        return Trainer(
            manifest=self.manifest,
            signature=self.signature,
            term=from_term(term),
            transport=self.transport,
            directory=self.directory,
            arithmetic=self.arithmetic,
            samples=self.samples,
            emit=self.emit,
            give_up=self.give_up,
            keep=self.keep,
            known=[self._past[step] for step in sorted(self._past)],
            banned=self.banned(),
            epochs=self.lineage,
            origin=self._back_to,
            resuming=self._begins,
            last_crew=self._last_crew,
            checkpoints=self.checkpoints,
            device=self.device,
        )

    async def _follow(self) -> None:
        """Returns when there is nobody to follow any more. Raises `_Over`."""
        silence = self.manifest.settings.pipeline.silence
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while loop.time() < heard + silence:
            for record in await self._trainers():
                try:
                    if await self._follow_one(record):
                        heard = loop.time()
                except (UnreachableError, RefusedError, WireError, TrustError, ManifestError, TimeoutError):
                    continue
            await asyncio.sleep(PAUSE_SECONDS)

    async def _trainers(self) -> list[Record]:
        """Those who say that they lead, the highest term first."""
        try:
            found = await self.directory.read(self.manifest.run_id, TRAINER_STAGE)
        except UnreachableError:
            found = ()
        others = [record for record in found if record.peer != self.transport.peer_id]
        return sorted(others, key=lambda record: record.sequence, reverse=True)

    async def _follow_one(self, record: Record) -> bool:
        """Follows one trainer for as long as it is heard; says whether it was. Raises what the exchange raises."""
        silence = self.manifest.settings.pipeline.silence
        heard = False
        async with asyncio.timeout(silence) as beginning:
            channel = Channel(await self.transport.open(record.peer, record.addresses), Meter())
            try:
                follow = pb.Follow(run=self.manifest.run_id, step=max(self._past, default=0))
                if self.trainer is not None:
                    follow.led.CopyFrom(self.trainer.term)
                await channel.send(follow)
                for step in sorted(self._past) if self.trainer is not None else ():
                    await channel.send(self._past[step])
                beginning.reschedule(None)
                while True:
                    body = await channel.receive_while_heard(silence)
                    if isinstance(body, pb.Welcome):
                        self._check(channel, body)
                    elif isinstance(body, pb.Past):
                        if self.lineage.holds(body.epoch, body.step):
                            self._past[body.step] = body
                    elif isinstance(body, pb.Finish):
                        raise _Over
                    elif isinstance(body, pb.Heartbeat):
                        self.follows = True
                    else:
                        raise ProtocolError(f"{record.peer} answered Follow with {body.DESCRIPTOR.name}")
                    heard = True
            except SilentError:  # it has had its time
                raise
            except UnreachableError:
                return heard
            finally:
                self.follows = False
                channel.close()
        return heard

    def _check(self, channel: Channel, welcome: pb.Welcome) -> None:
        """Raises `TrustError` unless it is a trainer of this run, of a term that is not behind."""
        term = to_term(welcome.term)
        check_term(self.manifest, term)
        if term.trainer != public_key_of(channel.peer) or welcome.manifest != self.manifest.canonical():
            raise TrustError(f"{channel.peer} does not lead run {self.manifest.run_id[:12]}")
        if term.number < self.highest:
            raise TrustError(f"{channel.peer} leads in term {term.number}; term {self.highest} has been")
        if term.number != self._followed:
            self._followed = term.number
            self.emit(events.Follows(channel.peer, term.number))
        self.highest = max(self.highest, term.number)
        self.lineage = read_lineage(welcome.epochs, self._proven, self.manifest.run_id, channel.peer)
        self._past = {step: past for step, past in self._past.items() if self.lineage.holds(past.epoch, past.step)}
