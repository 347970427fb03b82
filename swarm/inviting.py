"""A fresh invite to a run that goes on: with the addresses of whoever leads it now, and of some of its peers.

Errors: `TrustError` if the run is another organizer's, `UnreachableError` if the directory cannot be read.
"""

from collections.abc import Sequence
from itertools import chain, zip_longest

from ..errors import TrustError
from .directory import TRAINER_STAGE, Directory, Record
from .invites import MAX_ADDRESSES, make_invite
from .keys import Identity
from .listing import model_elsewhere
from .manifest import Manifest


async def invite_from_run(manifest: Manifest, organizer: Identity, directory: Directory) -> str:
    """The text of the invite."""
    if manifest.organizer != organizer.public_hex:
        raise TrustError(
            f"the run is organized by {manifest.organizer[:16]}..., the key here is {organizer.public_hex[:16]}...: "
            "name the file of the right one with --organizer-key"
        )
    trainers = await directory.read(manifest.run_id, TRAINER_STAGE)
    members: list[Record] = []
    for stage in range(min(manifest.stages, MAX_ADDRESSES)):
        members += await directory.read(manifest.run_id, stage)
    leading = sorted(trainers, key=lambda record: record.sequence, reverse=True)
    addresses = in_turn([record.addresses for record in (*leading, *members)])
    return make_invite(organizer, manifest.run_id, model_elsewhere(manifest), addresses)


def in_turn(addresses: Sequence[Sequence[str]]) -> list[str]:
    """One address of each node, then the next of each: so that an invite with few still names several nodes."""
    turns = zip_longest(*addresses)
    return [address for address in chain.from_iterable(turns) if address is not None]
