"""A first contact with a run, a new standby's or a guest's: it asks whoever leads for the manifest, and believes only
its signature.

Errors: `UnreachableError` if nobody gives a manifest within the limit that proves itself.
"""

import asyncio

from ..errors import RefusedError, SwarmError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .directory import TRAINER_STAGE, Directory, Record
from .exchange import Channel, Meter
from .keys import SignedManifest, check_signed_manifest
from .transport import Transport

CONTACT_SECONDS = 60.0
ANSWER_SECONDS = 3.0
PAUSE_SECONDS = 0.2
BEYOND_EVERY_STEP = 1 << 62
"""Followed from here on, a trainer tells no past: only the manifest is wanted."""


async def ask_for_manifest(transport: Transport, directory: Directory, run_id: str) -> SignedManifest:
    """The signed manifest of a run, from one of those who lead it."""
    failure = "nobody announces that it leads"
    try:
        async with asyncio.timeout(CONTACT_SECONDS):
            while True:
                try:
                    found = await directory.read(run_id, TRAINER_STAGE)
                except UnreachableError as error:
                    found, failure = (), str(error)
                for record in sorted(found, key=lambda record: record.sequence, reverse=True):
                    try:
                        return await ask(transport, record)
                    except (SwarmError, TimeoutError) as error:
                        # Anybody can announce that he leads: one who cannot prove it is passed over.
                        failure = f"{record.peer}: {str(error) or 'no answer'}"
                await asyncio.sleep(PAUSE_SECONDS)
    except TimeoutError as error:
        raise UnreachableError(
            f"no trainer of run {run_id[:12]} gave its manifest within {CONTACT_SECONDS:.0f} s ({failure}); "
            "check the run id and the initial peers"
        ) from error


async def ask(transport: Transport, record: Record) -> SignedManifest:
    """The signed manifest of the run of which this is a trainer's record. Raises `RefusedError`, `WireError`,
    `TrustError`, `ManifestError`, `UnreachableError`, and `TimeoutError` if nothing comes."""
    async with asyncio.timeout(ANSWER_SECONDS):
        channel = Channel(await transport.open(record.peer, record.addresses), Meter())
        try:
            await channel.send(pb.Follow(run=record.run, step=BEYOND_EVERY_STEP))
            reply, _ = await channel.receive(0)
        finally:
            channel.close()
    if isinstance(reply, pb.Refused):
        raise RefusedError(pb.Reason.Name(reply.reason), reply.detail, record.peer)
    if not isinstance(reply, pb.Welcome):
        raise WireError(f"{record.peer} answered Follow with {reply.DESCRIPTOR.name}")
    check_signed_manifest(reply.manifest, reply.signature, record.run)
    return SignedManifest(reply.manifest, reply.signature)
