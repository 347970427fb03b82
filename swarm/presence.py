"""How a trainer stands in the directory: it announces itself, and asks whoever else says that he leads for his proof.
`keep_listed` has a coordinator stand in the index of runs as long as it leads.

Errors: none end it; what cannot be read or reached now is tried again.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from ..errors import UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .directory import SEQUENCE_BITS, TRAINER_STAGE, Directory, Record
from .exchange import Channel, Meter
from .manifest import PROTOCOL_VERSION, Manifest
from .peer import ANNOUNCE_SECONDS, RECORD_SECONDS
from .transport import Transport

logger = logging.getLogger(__name__)


LIST_SECONDS = 5.0


def trainer_record(manifest: Manifest, transport: Transport, term: int, published: int) -> Record:
    """What a trainer says of itself."""
    return Record(
        run=manifest.run_id,
        stage=TRAINER_STAGE,
        peer=transport.peer_id,
        addresses=transport.addresses,
        sequence=term << SEQUENCE_BITS | published,
        protocol=PROTOCOL_VERSION,
    )


async def keep_listed(
    manifest: Manifest, transport: Transport, directory: Directory, term: Callable[[], int | None]
) -> None:
    """Publishes a coordinator in the index of runs again and again, while it has a term in which it leads."""
    for published in count(1):
        number = term()
        if number is not None:
            try:
                await directory.list_run(trainer_record(manifest, transport, number, published), RECORD_SECONDS)
            except UnreachableError as error:
                # Who knows the run finds it all the same, and is told of it if that fails as well.
                logger.debug("the run could not be listed: %s", error)
        await asyncio.sleep(LIST_SECONDS)


@dataclass
class Presence:
    """`beaten_by` is told of every term that is shown by a rival; whether it proves itself is for the hearer to say."""

    manifest: Manifest
    term: pb.Term
    transport: Transport
    directory: Directory
    meter: Meter
    beaten_by: Callable[[pb.Term], None]

    async def announce(self) -> None:
        """Publishes the trainer's record again and again."""
        published = 0
        while True:
            published += 1
            record = trainer_record(self.manifest, self.transport, self.term.number, published)
            try:
                await self.directory.publish(record, RECORD_SECONDS)
            except UnreachableError as error:
                logger.warning("the trainer could not announce itself, and tries again: %s", error)
            await asyncio.sleep(ANNOUNCE_SECONDS)

    async def watch_rivals(self) -> None:
        """Asks whoever announces a term that is not lower for its proof; its followers and ours might never meet."""
        while True:
            await asyncio.sleep(ANNOUNCE_SECONDS)
            try:
                found = await self.directory.read(self.manifest.run_id, TRAINER_STAGE)
            except UnreachableError:
                continue
            for record in found:
                if record.peer != self.transport.peer_id and record.sequence >> SEQUENCE_BITS >= self.term.number:
                    await self._ask_for_proof(record)

    async def _ask_for_proof(self, record: Record) -> None:
        try:
            async with asyncio.timeout(self.manifest.settings.pipeline.silence):
                channel = Channel(await self.transport.open(record.peer, record.addresses), self.meter)
                try:
                    steps = self.manifest.settings.train.steps
                    await channel.send(pb.Follow(run=self.manifest.run_id, step=steps))
                    welcome, _ = await channel.receive(0)
                finally:
                    channel.close()
        except (UnreachableError, WireError, TimeoutError):
            return
        if isinstance(welcome, pb.Welcome):
            self.beaten_by(welcome.term)
