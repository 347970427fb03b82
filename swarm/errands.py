"""What the organizer may ask a trainer to do beside training: measure the held-out loss now.

`Errands` is the trainer's end: who asks waits until the trainer comes to it, between two steps; all who wait then get
the same answer. `ask_for_evaluation` is the asker's.

Errors: `RefusedError` for who may not ask, `UnreachableError` if nobody answers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ..errors import ProtocolError, RefusedError, TrustError, UnreachableError, UsageError
from ..protos import swarm_pb2 as pb
from .backend import Scalar
from .directory import TRAINER_STAGE, Directory
from .driving import Samples
from .exchange import Channel, Meter
from .keys import Identity, check_permit, permit
from .manifest import Manifest
from .messages import to_scalar
from .transport import Transport

EVALUATION_SECONDS = 3600.0
"""Longest that somebody waits for an evaluation: it begins after the step that is being issued."""

MAX_WAITING = 16
OVER = "this coordinator does not lead the run any more"


@dataclass
class Errands:
    """Who waits for an evaluation. `evaluate(version)`: the held-out loss there."""

    manifest: Manifest
    samples: Samples
    evaluate: Callable[[int], Awaitable[Scalar | None]]
    wake: Callable[[], None] = field(default=lambda: None)
    """Called when somebody asks."""

    waiting: list["asyncio.Future[pb.Evaluated]"] = field(default_factory=list)
    over: bool = False

    async def serve(self, channel: Channel, question: pb.Evaluate) -> None:
        """Answers one who asks, when the trainer has come to it."""
        try:
            check_permit(self.manifest, channel.peer, question.signature)
        except TrustError as error:
            await channel.send(pb.Refused(reason=pb.UNTRUSTED, detail=str(error)))
            return
        if question.run != self.manifest.run_id:
            await channel.send(pb.Refused(reason=pb.WRONG_RUN, detail=f"this is run {self.manifest.run_id}"))
            return
        try:
            await channel.send(await self.ask())
        except UsageError as error:
            await channel.send(pb.Refused(reason=pb.NOT_READY, detail=str(error)))

    async def ask(self) -> pb.Evaluated:
        """The held-out loss, when the trainer has come to it. Raises `UsageError` if too many wait for it, or the
        trainer stops leading before it comes to it."""
        if self.over:
            raise UsageError(OVER)
        if len(self.waiting) >= MAX_WAITING:
            raise UsageError("too many ask for an evaluation")
        answer: asyncio.Future[pb.Evaluated] = asyncio.get_running_loop().create_future()
        self.waiting.append(answer)
        self.wake()
        try:
            return await answer
        finally:
            if answer in self.waiting:
                self.waiting.remove(answer)

    def close(self) -> None:
        """Tells all who wait that the trainer will not come to it."""
        self.over = True
        for future in self.waiting:
            if not future.done():
                future.set_exception(UsageError(OVER))

    async def run(self, version: int) -> None:
        """Does what is waited for, at a version that nobody drops meanwhile."""
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, []
        loss = await self.evaluate(version)
        tokens = sum(batch.label_tokens for batch in self.samples.heldout())
        scalar = None if loss is None else to_scalar(loss)
        answer = pb.Evaluated(version=version, loss=scalar, tokens=tokens, bytes=self.samples.heldout_bytes())
        for future in waiting:
            if not future.done():
                future.set_result(answer)


async def ask_for_evaluation(
    manifest: Manifest, organizer: Identity, identity: Identity, transport: Transport, directory: Directory
) -> pb.Evaluated:
    """The held-out loss at the version that a run is at, from its trainer."""
    found = await directory.read(manifest.run_id, TRAINER_STAGE)
    if not found:
        raise UnreachableError(f"nobody leads run {manifest.run_id[:12]} at the moment")
    trainer = max(found, key=lambda record: record.sequence)
    channel = Channel(await transport.open(trainer.peer, trainer.addresses), Meter())
    try:
        async with asyncio.timeout(EVALUATION_SECONDS):
            signature = permit(organizer, manifest.run_id, identity.peer_id)
            await channel.send(pb.Evaluate(run=manifest.run_id, signature=signature))
            reply, _ = await channel.receive(0)
    except TimeoutError as error:
        raise UnreachableError(f"the trainer gave no evaluation within {EVALUATION_SECONDS:.0f} s") from error
    finally:
        channel.close()
    if isinstance(reply, pb.Refused):
        raise RefusedError(pb.Reason.Name(reply.reason), reply.detail, trainer.peer)
    if not isinstance(reply, pb.Evaluated):
        raise ProtocolError(f"{trainer.peer} answered Evaluate with {reply.DESCRIPTOR.name}")
    return reply
