"""A peer's membership in a run: its control stream to the trainer, from Hello to Finish.

Owns the order of things on that stream: what it holds is told first (Held, Ready), then come Reduce (a new attempt
cancels the one before it), Commit (applied one after the other, each into a new version), Closed, Heartbeat. Talks to
the stage host and its reducer. It ends when the trainer says Finish (returns the reason), with `UnreachableError` when
the stream ends or nothing comes for the silence limit, with `RefusedError` when the trainer sends the peer away
(WRONG_STATE, TOO_OLD) or another trainer leads (FENCED).
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import ProtocolError, RefusedError, SwarmError, TrustError, UnreachableError
from ..protos import swarm_pb2 as pb
from .authority import Authority, to_term
from .backend import Update
from .compute import BACKGROUND
from .conditions import innermost
from .epochs import Lineage, read_lineage
from .exchange import Channel, Meter
from .host import Moment, StageHost
from .keys import ProvenTerms, check_signed_manifest, check_term, public_key_of
from .manifest import PROTOCOL_VERSION, Manifest
from .messages import Body, check_bits, check_crew, check_indices, from_scalar, pack
from .reduction import Reducer

JOIN_SECONDS = 30.0
PULL_RETRY_SECONDS = 0.5
MAX_COMMITS_AHEAD = 64


async def say_hello(
    channel: Channel,
    run_id: str,
    wanted_stage: int | None,
    addresses: tuple[str, ...],
    followed: pb.Term | None = None,
    besides: Collection[int] = (),
    about: pb.About | None = None,
    returning: bool = False,
    lineage: Lineage | None = None,
    replaces: int = 0,
    fixed: bool = False,
    organizer: str | None = None,
) -> tuple[Manifest, pb.Welcome, Lineage]:
    """Asks the trainer for a place in the run: the checked manifest, the Welcome and the run's epochs.

    `followed`: the highest term that this peer has followed, if it has had a place in the run before; `returning`:
    whether it holds a state from then, of `lineage`. `besides`: the stages that this machine hosts as other members;
    `replaces`: the one of them that leaves when this one is ready; `fixed`: its owner wants it at this stage. `about`:
    what this peer says of itself; `organizer`: the public key (hex) that the run must be of, if that is known. Raises
    `RefusedError`, `TrustError` (a manifest or term that does not prove itself), `OrganizerError`, `ManifestError`,
    `UnreachableError`.
    """
    wanted = 0 if wanted_stage is None else wanted_stage + 1
    hello = pb.Hello(
        run=run_id,
        protocol=PROTOCOL_VERSION,
        wanted_stage=wanted,
        addresses=addresses,
        term=followed,
        returning=returning,
        besides=besides,
        about=about,
        epochs=() if lineage is None else lineage.epochs,
        replaces=replaces,
        fixed=fixed,
    )
    try:
        async with asyncio.timeout(JOIN_SECONDS):
            await channel.send(hello)
            reply, _ = await channel.receive(0)
    except TimeoutError as error:
        raise UnreachableError(f"the trainer did not answer within {JOIN_SECONDS:.0f} s") from error
    if isinstance(reply, pb.Refused):
        raise RefusedError(pb.Reason.Name(reply.reason), reply.detail, "the trainer")
    if not isinstance(reply, pb.Welcome):
        raise ProtocolError(f"the trainer answered a Hello with {reply.DESCRIPTOR.name}")
    manifest = check_signed_manifest(reply.manifest, reply.signature, run_id, organizer)
    term = to_term(reply.term)
    check_term(manifest, term)
    lineage = read_lineage(reply.epochs, ProvenTerms(manifest), run_id, channel.peer)
    if term.trainer != public_key_of(channel.peer):
        raise TrustError(f"{channel.peer} shows the term of another trainer")
    if reply.stage >= manifest.stages:
        raise ProtocolError(f"the trainer assigns stage {reply.stage} of {manifest.stages}")
    return manifest, reply, lineage


@dataclass
class Membership:
    """One member's control stream. `meter` is what this peer has sent, reported in heartbeats."""

    channel: Channel
    authority: Authority
    host: StageHost
    reducer: Reducer
    meter: Meter
    links: Callable[[], Sequence[pb.LinkReport]] = field(default=tuple)
    """The links that this peer has measured lately."""

    leaving: str = ""
    """Why this peer wants to leave."""

    moves: Callable[[int], bool] = field(default=lambda stage: False)
    """Asked whether this machine will host another stage in place of this one."""

    serves: Callable[[], None] = field(default=lambda: None)
    """Called when what this member does is counted."""

    _idling: "list[asyncio.Task[None]]" = field(default_factory=list)
    _commits: dict[int, pb.Commit] = field(default_factory=dict)
    _attempts: dict[int, "asyncio.Task[Any]"] = field(default_factory=dict)
    _sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> str:
        """Serves the run to its end; the trainer's last word. Raises `UnreachableError`, `RefusedError`."""
        latest = self.host.versions.latest
        self.host.until = None  # whether it can be spared is for this trainer to say
        try:
            async with asyncio.TaskGroup() as tasks:
                helpers = [tasks.create_task(self._apply_commits()), tasks.create_task(self._beat())]
                await self._say(self.host.held((key.step, key.term, key.attempt) for key in self.reducer.kept))
                await self._say(self._ready(latest))
                if self.leaving:
                    await self._say(pb.Leave(why=self.leaving))
                try:
                    detail = await self._listen(tasks)
                    await self._say(self._heartbeat())
                finally:
                    for task in (*helpers, *self._attempts.values(), *self._idling):
                        task.cancel()
        except* SwarmError as problems:
            raise innermost(problems) from None
        finally:
            self.authority.lost()
        return detail

    async def leave(self, why: str) -> None:
        """Asks the trainer to let this peer go: it says Finish when nothing of it is needed any more. Raises
        `UnreachableError`."""
        self.leaving = why
        await self._say(pb.Leave(why=why))

    async def decline(self) -> None:
        """Tells the trainer that this peer does not move."""
        with suppress(UnreachableError):
            await self._say(pb.Move(stage=self.host.stage))

    async def _tell_idle(self) -> None:
        """Tells the trainer when nothing is open here any more, and nothing can come."""
        host = self.host

        def is_idle() -> bool:
            return host.until is not None and host.authority.closed >= host.until and not host.visits.open

        await host.ended.wait_for(lambda: host.until is None or is_idle())
        if host.until is not None:
            await self._say(pb.Leave(why=self.leaving, idle=True))

    async def _listen(self, tasks: asyncio.TaskGroup) -> str:
        silence = self.host.manifest.settings.pipeline.silence
        while True:
            body = await self.channel.receive_while_heard(silence)
            self.authority.heard()
            if isinstance(body, pb.Finish):
                return body.detail
            if isinstance(body, pb.Refused):
                raise RefusedError(pb.Reason.Name(body.reason), body.detail, "the trainer")
            if isinstance(body, pb.Reduce | pb.Commit) and body.epoch != self.authority.epoch:
                raise ProtocolError(f"the trainer speaks of epoch {body.epoch} in epoch {self.authority.epoch}")
            if isinstance(body, pb.Reduce):
                self.serves()
                self._lead(body.term, body.closed)
                if body.indices:
                    self.host.observe(Moment("credited", self.host.stage, body.step))
                earlier = self._attempts.pop(body.step, None)
                if earlier is not None:
                    earlier.cancel()
                self._attempts[body.step] = tasks.create_task(self._reduce(body))
            elif isinstance(body, pb.Commit):
                self._lead(body.term, body.closed)
                await self._take_commit(body)
            elif isinstance(body, pb.Move):
                if body.stage >= self.host.manifest.stages or not self.moves(body.stage):
                    await self.decline()
            elif isinstance(body, pb.Drain):
                self.host.until = None if body.off else body.until
                self.host.ended.notify()
                if not body.off:
                    self._idling.append(tasks.create_task(self._tell_idle()))
            elif isinstance(body, pb.Closed):
                self._lead(body.term, body.closed)
            elif isinstance(body, pb.Heartbeat):
                check_crew(body.founders, self.channel.peer)
                self._take_credits(body.credits)
                if len(body.founders) > len(self.authority.founders):
                    self.authority.founders = tuple(body.founders)
                    await self._say(self._heartbeat())
            else:
                raise ProtocolError(f"the trainer sent {body.DESCRIPTOR.name} on the control stream")

    def _take_credits(self, told: Iterable[pb.Credits]) -> None:
        for credits in told:
            check_indices(tuple(credits.own), self.host.manifest.microbatches, self.channel.peer)
            check_bits(credits.credited, self.host.manifest.microbatches, self.channel.peer)
            self.host.gradients.credit(credits.epoch, credits.step, credits.own, credits.credited)

    def _lead(self, term: pb.Term, closed: int) -> None:
        """Checks that the message is the trainer's own, and follows its closed marker."""
        proven = self.authority.admit(term, self.channel.peer)
        if proven.trainer != public_key_of(self.channel.peer):
            raise TrustError(f"{self.channel.peer} speaks in the name of another trainer")
        self.authority.follow(closed)
        self.host.close(closed)
        self.reducer.close(closed)
        for step in [step for step in self._attempts if step < closed]:
            del self._attempts[step]

    async def _reduce(self, reduce: pb.Reduce) -> None:
        await self._say(await self.reducer.take_part(reduce))

    async def _take_commit(self, commit: pb.Commit) -> None:
        """Queues a Commit for its turn; one sent again replaces the one before, or is answered at once."""
        self.host.observe(Moment("commit", self.host.stage, commit.step))
        if commit.step < self.host.versions.latest:
            await self._say(self._applied(commit.step + 1))
            return
        if not 0 <= commit.step - self.host.versions.latest < MAX_COMMITS_AHEAD:
            raise ProtocolError(f"the trainer commits step {commit.step}; this peer is at {self.host.versions.latest}")
        self._commits[commit.step] = commit
        self.host.recollection.take(commit)
        self._wake.set()

    async def _apply_commits(self) -> None:
        """Makes one version after the other, as their Commits come."""
        while True:
            step = self.host.versions.latest
            commit = self._commits.get(step)
            if commit is None:
                self._wake.clear()
                await self._wake.wait()
            elif await self._apply(commit):
                del self._commits[step]
                await self._say(self._applied(step + 1))
            else:
                await asyncio.sleep(PULL_RETRY_SECONDS)

    async def _apply(self, commit: pb.Commit) -> bool:
        """Makes version step+1; pulls the reduction if it was missed. False if nobody gave it yet."""
        host = self.host
        state = host.versions.get(commit.step)
        choices = [choice for choice in commit.choices if choice.stage == host.stage]
        if len(choices) != 1:
            raise ProtocolError(
                f"the Commit of step {commit.step} names {len(choices)} reductions of stage {host.stage}"
            )
        try:
            parts = await self.reducer.chosen(commit, choices[0])
        except UnreachableError:
            return False
        factor = from_scalar(commit.factor, "factor", "the trainer")
        update = Update(factor, commit.learning_rate, commit.bias_correction1, commit.bias_correction2)
        made = await host.device.run(BACKGROUND, lambda: host.backend.apply(state, parts, update))
        digest = await host.device.run(BACKGROUND, lambda: host.backend.digest(made))
        host.versions.put(commit.step + 1, made, digest)
        host.counted += self.reducer.take_contributed(commit, choices[0])
        if commit.past.loss.WhichOneof("value") == "real":
            host.loss = commit.past.loss.real
        host.observe(Moment("applied", host.stage, commit.step))
        return True

    def _applied(self, version: int) -> pb.Applied:
        return pb.Applied(version=version, digest=self.host.versions.digest(version))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.host.manifest.settings.pipeline.heartbeat)
            beat = self._heartbeat()
            if self._sending.locked() or not self.channel.post(pack(beat)):
                await self._say(beat)

    def _ready(self, latest: int) -> pb.Ready:
        digest, slots = self.host.versions.digest(latest), self.host.visits.slots
        return pb.Ready(version=latest, digest=digest, kernels=self.host.backend.kernels, slots=slots)

    def _heartbeat(self) -> pb.Heartbeat:
        below, waits_for = self.host.visits.waiting_below()
        return pb.Heartbeat(
            open_visits=self.host.visits.open,
            load=self.host.load(),
            below=below,
            waits_for=waits_for,
            links=self.links(),
            busy=self.host.busy,
            refused=[pb.Refusals(reason=reason, count=count) for reason, count in sorted(self.host.refused.items())],
            activation_bytes=self.meter.activation,
            gradient_bytes=self.meter.gradient,
            reduce_bytes=self.meter.reduce,
            knows=len(self.authority.founders),
            codec_microseconds=int(1e6 * self.host.backend.codec_seconds),
            short=self.host.gradients.short,
            slots=self.host.visits.slots,
        )

    async def _say(self, body: Body) -> None:
        async with self._sending:
            await self.channel.send(body)
