"""The link to peers of the run, measured on virtual time: as fast as it is, and nobody is waited for."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.directory import MemoryDirectory
from swarm_peer.simulations.network import Link, MemoryNetwork
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.directory import Record
from swarm_peer.swarm.exchange import Meter, Pool
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.link import MAX_PROBE_BYTES, MOST_BYTES, Measured, measure_link, refusal_of_payload, serve_nothing
from swarm_peer.swarm.manifest import Manifest
from swarm_peer.swarm.serving import serve_exchanges

from tests.exact import exact_manifest


def measured(
    manifest: Manifest,
    peers: int,
    *,
    up: float | None = None,
    down: float | None = None,
    deaf: int = -1,
    serves: str = "",
    takes: int = MAX_PROBE_BYTES,
) -> Measured:
    """What a joiner with so many bytes a second up and down finds with peers of 50 ms each way, of which one is deaf
    and which serve another run, or take less, if that is said."""

    async def main() -> Measured:
        network, directory = MemoryNetwork(latency=(0.05, 0.05)), MemoryDirectory()
        for number in range(peers):
            node = network.transport(f"peer {number}")

            async def serve(stream: Any, number: int = number) -> None:
                async def dispatch(incoming: Any, body: Any, payload: bytes) -> None:
                    if isinstance(body, pb.Watch):
                        await Heartbeats(pb.Heartbeat).serve(incoming)
                    elif number == deaf:
                        await asyncio.Event().wait()
                    else:
                        await serve_nothing(incoming, body, serves or manifest.run_id)

                await serve_exchanges(stream, Meter(), lambda: takes, dispatch)

            await node.serve(serve)
            await directory.publish(Record(manifest.run_id, 0, node.peer_id, node.addresses, number, 1), 60.0)
        pool = Pool(network.transport("joiner", Link(up=up, down=down)), Meter())
        found = await measure_link(manifest, pool, directory)
        pool.close()
        for transport in network.nodes.values():
            await transport.close()
        return found

    return run(main(), limit=60.0)


def test_the_link_is_as_fast_as_it_is() -> None:
    found = measured(exact_manifest(), 2, up=5e5, down=2e6)
    assert found.round_trips == pytest.approx([0.1, 0.1], rel=0.01)
    for samples, rate, size in ((found.down, 2e6, 1 << 20), (found.up, 5e5, 1 << 18)):
        assert [moved for moved, _ in samples] == [size, size], "no more than it takes to see"
        assert [moved / seconds for moved, seconds in samples] == pytest.approx([rate, rate], rel=0.05)


def test_a_fast_link_is_not_filled_for_long() -> None:
    assert [moved for moved, _ in measured(exact_manifest(), 1, up=1e9, down=1e9).up] == [MOST_BYTES]


def test_what_was_measured_before_a_peer_gave_up_stands() -> None:
    found = measured(exact_manifest(), 2, down=2e6, takes=100)
    assert (len(found.round_trips), len(found.down), found.up) == (2, 2, [])


def test_only_a_few_are_asked() -> None:
    assert len(measured(exact_manifest(), 9).round_trips) == 3


def test_who_does_not_answer_is_passed_over() -> None:
    assert len(measured(exact_manifest(), 2, deaf=0).round_trips) == 1
    assert measured(exact_manifest(), 2, serves="another").round_trips == []
    assert measured(exact_manifest(), 0) == Measured()


def test_nobody_gives_more_than_the_limit() -> None:
    sent: list[int] = []

    class Channel:
        async def send(self, body: Any, payload: bytes = b"") -> None:
            sent.append(len(payload))

    incoming: Any = SimpleNamespace(channel=Channel())
    asyncio.run(serve_nothing(incoming, pb.Fetch(run="r", part=(1 << 32) - 1), "r"))
    assert sent == [MAX_PROBE_BYTES]


def test_nobody_takes_more_than_the_limit_or_what_is_not_asked_for() -> None:
    assert refusal_of_payload(pb.Fetch(kind=pb.Fetch.NOTHING, payload=MAX_PROBE_BYTES)) is None
    for question, reason in (
        (pb.Fetch(kind=pb.Fetch.NOTHING, payload=MAX_PROBE_BYTES + 1), pb.TOO_LARGE),
        (pb.Fetch(kind=pb.Fetch.OUTPUT, payload=1), pb.MALFORMED),
    ):
        refused = refusal_of_payload(question)
        assert isinstance(refused, pb.Refused)
        assert refused.reason == reason
