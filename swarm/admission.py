"""The trainer's end of the control streams: who comes in, and what members say.

Answers Hello with Welcome or Refused{reason}, then listens until the stream ends, which means that the member is
lost. What members say is checked here and handed on as plain calls (`Listener`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .exchange import Channel, Meter
from .manifest import PROTOCOL_VERSION, Manifest
from .messages import Body, check_indices
from .roster import Member, Roster
from .transport import Stream

MAX_ADDRESSES = 16
MAX_ADDRESS_LENGTH = 256


class Listener(Protocol):
    """What the trainer does with what members say."""

    def ready(self, member: Member, digest: bytes) -> None: ...

    def reduced(self, member: Member, outcome: pb.Reduced | pb.ReduceFailed) -> None: ...

    def applied(self, member: Member, version: int, digest: bytes) -> None: ...

    def lost(self, member: Member, why: str) -> None: ...


@dataclass
class Admission:
    """Control streams of a run. `started()` says whether newcomers come too late."""

    manifest: Manifest
    signature: bytes
    term: pb.Term
    roster: Roster
    meter: Meter
    listener: Listener
    started: Callable[[], bool]
    joined: Callable[[Member], None]
    _channels: dict[int, Channel] = field(default_factory=dict)

    async def serve(self, stream: Stream) -> None:
        """One incoming stream, from Hello to its end."""
        channel = Channel(stream, self.meter)
        member: Member | None = None
        why = "its control stream ended"
        try:
            hello, _ = await channel.receive(0)
            refusal = self._refusal(hello)
            if refusal is not None:
                await channel.send(refusal)
                return
            assert isinstance(hello, pb.Hello)
            member = await self._welcome(channel, hello)
            await self._listen(channel, member)
        except UnreachableError:
            pass
        except WireError as error:
            why = str(error)
        finally:
            stream.close()
            if member is not None:
                self._channels.pop(member.number, None)
                self.listener.lost(member, why)

    def _refusal(self, hello: Body) -> pb.Refused | None:
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
        if len(hello.addresses) > MAX_ADDRESSES or any(len(text) > MAX_ADDRESS_LENGTH for text in hello.addresses):
            return pb.Refused(reason=pb.MALFORMED, detail=f"more than {MAX_ADDRESSES} addresses, or too long ones")
        if self.started():
            detail = "the run has started; this version of swarm-peer takes no latecomers"
            return pb.Refused(reason=pb.STARTED, detail=detail)
        return None

    async def _welcome(self, channel: Channel, hello: pb.Hello) -> Member:
        earlier = self.roster.by_peer(channel.peer)
        if earlier is not None:
            self.listener.lost(earlier, "it came again as a new incarnation")
        wanted = hello.wanted_stage - 1 if hello.wanted_stage else None
        member = self.roster.place(channel.peer, tuple(hello.addresses), wanted)
        self._channels[member.number] = channel
        self.joined(member)
        await channel.send(
            pb.Welcome(
                manifest=self.manifest.canonical(),
                signature=self.signature,
                term=self.term,
                member=member.number,
                stage=member.stage,
            )
        )
        return member

    async def _listen(self, channel: Channel, member: Member) -> None:
        while True:
            body, _ = await channel.receive(0)
            if isinstance(body, pb.Heartbeat):
                member.beat = body
            elif isinstance(body, pb.Ready):
                self.listener.ready(member, body.digest)
            elif isinstance(body, pb.Reduced | pb.ReduceFailed):
                check_indices(tuple(body.indices), self.manifest.microbatches, channel.peer)
                self.listener.reduced(member, body)
            elif isinstance(body, pb.Applied):
                self.listener.applied(member, body.version, body.digest)
            else:
                raise WireError(f"{channel.peer} sent {body.DESCRIPTOR.name} on its control stream")

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

    @property
    def connected(self) -> int:
        return len(self._channels)
