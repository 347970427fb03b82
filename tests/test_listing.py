"""What can be joined: an index with trainers that answer, lie, are silent or are made up; virtual time."""

import asyncio
from typing import Any

import pytest
from swarm_peer.peer.runs_command import merged
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.directory import MemoryDirectory
from swarm_peer.simulations.network import MemoryNetwork
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import listing
from swarm_peer.swarm.directory import TRAINER_STAGE, Record
from swarm_peer.swarm.keys import Identity, sign_manifest
from swarm_peer.swarm.listing import OfferedRun, join_command, listed, model_elsewhere
from swarm_peer.swarm.manifest import PROTOCOL_VERSION, Manifest, Weights
from swarm_peer.swarm.messages import pack
from swarm_peer.swarm.presence import LIST_SECONDS, keep_listed
from swarm_peer.swarm.transport import Stream

from tests.tiny import ORGANIZER, tiny_manifest

MANIFESTS = {name: tiny_manifest(stages=2, steps=steps) for steps, name in enumerate(("true", "other", "silent"), 5)}
GENUINE = {name: sign_manifest(ORGANIZER, manifest) for name, manifest in MANIFESTS.items()}


class Net:
    """A network in memory with an index, and a guest in it."""

    def __init__(self) -> None:
        self.network, self.directory = MemoryNetwork(0, (0.001, 0.005)), MemoryDirectory()
        self.guest = self.network.transport(Identity.from_seed("guest").peer_id)

    async def trainer(self, name: str, run_id: str, answer: Any, sequence: int = 1) -> Record:
        """Somebody who stands in the index and answers every question so; None: not at all."""
        identity = Identity.from_seed(name)
        transport = self.network.transport(identity.peer_id)

        async def serve(stream: Stream) -> None:
            await stream.receive()
            if answer is not None:
                await stream.send(pack(answer))
            await asyncio.sleep(60.0)

        await transport.serve(serve)
        address = f"/ip4/203.0.113.1/tcp/4001/p2p/{identity.peer_id}"
        record = Record(run_id, TRAINER_STAGE, identity.peer_id, (address, "; rm"), sequence, PROTOCOL_VERSION)
        await self.directory.list_run(record, 60.0)
        return record

    async def peers(self, manifest: Manifest, stage: int, *newest: int) -> None:
        for number, version in enumerate(newest):
            peer = Identity.from_seed(f"{stage}/{number}").peer_id
            record = Record(manifest.run_id, stage, peer, (), 1, PROTOCOL_VERSION, versions=(0, version))
            await self.directory.publish(record, 60.0)


def welcome(name: str) -> pb.Welcome:
    return pb.Welcome(manifest=GENUINE[name].canonical, signature=GENUINE[name].signature)


def by_id(found: list[OfferedRun]) -> dict[str, OfferedRun]:
    return {run.run_id: run for run in found}


def test_runs_are_what_their_trainers_prove_and_the_rest_is_said_to_be_silent() -> None:
    manifest, other, silent = (MANIFESTS[name] for name in ("true", "other", "silent"))

    async def main() -> None:
        net = Net()
        record = await net.trainer("trainer", manifest.run_id, welcome("true"))
        # Of the same run: one who shows another run's manifest in a higher term, and one who only says so.
        await net.trainer("liar", manifest.run_id, welcome("other"), sequence=9)
        await net.trainer("boaster", manifest.run_id, pb.Refused(reason=pb.FENCED, detail="no"), sequence=8)
        await net.trainer("forger", other.run_id, pb.Welcome(manifest=GENUINE["other"].canonical, signature=bytes(64)))
        await net.trainer("mute", silent.run_id, None)
        await net.trainer("joker", "\x1b[31mnot a run id", welcome("true"))
        await net.peers(manifest, 0, 3, 4, 2)
        await net.peers(manifest, 1, 3)
        began = asyncio.get_running_loop().time()
        runs, left_out = await listed(net.guest, net.directory)
        assert asyncio.get_running_loop().time() < began + listing.RUN_SECONDS
        found = by_id(runs)
        assert (set(found), left_out) == ({manifest.run_id, other.run_id, silent.run_id}, 0)
        assert found[manifest.run_id] == OfferedRun(
            manifest.run_id,
            model="tiny",
            organizer=ORGANIZER.public_hex,
            replicas=(3, 1),
            step=3,
            steps=5,
            join=f"swarm-peer join --model tiny --run {manifest.run_id} --initial-peers {record.addresses[0]}",
        )
        for run_id, why in ((other.run_id, "the manifest is not signed"), (silent.run_id, "nothing came")):
            run = found[run_id]
            assert run == OfferedRun(run_id, problem=run.problem)
            assert run.problem.startswith("its trainer does not answer")
            assert why in run.problem

    run(main(), limit=100.0)


def test_a_run_that_is_asked_for_is_found_outside_of_the_index_too() -> None:
    manifest, other = MANIFESTS["true"], MANIFESTS["other"]

    async def main() -> None:
        net = Net()
        record = await net.trainer("trainer", manifest.run_id, welcome("true"))
        net.directory = MemoryDirectory()
        await net.directory.publish(record, 60.0)
        runs, _ = await listed(net.guest, net.directory, [manifest.run_id, other.run_id])
        assert [(run.run_id, run.replicas, run.problem) for run in runs] == [
            (manifest.run_id, (0, 0), ""),
            (other.run_id, (), "nobody announces that it leads"),
        ]
        assert (await listed(net.guest, net.directory)) == ([], 0)

    run(main(), limit=100.0)


def test_an_index_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_RUNS", 3)

    async def main() -> None:
        net = Net()
        for number in range(5):
            await net.trainer(f"trainer {number}", f"{number:064x}", None)
        runs, left_out = await listed(net.guest, net.directory, [f"{9:064x}"])
        assert ([run.run_id for run in runs], left_out) == ([f"{number:064x}" for number in (9, 0, 1)], 3)

    run(main(), limit=100.0)


def test_a_coordinator_is_listed_while_it_leads() -> None:
    manifest, term = MANIFESTS["true"], list[int | None]([None])

    async def main() -> None:
        net = Net()
        keeping = asyncio.ensure_future(keep_listed(manifest, net.guest, net.directory, lambda: term[0]))

        async def sequences() -> list[int]:
            await asyncio.sleep(LIST_SECONDS)
            return [record.sequence >> 32 for record in await net.directory.listed_runs()]

        assert await sequences() == []
        term[0] = 3
        assert await sequences() == [3]
        for _ in range(20):
            assert await sequences() == [3]
        term[0] = None
        await asyncio.sleep(20.0)
        assert await sequences() == []
        keeping.cancel()

    run(main(), limit=400.0)


def test_a_command_is_safe_to_type() -> None:
    good = f"/ip4/1.2.3.4/tcp/1/p2p/{ORGANIZER.peer_id}"
    assert join_command("ab", "m", [good]) == f"swarm-peer join --model m --run ab --initial-peers {good}"
    assert join_command("ab", "a;rm$(x)", [good]) == (
        f"swarm-peer join --model 'a;rm$(x)' --run ab --initial-peers {good}"
    )
    for model in ("", "two words", "-x", "/etc", "a\x1b[31m", "x" * 600):
        assert join_command("ab", model, [good, f"/ip4/1;reboot/p2p/{ORGANIZER.peer_id}", "--x", "\n"]) == (
            f"swarm-peer join --run ab --initial-peers {good}"
        )
    assert join_command("ab", "m", ["--x"]) == ""


def test_the_model_is_named_where_it_can_be_had_elsewhere() -> None:
    manifest = MANIFESTS["true"]
    of_hub = manifest.model_copy(update={"weights": Weights(headers="0" * 64, revision="org/name@1")})
    of_folder = manifest.model_copy(update={"weights": Weights(headers="0" * 64)})
    assert [model_elsewhere(found) for found in (manifest, of_hub, of_folder)] == ["tiny", "tiny", ""]


def test_a_run_of_this_machine_is_not_shown_twice() -> None:
    here = OfferedRun("a", join="by invite", is_here=True, problem="no API")
    there = OfferedRun("a", replicas=(1,), join="by address")
    assert merged([here], [there, OfferedRun("b")]) == [
        OfferedRun("a", replicas=(1,), join="by invite", is_here=True),
        OfferedRun("b"),
    ]
    assert merged([here], [OfferedRun("a", problem="silent")]) == [here]
