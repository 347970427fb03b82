"""A guest: somebody who has to do with a run without a place in it, for a moment. It joins the directory, asks who
leads for the manifest, and believes only its signature.

Errors: those of `network_node` and `ask_for_manifest`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .directory import Directory
from .first_contact import ask_for_manifest
from .keys import Identity
from .local_runs import LocalRun
from .manifest import Manifest, parse_manifest
from .process import SharedFolder, network_node
from .transport import Transport

LISTEN = ("/ip4/0.0.0.0/tcp/0",)


@dataclass(frozen=True, slots=True)
class Guest:
    """A node in a run's network, under an identity of its own, and the run's proven manifest."""

    identity: Identity
    transport: Transport
    directory: Directory
    manifest: Manifest


async def meet_as_guest(run: LocalRun, work: Callable[[Guest], Awaitable[None]]) -> None:
    """Does `work` as a guest of a run."""
    identity = Identity.generate()
    folder = SharedFolder.temporary()
    try:
        node = network_node(identity, folder.path / identity.peer_id[-8:], LISTEN, run.addresses)
        async with node as (transport, directory):
            signed = await ask_for_manifest(transport, directory, run.run_id)
            await work(Guest(identity, transport, directory, parse_manifest(signed.canonical)))
    finally:
        folder.leave()
