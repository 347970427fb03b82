"""A guest: somebody who has to do with a run without a place in it, for a moment. It joins the directory, asks who
leads for the manifest, and believes only its signature.

Errors: those of `network_node` and `ask_for_manifest`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .dht_directory import DHTDirectory
from .directory import Directory
from .first_contact import ask_for_manifest
from .keys import Identity
from .local_runs import LocalRun
from .manifest import Manifest, parse_manifest
from .p2p_transport import P2PTransport
from .process import network_node
from .shared_folder import SharedFolder
from .transport import Transport

LISTEN = ("/ip4/0.0.0.0/tcp/0",)


@dataclass(frozen=True, slots=True)
class Guest:
    """A node in a run's network, under an identity of its own, and the run's proven manifest."""

    identity: Identity
    transport: Transport
    directory: Directory
    manifest: Manifest


@asynccontextmanager
async def guest_node(identity: Identity, addresses: Sequence[str]) -> AsyncIterator[tuple[P2PTransport, DHTDirectory]]:
    """A node for a moment, with its sockets in a folder of its own. Raises `UnreachableError`."""
    folder = SharedFolder.temporary()
    try:
        async with network_node(
            identity, folder.path / identity.peer_id[-8:], LISTEN, addresses, reached=False
        ) as made:
            yield made
    finally:
        folder.leave()


async def meet_as_guest(run: LocalRun, work: Callable[[Guest], Awaitable[None]]) -> None:
    """Does `work` as a guest of a run."""
    identity = Identity.generate()
    async with guest_node(identity, run.addresses) as (transport, directory):
        signed = await ask_for_manifest(transport, directory, run.run_id)
        await work(Guest(identity, transport, directory, parse_manifest(signed.canonical)))
