"""The trainer's door: nobody is taken in by a trainer that leads no more."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from swarm_peer.errors import UnreachableError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.internet import Internet
from swarm_peer.simulations.links import Access, Downlink, Uplink
from swarm_peer.simulations.network import MemoryNetwork
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.admission import Admission, Listener
from swarm_peer.swarm.authority import from_term
from swarm_peer.swarm.epochs import Lineage
from swarm_peer.swarm.errands import Errands
from swarm_peer.swarm.exchange import Meter
from swarm_peer.swarm.keys import delegate, sign_manifest, sign_term
from swarm_peer.swarm.ledger import Ledger
from swarm_peer.swarm.manifest import PROTOCOL_VERSION, Manifest
from swarm_peer.swarm.messages import pack, unpack
from swarm_peer.swarm.roster import Member, Roster

from tests.exact import ORGANIZER, TRAINER, ExactSamples, exact_manifest


class Quiet:
    """A listener that hears of members coming and going, and has nothing to tell."""

    founders = ()
    began = True

    beginning = SimpleNamespace(lineage=Lineage(), donors=lambda stage, closed: [], epoch=0)

    def beaten(self, member: Member) -> None:
        pass

    def closed_marker(self) -> int:
        return 0

    def tells_of(self, lineage: Lineage) -> None:
        pass

    def refusal(self, peer: str) -> str:
        return ""

    def lost(self, member: Member, why: str) -> None:
        pass


async def no_evaluation(version: int) -> None:
    raise AssertionError("nobody has asked")


def door(joined: list[Member], ledger: Ledger) -> Admission:
    manifest = exact_manifest()
    delegation = delegate(ORGANIZER, manifest.run_id, TRAINER.public_hex)
    return Admission(
        manifest=manifest,
        signature=sign_manifest(ORGANIZER, manifest).signature,
        term=from_term(sign_term(TRAINER, manifest.run_id, 1, delegation)),
        roster=Roster(manifest.run_id, manifest.stages),
        ledger=ledger,
        meter=Meter(),
        listener=cast(Listener, Quiet()),
        joined=joined.append,
        errands=Errands(manifest, ExactSamples(), no_evaluation),
    )


def ledger_of(manifest: Manifest) -> Ledger:
    return Ledger(manifest.stages, manifest.microbatches)


def hello(*, close_first: bool) -> tuple[Any, list[Member]]:
    """What a Hello is answered with, and who was taken in; `close_first`: the trainer is fenced while it waits."""

    async def main() -> tuple[Any, list[Member]]:
        manifest = exact_manifest()
        joined: list[Member] = []
        admission = door(joined, ledger_of(manifest))
        network = MemoryNetwork(seed=1)
        await network.transport("trainer").serve(admission.serve)
        stream = await network.transport("newcomer").open("trainer")
        await asyncio.sleep(0.1)  # the trainer has the stream and waits for the Hello
        if close_first:
            admission.close()
        await stream.send(pack(pb.Hello(run=manifest.run_id, protocol=PROTOCOL_VERSION)))
        try:
            return unpack(await stream.receive(), "trainer"), joined
        except UnreachableError as error:
            return error, joined

    return run(main(), limit=60.0)


def test_a_newcomer_is_welcomed() -> None:
    reply, joined = hello(close_first=False)
    assert isinstance(reply, pb.Welcome)
    assert [member.number for member in joined] == [reply.member]


def test_who_says_hello_while_its_trainer_is_fenced_looks_for_another() -> None:
    reply, joined = hello(close_first=True)
    assert isinstance(reply, UnreachableError)
    assert not joined


@pytest.mark.parametrize("short", [False, True])
def test_who_runs_short_of_memory_is_told_what_it_is_credited_with(short: bool) -> None:
    async def main() -> pb.Heartbeat:
        manifest = exact_manifest()
        joined: list[Member] = []
        ledger = ledger_of(manifest)
        network = MemoryNetwork(seed=1)
        await network.transport("trainer").serve(door(joined, ledger).serve)
        stream = await network.transport("newcomer").open("trainer")
        await stream.send(pack(pb.Hello(run=manifest.run_id, protocol=PROTOCOL_VERSION)))
        assert isinstance(unpack(await stream.receive(), "trainer"), pb.Welcome)
        ledger.open(0)
        (member,) = joined
        for index, holder in ((3, member.number), (1, member.number), (2, member.number + 1)):
            ledger.credit(0, member.stage, index, holder)
        await stream.send(pack(pb.Heartbeat(short=short)))
        beat = unpack(await stream.receive(), "trainer")
        assert isinstance(beat, pb.Heartbeat)
        return beat

    beat = run(main(), limit=60.0)
    assert list(beat.credits) == ([pb.Credits(step=0, own=[1, 3], credited=b"\x0e")] if short else [])


class Crowd(Quiet):
    founders = tuple(range(1, 1001))


def test_members_hear_every_second_whatever_there_is_to_tell_and_whoever_was_there_before() -> None:
    """A thousand founders take more than a packet of an internet; whoever knows them is told no more of them."""

    async def beats(network: Internet, run_id: str, name: str, knows: int) -> tuple[float, int]:
        """Seconds between the third heartbeat and the fourth, and how many founders that tells of."""
        loop, stream = asyncio.get_running_loop(), await network.transport(name).open("trainer")
        await stream.send(pack(pb.Hello(run=run_id, protocol=PROTOCOL_VERSION)))
        assert isinstance(unpack(await stream.receive(), "trainer"), pb.Welcome)
        await stream.send(pack(pb.Heartbeat(knows=knows)))
        for _ in range(3):
            await stream.receive()
        began, beat = loop.time(), unpack(await stream.receive(), "trainer")
        stream.close()
        assert isinstance(beat, pb.Heartbeat)
        return round(loop.time() - began, 1), len(beat.founders)

    async def main() -> None:
        manifest = exact_manifest()
        names = ("trainer", "knowing", "unknowing", "late")
        network = Internet(seed=1, accesses={name: Access(Uplink(1e6), Downlink(1e6)) for name in names})
        admission = door([], ledger_of(manifest))
        admission.listener = cast(Listener, Crowd())
        await network.transport("trainer").serve(admission.serve)
        both = await asyncio.gather(
            beats(network, manifest.run_id, "knowing", 1000), beats(network, manifest.run_id, "unknowing", 0)
        )
        assert both == [(1.0, 0), (1.0, 1000)]
        await asyncio.sleep(10.0)
        assert await beats(network, manifest.run_id, "late", 0) == (1.0, 1000)

    run(main(), limit=60.0)
