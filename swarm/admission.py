"""The trainer's end of the control streams: who comes in, and what members say.

Answers Hello with Welcome or Refused{reason}, then listens until the stream ends or nothing comes for the silence
limit, which means that the member is lost. What members say is checked here and handed on as plain calls (`Listener`).
A standby's Follow is answered with the run's manifest and past, and a heartbeat a second. An organizer's Evaluate goes
to `errands.py`.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import ProtocolError, SilentError, TrustError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .authority import to_term
from .beginning import Beginning
from .conditions import Signal
from .credits import CreditsTold
from .epochs import Lineage, read_lineage
from .errands import Errands
from .exchange import Channel, Meter
from .heartbeats import Heartbeats
from .keys import ProvenTerms, public_key_of
from .ledger import Ledger
from .manifest import PROTOCOL_VERSION, Manifest
from .messages import Body, check_crew, check_indices, check_past, pack
from .roster import Member, Roster
from .serving import Incoming, serve_exchanges
from .transport import Stream

LOADING_SECONDS = 600.0
"""How long a newcomer may be silent while it loads its stage."""

REPLACE_SECONDS = 1.0
"""How long a stream that nobody may read any more may take a last word."""

MAX_ADDRESSES = 16
MAX_ADDRESS_LENGTH = 256
MAX_NAME_LENGTH = 64


class Listener(Protocol):
    """What the trainer does with what members say. `founders`: with whom the run began, for who does not know."""

    @property
    def founders(self) -> Collection[int]: ...

    def held(self, member: Member, held: pb.Held) -> None: ...

    def ready(self, member: Member, version: int, digest: bytes) -> None: ...

    def reduced(self, member: Member, outcome: pb.Reduced | pb.ReduceFailed) -> None: ...

    def applied(self, member: Member, version: int, digest: bytes) -> None: ...

    def beaten(self, member: Member) -> None: ...

    def leaves(self, member: Member, why: str, *, idle: bool) -> None: ...

    def refusal(self, peer: str) -> str:
        """Why a peer is not wanted in the run, "" if it is."""
        ...

    def lost(self, member: Member, why: str) -> None: ...

    def fenced(self, term: pb.Term) -> None: ...

    def closed_marker(self) -> int: ...

    @property
    def began(self) -> bool:
        """Whether the term has begun."""
        ...

    @property
    def beginning(self) -> Beginning: ...

    def tells_of(self, lineage: Lineage) -> None:
        """A peer has followed a trainer of these epochs."""
        ...

    def declines(self, member: Member) -> None:
        """It does not move."""
        ...

    def loaded(self, member: Member) -> None:
        """A newcomer to whom nobody gives the state of its stage has the rest of it."""
        ...

    def settled(self) -> int:
        """The step below which nothing changes any more of what a standby is told."""
        ...

    def past(self, step: int) -> Sequence[pb.Past]: ...

    def learn(self, past: pb.Past) -> None: ...


@dataclass
class Admission:
    """Control streams of a run."""

    manifest: Manifest
    signature: bytes
    term: pb.Term
    roster: Roster
    ledger: Ledger
    meter: Meter
    listener: Listener
    joined: Callable[[Member], None]
    errands: Errands
    _channels: dict[int, Channel] = field(default_factory=dict)
    _standbys: dict[Channel, int] = field(default_factory=dict)
    """By standby: the step below which it has been told everything."""

    _led: dict[Channel, Member] = field(default_factory=dict)
    """Who is sent heartbeats."""

    _giving: set[Stream] = field(default_factory=set)
    """Streams of those who take from a checkpoint."""

    def __post_init__(self) -> None:
        self._proven = ProvenTerms(self.manifest)
        self._pace = self.manifest.settings.pipeline
        self._heartbeats = Heartbeats(pb.Heartbeat, lambda: self._pace.heartbeat)
        self._beating: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()
        self._news = asyncio.Event()
        self._told = Signal()
        self._credits = CreditsTold(self.ledger, self._pace.heartbeat)
        self._closed = False

    def proves_higher(self, term: pb.Term) -> bool:
        """Whether a term is above ours, and proves itself."""
        if (term.number, term.trainer) <= (self.term.number, self.term.trainer):
            return False
        try:
            self._proven.check(to_term(term))
        except TrustError:
            return False
        return True

    async def serve(self, stream: Stream) -> None:
        """One incoming stream, from Hello to its end."""
        if self._closed:
            stream.close()
            return
        channel = Channel(stream, self.meter)
        member: Member | None = None
        why = "its control stream ended"
        try:
            async with asyncio.timeout(self._pace.silence):
                hello, _ = await channel.receive(0)
            if self._closed:  # meanwhile: nobody may be led by a trainer that leads no more
                return
            if isinstance(hello, pb.Follow):
                self._standbys[channel] = 0
                await self._lead(channel, hello)
                return
            if isinstance(hello, pb.Evaluate):
                await self.errands.serve(channel, hello)
                return
            if isinstance(hello, pb.Fetch | pb.Watch):
                self._giving.add(stream)
                await serve_exchanges(stream, self.meter, lambda: 0, self._give, first=hello)
                return
            refusal = self._refusal(hello, channel.peer)
            if refusal is not None:
                await channel.send(refusal)
                return
            assert isinstance(hello, pb.Hello)
            member = await self._welcome(channel, hello)
            self._led[channel] = member
            if self._beating is None:
                self._beat_later()
            await self._listen(channel, member)
        except (TimeoutError, SilentError):
            why = "it was silent for too long"
        except UnreachableError:
            pass
        except WireError as error:
            why = str(error)
        finally:
            channel.close()
            self._led.pop(channel, None)
            self._standbys.pop(channel, None)
            self._giving.discard(stream)
            if member is not None:
                self._channels.pop(member.number, None)
                self.listener.lost(member, why)

    async def _give(self, incoming: Incoming, body: Body, payload: bytes) -> None:
        """Answers those who restore a checkpoint from here."""
        if isinstance(body, pb.Watch):
            await self._heartbeats.serve(incoming)
        elif isinstance(body, pb.Fetch):
            await self.listener.beginning.serve_fetch(incoming, body)
        else:
            raise ProtocolError(f"{incoming.peer} sent {body.DESCRIPTOR.name} where a trainer gives only what it has")

    def _refusal(self, hello: Body, peer: str) -> pb.Refused | None:
        if not isinstance(hello, pb.Hello):
            return pb.Refused(reason=pb.MALFORMED, detail=f"expected Hello, got {hello.DESCRIPTOR.name}")
        if hello.protocol != PROTOCOL_VERSION:
            detail = (
                f"this run speaks protocol {PROTOCOL_VERSION}, you speak {hello.protocol}: install the same version"
            )
            return pb.Refused(reason=pb.WRONG_PROTOCOL, detail=detail)
        if hello.run != self.manifest.run_id:
            return pb.Refused(reason=pb.WRONG_RUN, detail=f"this is run {self.manifest.run_id}, not {hello.run[:64]!r}")
        if hello.wanted_stage > self.manifest.stages:
            detail = f"stage {hello.wanted_stage - 1} was asked for; the run has {self.manifest.stages}"
            return pb.Refused(reason=pb.WRONG_STAGE, detail=detail)
        if not hello.wanted_stage and set(range(self.manifest.stages)) <= set(hello.besides):
            return pb.Refused(reason=pb.WRONG_STAGE, detail="this machine hosts every stage of the run")
        if len(hello.addresses) > MAX_ADDRESSES or any(len(text) > MAX_ADDRESS_LENGTH for text in hello.addresses):
            return pb.Refused(reason=pb.MALFORMED, detail=f"more than {MAX_ADDRESSES} addresses, or too long ones")
        unwanted = self.listener.refusal(peer)
        if unwanted:
            return pb.Refused(reason=pb.UNTRUSTED, detail=unwanted)
        if self._over.is_set():
            return pb.Refused(reason=pb.CLOSED, detail="the run is finished")
        try:
            self.listener.tells_of(read_lineage(hello.epochs, self._proven, self.manifest.run_id, peer))
        except (TrustError, WireError) as error:
            return pb.Refused(reason=pb.UNTRUSTED, detail=str(error))
        if hello.HasField("term") and (self.proves_higher(hello.term) or self._shares_number(hello.term)):
            self.listener.fenced(hello.term)
            return pb.Refused(reason=pb.FENCED, detail="a higher term leads", proof=hello.term)
        return None

    def _shares_number(self, followed: pb.Term) -> bool:
        """Whether another trainer has led under our number: it must be used once, for it tells attempts apart."""
        if followed.number != self.term.number or followed.trainer == self.term.trainer:
            return False
        try:
            self._proven.check(to_term(followed))
        except TrustError:
            return False
        return True

    async def _lead(self, channel: Channel, follow: pb.Follow) -> None:
        """Keeps a standby informed until it goes away."""
        if follow.run != self.manifest.run_id:
            detail = f"this is run {self.manifest.run_id}, not {follow.run[:64]!r}"
            await channel.send(pb.Refused(reason=pb.WRONG_RUN, detail=detail))
            return
        await channel.send(
            pb.Welcome(
                manifest=self.manifest.canonical(),
                signature=self.signature,
                term=self.term,
                epochs=self.listener.beginning.lineage.epochs,
            )
        )
        hearing = asyncio.create_task(self._hear_past(channel)) if self._has_led(channel, follow) else None
        try:
            await self._tell_past(channel, follow.step)
        finally:
            if hearing is not None:
                hearing.cancel()

    def _has_led(self, channel: Channel, follow: pb.Follow) -> bool:
        """Whether a standby proves that it was this run's trainer before."""
        try:
            self._proven.check(to_term(follow.led))
        except TrustError:
            return False
        return follow.led.trainer == public_key_of(channel.peer)

    async def _hear_past(self, channel: Channel) -> None:
        with contextlib.suppress(UnreachableError, WireError):
            while True:
                body, _ = await channel.receive(0)
                if isinstance(body, pb.Past):
                    self.listener.learn(body)

    async def _tell_past(self, channel: Channel, step: int) -> None:
        while not self._over.is_set():
            for past in self.listener.past(step):
                await channel.send(past)
                # A step that is not closed is told again when it is: until then its totals may change.
                step = max(step, min(past.step + 1, self.listener.settled()))
            self._standbys[channel] = step
            self._told.notify()
            await channel.send(pb.Heartbeat())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.heartbeat):
                    await self._news.wait()
            self._news.clear()
        await channel.send(pb.Finish(detail="the run is over"))

    def committed(self) -> None:
        """Tells the standbys what is new at once: the trainer may be gone in a moment."""
        self._news.set()

    async def conclude(self) -> None:
        """Waits until every standby knows all that there is to report, or is gone: only then may anyone leave."""
        self.committed()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pace.silence):
                await self._told.wait_for(
                    lambda: all(step >= self.listener.settled() for step in self._standbys.values())
                )

    def finish(self) -> None:
        """Tells the standbys that the run is over."""
        self._over.set()
        self._news.set()

    def _beat_later(self) -> None:
        self._beating = asyncio.get_running_loop().call_later(self._pace.heartbeat, self._beat)

    def _beat(self) -> None:
        """Members know by it that their trainer lives. One to whom more is on its way just then hears enough."""
        self._beating = None
        if not self._led:
            return
        self._beat_later()
        now, founders, epoch = asyncio.get_running_loop().time(), self.listener.founders, self.listener.beginning.epoch
        usual, naming = pack(pb.Heartbeat()), pack(pb.Heartbeat(founders=sorted(founders)))
        for channel, member in self._led.items():
            knows = member.beat.knows >= len(founders)
            frame = usual if knows else naming
            if member.beat.short:
                told = self._credits.of(member.stage, member.number, epoch, now)
                frame = pack(pb.Heartbeat(founders=() if knows else sorted(founders), credits=told))
            channel.post(frame)

    async def _welcome(self, channel: Channel, hello: pb.Hello) -> Member:
        earlier = self.roster.by_peer(channel.peer)
        if earlier is not None:
            await self._replace(earlier)
            if self._closed or self.roster.by_peer(channel.peer) is not None:
                raise UnreachableError(f"{channel.peer} came while it was replaced")
        wanted = hello.wanted_stage - 1 if hello.wanted_stage else None
        member = self.roster.place(channel.peer, tuple(hello.addresses), wanted, tuple(hello.besides))
        number = hello.epochs[-1].term.number if hello.epochs else 0
        member.returning = hello.returning and number == self.listener.beginning.lineage.number
        member.about, member.replaces, member.fixed = hello.about, hello.replaces, hello.fixed
        replaced = self.roster.get(hello.replaces)
        if replaced is not None:
            member.machine = replaced.machine
        member.heard = member.since = asyncio.get_running_loop().time()
        self._channels[member.number] = channel
        self.joined(member)
        welcome = pb.Welcome(
            manifest=self.manifest.canonical(),
            signature=self.signature,
            term=self.term,
            member=member.number,
            stage=member.stage,
            closed=self.listener.closed_marker(),
            began=self.listener.began,
            donors=self.listener.beginning.donors(member.stage, self.listener.closed_marker()),
            epochs=self.listener.beginning.lineage.epochs,
        )
        try:
            await channel.send(welcome)
        except BaseException:
            self._channels.pop(member.number, None)
            self.listener.lost(member, "it could not be welcomed")
            raise
        return member

    async def _replace(self, earlier: Member) -> None:
        """A peer has come again. If it has left its earlier stream, nobody hears this: who does is another process of
        the same identity, and the two would have each other lost for ever."""
        detail = "another process takes part under this identity, and came later"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPLACE_SECONDS):
                await self.tell(earlier, pb.Refused(reason=pb.REPLACED, detail=detail))
        self.listener.lost(earlier, "it came again as a new incarnation")

    async def _listen(self, channel: Channel, member: Member) -> None:
        while True:
            body = await channel.receive_while_heard(self._pace.silence if member.version >= 0 else LOADING_SECONDS)
            member.heard = asyncio.get_running_loop().time()
            if isinstance(body, pb.Heartbeat):
                member.beat, member.slots = body, body.slots
                self.listener.beaten(member)
            elif isinstance(body, pb.Held):
                self._check_held(channel, body)
                self.listener.held(member, body)
            elif isinstance(body, pb.Ready):
                member.kernels = re.sub(r"[^\w ().-]", "", body.kernels[:MAX_NAME_LENGTH])  # people's terminals show it
                member.slots = body.slots
                self.listener.ready(member, body.version, body.digest)
            elif isinstance(body, pb.Reduced | pb.ReduceFailed):
                check_indices(tuple(body.indices), self.manifest.microbatches, channel.peer)
                self.listener.reduced(member, body)
            elif isinstance(body, pb.Move):
                self.listener.declines(member)
            elif isinstance(body, pb.Loaded):
                self.listener.loaded(member)
            elif isinstance(body, pb.Leave):
                self.listener.leaves(member, body.why, idle=body.idle)
            elif isinstance(body, pb.Applied):
                self.listener.applied(member, body.version, body.digest)
            else:
                raise WireError(f"{channel.peer} sent {body.DESCRIPTOR.name} on its control stream")

    def _check_held(self, channel: Channel, held: pb.Held) -> None:
        microbatches = self.manifest.microbatches
        for past in held.past:
            check_past(past, self.manifest.settings.train.steps, channel.peer)
        for entry in held.steps:
            check_indices(tuple(entry.indices), microbatches, channel.peer)
            check_indices(tuple(sorted(loss.index for loss in entry.losses)), microbatches, channel.peer)
        steps = self.manifest.settings.train.steps
        check_crew(held.founders, channel.peer)
        for commit in held.commits:
            check_crew(commit.crew, channel.peer)
            check_crew(commit.earlier_crew, channel.peer)
            if commit.step >= steps:
                raise ProtocolError(f"{channel.peer} holds a Commit of step {commit.step} of {steps}")

    async def tell(self, member: Member, body: Body) -> None:
        """Sends to one member; one whose stream has ended is found lost by `serve`."""
        channel = self._channels.get(member.number)
        if channel is None:
            return
        try:
            await channel.send(body)
        except UnreachableError:
            channel.close()

    def drop(self, member: Member) -> None:
        """Ends the control stream of a member."""
        channel = self._channels.pop(member.number, None)
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Ends every control stream, and takes no more: whoever is led by this trainer looks for another."""
        self._closed = True
        if self._beating is not None:
            self._beating.cancel()
        for channel in (*self._channels.values(), *self._standbys):
            channel.close()
        for stream in self._giving:
            stream.close()

    @property
    def connected(self) -> int:
        return len(self._channels)
