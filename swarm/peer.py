"""A peer of a run, whole: it finds the trainer, takes its stage, publishes itself and serves until the run ends.

Owns the tasks of everything below it: incoming streams, visits, announcements, the control stream. The seams are
passed in, so the same class is a volunteer's process (libp2p, DHT, torch) and a simulated peer (memory, virtual time,
integers).
"""

import asyncio
import hashlib
import random
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import (
    OrganizerError,
    ProtocolError,
    RefusedError,
    TrustError,
    UnreachableError,
    WireError,
)
from ..protos import swarm_pb2 as pb
from .authority import Authority
from .backend import Arithmetic, StageBackend
from .catching_up import fetch_snapshot
from .compute import BACKGROUND, Device
from .conditions import heed_cancellation, in_own_task, innermost
from .directory import SEQUENCE_BITS, TRAINER_STAGE, Directory, Record
from .exchange import HEARTBEAT_SECONDS, IDLE_STREAMS, Channel, Meter, Pool
from .hanging import watch_device
from .heartbeats import Heartbeats
from .host import Moment, Observe, StageHost
from .kept import SpillFile
from .link import refusal_of_payload, serve_nothing
from .manifest import PROTOCOL_VERSION, Manifest
from .membership import Membership, say_hello
from .messages import Body
from .milestones import Milestones, in_words
from .model.file_serving import serve_file
from .model.files import Files
from .neighbours import POLICIES, VIEW, Neighbours
from .reduction import Reducer
from .serving import Incoming, serve_exchanges
from .sizes import state_bytes
from .survey import Survey
from .transport import Stream, Transport

ANNOUNCE_SECONDS = 2.0
REJOIN_PAUSE_SECONDS = 0.2
MAX_REJOIN_PAUSE_SECONDS = 1.0
WRONG_STATES = 3
"""A peer whose state was found wrong this often in a run has a machine that computes wrongly, and leaves."""
RECORD_SECONDS = 15.0
NO_PLACE = frozenset({"WRONG_RUN", "WRONG_PROTOCOL", "UNTRUSTED", "WRONG_STAGE", "REPLACED"})
"""Refusals of a Hello after which asking again is no use."""
FIND_TRAINER_SECONDS = 30.0
ALONE_SECONDS = 30
"""How long a peer that wants to leave looks for a trainer to say so to."""
FIRST_PAYLOAD_LIMIT = 1 << 20
"""Payload accepted before the manifest, which sets the limit, is known."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run's manifest is turned into on this machine: the numbers of one stage, and the trainer's scalars."""

    backend: Callable[[Manifest, int], StageBackend]
    arithmetic: Callable[[Manifest], Arithmetic]
    files: Files | None = None
    """The checkpoint's files on this machine, for peers that have no other source."""


@dataclass
class Peer:
    """One peer process. `tell` receives a line for people whenever something worth knowing happens; without `spill`
    nothing is kept on disk."""

    transport: Transport
    directory: Directory
    device: Device
    parts: Parts
    spill: SpillFile | None = None
    observe: Observe = field(default=lambda moment: None)
    tell: Callable[[str], None] = field(default=lambda line: None)
    besides: Callable[[], Collection[int]] = field(default=tuple)
    """The stages that this machine hosts as other members."""

    placed: Callable[[int], None] = field(default=lambda stage: None)
    """Told the stage when it is loaded."""

    about: pb.About | None = None
    """What it says of itself, for people."""

    moves: Callable[[int], bool] = field(default=lambda stage: False)
    """Asked by the trainer whether this machine will host another stage in place of this peer's; it then starts another
    peer, which `replaces` this one, and has this one leave when that one serves."""

    serves: Callable[[], None] = field(default=lambda: None)
    """Called, more than once, when what this peer does is counted."""

    replaces: int = 0
    fixed: bool = False
    """Whether its owner wants it at the stage that it asks for."""
    organizer: str | None = None
    """The public key (hex) of who has invited it: it takes part in no other's run."""

    surveys: bool = False
    """Whether it measures its links while it serves (`survey.py`)."""

    ended: Callable[[], None] = field(default=lambda: None)
    """Called when it has ended, while `host` can still be asked what it has done."""

    milestones: Milestones = field(default_factory=Milestones)
    """On its way to its first credited microbatch, by the loop's clock."""

    def __post_init__(self) -> None:
        self.meter = Meter()
        self.with_trainers = Meter()
        """Of its control streams, which it does not report as its own."""

        self.pool = Pool(self.transport, self.meter)
        self.host: StageHost | None = None
        self._heartbeats = Heartbeats(self._beat, self._heartbeat_seconds)
        self.leaving = ""
        """Why it leaves, "" while it stays."""

        self._welcome = False
        """Whether the trainer that was asked last has let it in."""

        self._membership: Membership | None = None
        self._wants_out = asyncio.Event()
        self._reducer: Reducer | None = None
        self._moving_to = -1
        """The stage that its machine is about to host in its place, as it announces."""

        self._survey: Survey
        self._tasks: asyncio.TaskGroup

    async def run(self, run_id: str, stage: int | None = None) -> str:
        """Takes part in a run to its end; the trainer's last word.

        Raises `RefusedError` (no place in the run), `TrustError`, `OrganizerError` (at once), `ModelError`,
        `UnreachableError` (no trainer found, or its stream ended).
        """
        self._reach("start")
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self.transport.serve(self._serve)
                self._tasks.create_task(self._see_to_leaving())
                detail = await self._take_part(run_id, stage)
                raise _Finished(detail)
        except* _Finished as finished:
            last_word = str(finished.exceptions[0])
        except* Exception as problems:
            raise innermost(problems) from None
        finally:
            self.ended()
            self.host = self._reducer = None
            self.pool.close()
        return last_word

    def leave(self, why: str) -> None:
        """Has it leave the run politely: `run` returns when the trainer lets it go, at once if it has no part yet."""
        self.leaving = self.leaving or why or "its owner wants it back"
        self._wants_out.set()

    @property
    def moved(self) -> int:
        """Bytes sent and received, all together."""
        return sum(meter.sent + meter.received for meter in (self.meter, self.with_trainers))

    def _moves(self, target: int) -> bool:
        moves = self.moves(target)
        self._moving_to = target if moves else -1
        return moves

    def stay(self) -> None:
        """Tells the trainer that this machine does not move as it was asked to."""
        self._moving_to = -1
        if self._membership is not None and self.host is not None:
            self._tasks.create_task(self._membership.decline())

    def links(self) -> Sequence[pb.LinkReport]:
        """The links that were measured last."""
        return () if self.host is None else self._survey.reports()

    async def _see_to_leaving(self) -> None:
        """Tells the trainer; one that comes later is told by the new membership itself."""
        await self._wants_out.wait()
        if self.host is None:
            raise _Finished(f"left the run before it had a part in it: {self.leaving}")
        if self._membership is not None:
            with suppress(UnreachableError):
                await self._membership.leave(self.leaving)
        alone = 0
        while alone < ALONE_SECONDS:
            await asyncio.sleep(1.0)
            alone = 0 if self._membership is not None else alone + 1
        raise _Finished(f"left the run, with nobody to say so to: {self.leaving}")

    async def _take_part(self, run_id: str, stage: int | None) -> str:
        """Has a place in the run, and takes a new one whenever the trainer is lost or sends this peer away."""
        failures = wrong = 0
        first_try = asyncio.get_running_loop().time()
        while True:
            heed_cancellation()
            began = asyncio.get_running_loop().time()
            trainer = await self._find_trainer(run_id, failures)
            self._reach("directory")
            self._welcome = False
            try:
                return await self._serve_under(trainer, run_id, stage)
            except OrganizerError:
                raise
            except (UnreachableError, RefusedError, WireError, TrustError) as error:
                if isinstance(error, RefusedError) and error.reason == "CLOSED":
                    return error.detail
                if self.host is None and (isinstance(error, RefusedError) or began > first_try + FIND_TRAINER_SECONDS):
                    raise
                if self.host is not None and isinstance(error, RefusedError):
                    if error.reason in NO_PLACE:
                        raise
                    wrong += error.reason == "WRONG_STATE"
                    if wrong >= WRONG_STATES:
                        raise
                    if error.reason in ("WRONG_STATE", "TOO_OLD"):
                        self.host.drop_state()
                self.tell(f"not under trainer {trainer.peer}: {error}")
            # A trainer that cannot be reached may take long to say nothing.
            served = self._welcome and asyncio.get_running_loop().time() - began > MAX_REJOIN_PAUSE_SECONDS
            failures = 0 if served else failures + 1
            await asyncio.sleep(min(REJOIN_PAUSE_SECONDS * 2 ** max(0, failures - 1), MAX_REJOIN_PAUSE_SECONDS))

    async def _serve_under(self, trainer: Record, run_id: str, stage: int | None) -> str:
        channel = Channel(await self.transport.open(trainer.peer, trainer.addresses), self.with_trainers)
        host = self.host
        try:
            if host is None:
                manifest, welcome, lineage = await say_hello(
                    channel,
                    run_id,
                    stage,
                    self.transport.addresses,
                    besides=self.besides(),
                    about=self.about,
                    replaces=self.replaces,
                    fixed=self.fixed,
                    organizer=self.organizer,
                )
                self._reach("place")
                host = await self._build_host(manifest, trainer.peer, welcome)
                self._reach("weights")
            else:
                manifest, welcome, lineage = await say_hello(
                    channel,
                    run_id,
                    host.stage,
                    self.transport.addresses,
                    host.authority.highest,
                    about=self.about,
                    returning=host.versions.latest >= 0,
                    lineage=host.lineage,
                    replaces=self.replaces,
                    fixed=self.fixed,
                )
                host.authority.admit(welcome.term, trainer.peer)
                if welcome.stage != host.stage:
                    raise ProtocolError(f"{trainer.peer} moves this peer to stage {welcome.stage}")
                host.rebadge(welcome.member)
            self._welcome = True
            if lineage.number != host.lineage.number:
                host.enter(lineage)
                if self._reducer is not None:
                    self._reducer.clear()
            self.tell(f"hosting stage {host.stage} of {manifest.stages} as member {host.member}")
            await self._catch_up(host, welcome, channel)
            assert self._reducer is not None
            self._reach("state")
            self.tell("ready")
            self._membership = Membership(
                channel,
                host.authority,
                host,
                self._reducer,
                self.meter,
                self._survey.reports,
                self.leaving,
                self._moves,
                lambda: self.serves(),
            )
            return await in_own_task(self._membership.run())
        finally:
            self._membership = None
            channel.close()

    async def _catch_up(self, host: StageHost, welcome: pb.Welcome, channel: Channel) -> None:
        """Sees to it that this peer holds a version from which it can be brought up to date by kept reductions."""
        if welcome.began:
            host.authority.follow(welcome.closed)
        host.close(welcome.closed)
        assert self._reducer is not None
        self._reducer.close(welcome.closed)
        oldest = max(0, welcome.closed - host.manifest.settings.pipeline.staleness)
        if host.versions.latest >= oldest:
            return
        if oldest == 0:
            version, state = 0, await host.device.run(BACKGROUND, host.backend.initial_state)
        else:
            host.drop_state()
            if not welcome.donors:
                await self._wait_for_donors(channel)
            limit = host.manifest.settings.limits.payload_bytes
            most = state_bytes(host.manifest, host.stage)
            snapshot = await fetch_snapshot(
                self.pool,
                welcome.donors,
                host.authority.run_id,
                host.stage,
                limit,
                epoch=host.authority.epoch,
                max_bytes=most,
            )
            version, data = snapshot.version, snapshot.data
            state = await host.device.run(BACKGROUND, lambda: host.backend.load(data))
        digest = await host.device.run(BACKGROUND, lambda: host.backend.digest(state))
        host.versions.put(version, state, digest)

    async def _wait_for_donors(self, channel: Channel) -> None:
        """Nobody has the state of this stage: the trainer waits for one who has, or goes back to a checkpoint. Either
        way it ends this membership. Raises `RefusedError`, `UnreachableError`."""
        self.tell("nobody has the state of this stage: the run waits for one who has, or goes back to a checkpoint")
        await channel.send(pb.Loaded())
        assert self.host is not None
        silence = self.host.manifest.settings.pipeline.silence
        while True:
            body = await channel.receive_while_heard(silence)
            if isinstance(body, pb.Refused):
                raise RefusedError(pb.Reason.Name(body.reason), body.detail, "the trainer")
            if isinstance(body, pb.Finish):
                raise RefusedError("CLOSED", body.detail, "the trainer")
            if not isinstance(body, pb.Heartbeat | pb.Closed):
                raise ProtocolError(f"the trainer sent {body.DESCRIPTOR.name} to one without a state")

    async def _find_trainer(self, run_id: str, failures: int) -> Record:
        """The trainer of the highest term that is announced; after each failure the next one."""
        try:
            async with asyncio.timeout(FIND_TRAINER_SECONDS if self.host is None else None):
                while True:
                    try:
                        found = await self.directory.read(run_id, TRAINER_STAGE)
                    except UnreachableError:
                        found = ()
                    if found:
                        ranked = sorted(found, key=lambda record: record.sequence, reverse=True)
                        return ranked[failures % len(ranked)]
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise UnreachableError(
                f"no trainer of run {run_id[:12]} is in the directory after {FIND_TRAINER_SECONDS:.0f} s; "
                "check the run id and the initial peers"
            ) from error

    async def _build_host(self, manifest: Manifest, trainer: str, welcome: pb.Welcome) -> StageHost:
        stage = welcome.stage
        authority = Authority(manifest, self.transport.peer_id, asyncio.get_running_loop().time)
        authority.admit(welcome.term, trainer)
        self.pool.silence = manifest.settings.pipeline.silence
        self.pool.idle = max(IDLE_STREAMS, manifest.settings.pipeline.slots)
        backend = await self.device.run(BACKGROUND, lambda: self.parts.backend(manifest, stage))
        run_id = manifest.run_id
        seed = int.from_bytes(hashlib.sha256(f"{manifest.settings.seed}/{welcome.member}".encode()).digest()[:8])
        policy = POLICIES[manifest.settings.pipeline.routing]
        draw = random.Random(seed)
        neighbours = Neighbours(lambda at: self.directory.read(run_id, at), self.pool, draw, policy, VIEW)
        host = StageHost(
            manifest=manifest,
            authority=authority,
            stage=stage,
            member=welcome.member,
            peer_id=self.transport.peer_id,
            backend=backend,
            device=self.device,
            pool=self.pool,
            neighbours=neighbours,
            spawn=self._spawn,
            observe=self._saw,
            spill=self.spill,
        )
        self._reducer = Reducer(host, self.parts.arithmetic(manifest))
        self.host = host
        self._survey = Survey(run_id, stage, manifest.stages, self.pool, neighbours)
        if self.surveys:
            self._tasks.create_task(self._survey.run())
        self.placed(stage)
        self._tasks.create_task(self._announce(manifest, host))
        self._tasks.create_task(self._look_ahead(manifest, host))
        self._tasks.create_task(watch_device(host))
        return host

    def _spawn(self, work: Any) -> Any:
        return self._tasks.create_task(work)

    def _reach(self, phase: str) -> None:
        self.milestones.reach(phase, asyncio.get_running_loop().time())

    def _saw(self, moment: Moment) -> None:
        if self.milestones.see(moment.name, asyncio.get_running_loop().time()):
            self.tell(in_words(self.milestones.took))
        self.observe(moment)

    async def _announce(self, manifest: Manifest, host: StageHost) -> None:
        """Publishes this peer's record again and again; one that fails is tried again with the next."""
        published = 0
        while True:
            published += 1
            sequence = host.member << SEQUENCE_BITS | published
            record = Record(
                run=manifest.run_id,
                stage=host.stage,
                peer=self.transport.peer_id,
                addresses=self.transport.addresses,
                sequence=sequence,
                protocol=PROTOCOL_VERSION,
                throughput=host.workload.pace.throughput,
                queue=host.visits.open,
                versions=(host.versions.oldest, host.versions.latest),
                moving_to=self._moving_to,
            )
            try:
                if host.versions.latest >= 0 and host.until is None:
                    await self.directory.publish(record, RECORD_SECONDS)
            except UnreachableError as error:
                self.tell(f"cannot announce myself: {error}")
            if host.versions.latest < 0:
                await host.versions.wait_for(0, ANNOUNCE_SECONDS)  # others can call a newcomer once it has a state
            else:
                await asyncio.sleep(ANNOUNCE_SECONDS)

    async def _look_ahead(self, manifest: Manifest, host: StageHost) -> None:
        """Keeps the snapshot of the next stage's replicas fresh."""
        while host.stage + 1 < manifest.stages:
            await host.neighbours.refresh(host.stage + 1)
            await asyncio.sleep(ANNOUNCE_SECONDS)

    # ---- incoming streams

    def _beat(self) -> pb.Heartbeat:
        return pb.Heartbeat() if self.host is None else pb.Heartbeat(load=self.host.load())

    def _heartbeat_seconds(self) -> float:
        return HEARTBEAT_SECONDS if self.host is None else self.host.manifest.settings.pipeline.heartbeat

    async def _serve(self, stream: Stream) -> None:
        await serve_exchanges(stream, self.meter, self._payload_limit, self._dispatch, at_once=self._at_once)

    def _at_once(self, body: Body, sender: str) -> Body | None:
        if isinstance(body, pb.Fetch):
            return refusal_of_payload(body)
        return self.host.full(body, sender) if self.host is not None and isinstance(body, pb.Run) else None

    def _payload_limit(self) -> int:
        return FIRST_PAYLOAD_LIMIT if self.host is None else self.host.manifest.settings.limits.payload_bytes

    async def _dispatch(self, incoming: Incoming, body: Body, payload: bytes) -> None:
        if isinstance(body, pb.Watch):
            await self._heartbeats.serve(incoming)
        elif self.host is None or self._reducer is None:
            await incoming.channel.send(pb.Refused(reason=pb.NOT_READY, detail="this peer has no stage yet"))
        elif isinstance(body, pb.Run):
            await self.host.serve_run(incoming, body, payload)
        elif isinstance(body, pb.Fetch):
            if body.kind == pb.Fetch.NOTHING:
                await serve_nothing(incoming, body, self.host.authority.run_id)
            elif body.kind == pb.Fetch.FILE:
                await serve_file(incoming, body, self.parts.files, self.host.authority.run_id)
            elif body.kind == pb.Fetch.STATE:
                await self.host.snapshots.serve(incoming, body, self.host.versions)
            else:
                serving = self._reducer if body.kind == pb.Fetch.REDUCTION else self.host
                await serving.serve_fetch(incoming, body)
        elif isinstance(body, pb.Part):
            await self._reducer.serve_part(incoming, body, payload)
        else:
            detail = f"a peer serves Run, Fetch and Part, not {body.DESCRIPTOR.name}"
            await incoming.channel.send(pb.Refused(reason=pb.MALFORMED, detail=detail))


class _Finished(Exception):  # noqa: N818
    """Carries the trainer's last word out of the task group, which then cancels what still runs."""
