"""The simulated internet: how streams share links, and what comes when."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable

import pytest
from swarm_peer.errors import UnreachableError
from swarm_peer.simulations.directory import MemoryDirectory
from swarm_peer.simulations.internet import Internet
from swarm_peer.simulations.links import Access, Downlink, Uplink
from swarm_peer.simulations.network import MemoryStream
from swarm_peer.simulations.tcp import (
    DIAL_ROUND_TRIPS,
    FIRST_BYTES,
    LEAST_TIMEOUT_SECONDS,
    MOST_BYTES,
    Connection,
    StreamWindow,
    Turn,
    sent_again,
)
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.directory import Record

MEGABYTE = b"x" * 1_000_000
RATE = 1_000_000.0
LATENCY = 0.0005
"""So short that nobody waits for acknowledgements; of that see below."""

WAY = 2 * LATENCY
OPENING = DIAL_ROUND_TRIPS * 2 * WAY
"""Of the first stream; more of them take nothing."""


async def answer(stream: MemoryStream) -> None:
    """Notes when each frame has come, and the end as one without bytes."""
    while True:
        try:
            frame = await stream.receive()
        except UnreachableError:
            arrivals.append((asyncio.get_running_loop().time(), stream.peer, 0))
            return
        arrivals.append((asyncio.get_running_loop().time(), stream.peer, len(frame)))


arrivals: list[tuple[float, str, int]] = []


def carried(
    send: Callable[[Internet], Awaitable[None]],
    *,
    up: float = RATE,
    down: float = math.inf,
    jitter: float = 0.0,
    limit: float = 1000.0,
) -> list[tuple[float, str, int]]:
    """What has come to "far", and when: (seconds, from whom, bytes). "near" and "other" send."""

    async def main() -> list[tuple[float, str, int]]:
        arrivals.clear()
        names = ("near", "other", "far")
        accesses = {
            name: Access(Uplink(up), Downlink(down if name == "far" else math.inf), LATENCY, jitter) for name in names
        }
        network = Internet(seed=1, accesses=accesses)
        for name in names:
            await network.transport(name).serve(answer)
        await send(network)
        await asyncio.sleep(60.0)
        return list(arrivals)

    return run(main(), limit=limit)


async def opened(network: Internet, sender: str = "near") -> MemoryStream:
    return await network.nodes[sender].open("far")


def test_a_frame_takes_its_size_over_the_rate_and_the_way() -> None:
    async def send(network: Internet) -> None:
        stream = await opened(network)
        await stream.send(MEGABYTE)
        await stream.send(b"y")

    (first, _, _), (second, _, _) = carried(send)
    assert first == pytest.approx(OPENING + 1.0 + WAY)
    assert first < second == pytest.approx(first, abs=1e-3)


def test_streams_share_an_uplink_and_small_ones_pass_large_ones() -> None:
    async def send(network: Internet) -> None:
        one, two, small = [await opened(network) for _ in range(3)]
        sending = [asyncio.create_task(stream.send(MEGABYTE)) for stream in (one, two)]
        await asyncio.sleep(0.5)
        await small.send(b"beat")
        await asyncio.gather(*sending)

    beat, one, two = carried(send)
    assert beat[2] == 4
    assert beat[0] - OPENING == pytest.approx(0.5 + WAY, abs=0.2)
    assert two[0] - OPENING == pytest.approx(2.0 + WAY, abs=0.01)
    assert one[0] - OPENING == pytest.approx(2.0 + WAY, abs=0.1)


def test_what_is_posted_goes_like_what_is_sent_and_is_dropped_while_that_still_goes() -> None:
    posted: list[bool] = []

    async def send(network: Internet) -> None:
        stream = await opened(network)
        posted.append(stream.post(MEGABYTE))
        posted.append(stream.post(b"in vain"))
        await asyncio.sleep(1.5)
        posted.append(stream.post(b"beat"))
        network.cut("near", "far")
        posted.append(stream.post(b"held"))
        await asyncio.sleep(1.0)
        network.heal("near", "far")
        stream.close()
        posted.append(stream.post(b"late"))

    came = carried(send)
    assert posted == [True, False, True, True, False]
    assert [size for _, _, size in came] == [1_000_000, 4, 4, 0]
    assert came[0][0] == pytest.approx(OPENING + 1.0 + WAY)
    assert came[1][0] == pytest.approx(OPENING + 1.5 + WAY)
    assert came[2][0] > OPENING + 2.5


def test_senders_share_a_downlink() -> None:
    async def send(network: Internet) -> None:
        one, two = await opened(network, "near"), await opened(network, "other")
        await asyncio.gather(one.send(MEGABYTE), two.send(MEGABYTE))

    one, two = carried(send, up=math.inf, down=RATE)
    assert two[0] - 2 * OPENING == pytest.approx(2.0 + WAY, abs=0.01)
    assert one[0] < two[0]


def test_a_machine_s_link_is_shared_by_all_behind_it() -> None:
    async def send(network: Internet) -> None:
        network.accesses["other"] = network.accesses["near"]
        one, two = await opened(network, "near"), await opened(network, "other")
        await asyncio.gather(one.send(MEGABYTE), two.send(MEGABYTE))

    _, two = carried(send)
    assert two[0] - 2 * OPENING == pytest.approx(2.0 + WAY, abs=0.01)


def test_nothing_overtakes_within_a_stream_and_the_end_comes_last() -> None:
    async def send(network: Internet) -> None:
        stream = await opened(network)
        for size in range(1, 40):
            await stream.send(b"z" * size)
        stream.close()

    sizes = [size for _, _, size in carried(send, jitter=0.5)]
    assert sizes == [*range(1, 40), 0]


def test_who_gives_up_sending_gives_its_turn_to_others() -> None:
    """The third of three; the first two are taken in at once, as the sender's queue has room for them."""

    async def send(network: Internet) -> None:
        streams = [await opened(network) for _ in range(3)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(stream.send(MEGABYTE) for stream in streams[:2]))
        assert loop.time() == began
        sending = asyncio.create_task(streams[2].send(MEGABYTE))
        await asyncio.sleep(0.3)
        sending.cancel()
        await asyncio.wait((sending,))

    found = carried(send)
    assert [size for _, _, size in found] == [1_000_000, 1_000_000]
    assert found[-1][0] - OPENING == pytest.approx(2.1 + WAY, abs=0.01), "the third has had a third of 0.3 s"


def test_what_is_cut_is_held_and_comes_when_it_is_sent_again() -> None:
    async def send(network: Internet) -> None:
        stream = await opened(network)
        network.cut("near", "far")
        await stream.send(b"held")
        await asyncio.sleep(5.0)
        network.heal("near", "far")
        await stream.send(b"after it")

    (first, _, held), (second, _, after) = carried(send)
    timeout = 2 * WAY + LEAST_TIMEOUT_SECONDS
    assert (held, first) == (4, pytest.approx(OPENING + WAY + 31 * timeout))  # after 1, 2, 4, 8 and 16 of them
    assert (after, second) == (8, pytest.approx(first))


def test_a_cut_in_which_nothing_was_sent_delays_nothing() -> None:
    async def send(network: Internet) -> None:
        stream = await opened(network)
        network.cut("near", "far")
        await asyncio.sleep(5.0)
        network.heal("near", "far")
        await stream.send(b"after")

    ((at, _, _),) = carried(send)
    assert at == pytest.approx(5.0 + OPENING + WAY)


def test_what_was_sent_in_vain_is_sent_again_after_a_timeout_that_doubles() -> None:
    assert [sent_again(10.0, 10.0 + cut, 0.1) for cut in (0.0, 0.29, 0.31, 1.0, 7.0)] == pytest.approx(
        [10.3, 10.3, 10.9, 12.1, 19.3]
    )


def test_who_comes_again_has_new_connections() -> None:
    async def send(network: Internet) -> None:
        stream = await opened(network)
        network.cut("near", "far")
        await stream.send(b"held")
        await asyncio.sleep(5.0)
        network.nodes["near"].kill()
        network.heal("near", "far")
        await network.transport("near").serve(answer)
        await (await opened(network)).send(b"new")

    assert max(at for at, _, size in carried(send) if size == 3) < 5.1


def test_regions_are_apart() -> None:
    async def send(network: Internet) -> None:
        network.accesses["near"].region, network.accesses["far"].region = "west", "east"
        network.distances = {("east", "west"): 0.1}
        stream = await opened(network)
        await stream.send(b"y")

    ((at, _, _),) = carried(send)
    assert at == pytest.approx((2 * DIAL_ROUND_TRIPS + 1) * (WAY + 0.1), abs=1e-3)


def through_a_relay(rate: float, send: Callable[[Internet], Awaitable[None]]) -> list[tuple[float, str, int]]:
    """What has come from "near" to "far", which is reached through "relay", whose uplink has this rate."""

    async def main() -> list[tuple[float, str, int]]:
        arrivals.clear()
        accesses = {name: Access(Uplink(RATE), Downlink(), LATENCY) for name in ("near", "far")}
        accesses["relay"] = accesses["far"].relay = Access(Uplink(rate), Downlink(), LATENCY)
        network = Internet(seed=1, accesses=accesses)
        for name in ("near", "far"):
            await network.transport(name).serve(answer)
        await send(network)
        await asyncio.sleep(60.0)
        assert accesses["relay"].up.carried == accesses["relay"].down.carried > 0
        return list(arrivals)

    return run(main(), limit=1000.0)


def test_a_relay_takes_its_link_and_its_way() -> None:
    async def send(network: Internet) -> None:
        stream = await opened(network)
        await stream.send(MEGABYTE)
        await stream.send(b"short")
        await stream.send(MEGABYTE)

    found = through_a_relay(RATE / 2, send)
    assert [size for _, _, size in found] == [1_000_000, 5, 1_000_000]
    (first, _, _), _, (last, _, _) = found
    # The way to open it; a second out of the sender, two out of the relay, and the way again.
    assert first == pytest.approx(last - 2.0, abs=0.01)
    assert first - 1.0 - 2.0 == pytest.approx(2 * (OPENING + WAY), abs=1e-3)


def test_frames_of_a_stream_keep_their_order() -> None:
    async def send(network: Internet) -> None:
        stream = await opened(network)
        large = asyncio.create_task(stream.send(MEGABYTE))
        await asyncio.sleep(0.1)
        await asyncio.gather(stream.send(b"x" * 2000), stream.send(b"beat"), large)

    assert [size for _, _, size in carried(send)] == [1_000_000, 2000, 4]


def test_what_was_held_comes_after_what_was_on_its_way() -> None:
    async def send(network: Internet) -> None:
        stream = await opened(network)
        await stream.send(MEGABYTE)
        network.cut("near", "far")
        await stream.send(b"later")
        network.heal("near", "far")

    assert [size for _, _, size in carried(send, down=RATE / 4)] == [1_000_000, 5]


def test_a_fast_link_late_in_a_run_still_ends_its_frames() -> None:
    """The clock is coarser than a byte then."""

    async def send(network: Internet) -> None:
        await asyncio.sleep(900_000.0)
        stream = await opened(network)
        for _ in range(20):
            await stream.send(MEGABYTE)

    assert len(carried(send, up=1.25e9, limit=1e6)) == 20


def test_a_slow_sender_does_not_wait_behind_its_own_bytes() -> None:
    """Of two frames that end together, one came over seconds: the downlink has taken in nearly all of it before."""
    downlink = Downlink(rate=RATE)
    assert downlink.take(0.0, 6.8, 0.9 * RATE) == 6.8
    fast = downlink.take(5.9, 6.9, 0.9 * RATE)
    assert fast < 6.95
    slow = downlink.take(0.0, 6.91, 0.9 * RATE)
    assert slow < 7.3
    assert downlink.carried == pytest.approx(2.7 * RATE)


def test_many_slow_senders_fill_a_downlink() -> None:
    """Twenty at a tenth of its rate each: the last one is through when the sum of all bytes is."""
    downlink = Downlink(rate=RATE)
    through = [downlink.take(0.0, 10.0, RATE) for _ in range(20)]
    assert through[:10] == [10.0] * 10
    assert through[-1] == pytest.approx(20.0)


# ---- acknowledgements

FAST, ROUND_TRIP = 1e9, 0.2


@pytest.mark.parametrize("seed", range(5))
def test_a_downlink_passes_what_came_by_lindley_s_recursion(seed: int) -> None:
    """Beside the same in steps of half a millisecond: frames come evenly, and what has not passed waits."""
    draw, step = random.Random(seed), 5e-4
    ends = sorted(draw.uniform(0.01, 2.0) for _ in range(12))
    frames = [(end - draw.uniform(0.01, min(end, 0.4)), end, draw.uniform(1e4, 2e5)) for end in ends]
    downlink = Downlink(rate=RATE)
    for number, (began, end, size) in enumerate(frames):
        known, waiting = frames[: number + 1], 0.0
        for tick in range(round(end / step)):
            now = tick * step
            came = sum(bytes_ * step / (until - since) for since, until, bytes_ in known if since <= now < until)
            waiting = max(0.0, waiting + came - RATE * step)
        assert downlink.take(began, end, size) - end == pytest.approx(waiting / RATE, abs=4 * step)


def test_a_frame_that_comes_alone_passes_at_the_rate_of_the_downlink() -> None:
    assert Downlink(rate=RATE).take(1.0, 1.0, RATE) == 2.0
    assert Downlink(rate=RATE).take(1.0, 1.25, RATE) == 2.0
    assert Downlink(rate=RATE).take(1.0, 2.5, RATE) == 2.5


def test_a_connection_doubles_what_it_sends_in_each_round_trip() -> None:
    for rounds in range(6):
        sent = FIRST_BYTES * (2 ** (rounds + 1) - 1)
        waited = Connection().wait(Turn(), sent, FAST, ROUND_TRIP, 0.0)
        assert waited == pytest.approx(rounds * ROUND_TRIP, rel=0.01)


def test_a_connection_that_was_used_waits_no_more_until_it_is_idle() -> None:
    connection, turn = Connection(), Turn()
    assert connection.wait(turn, 2e5, FAST, ROUND_TRIP, 0.0) > 2 * ROUND_TRIP
    assert connection.wait(turn, 9e4, FAST, ROUND_TRIP, 1.0) == 0.0
    assert connection.wait(turn, 9e4, FAST, ROUND_TRIP, 60.0) > ROUND_TRIP


def test_a_connection_carries_a_window_in_a_round_trip_at_most() -> None:
    size = 20 * MOST_BYTES
    took = size / FAST + Connection(window=MOST_BYTES).wait(Turn(), size, FAST, ROUND_TRIP, 0.0)
    assert size / took == pytest.approx(MOST_BYTES / ROUND_TRIP, rel=0.1)
    halved = Connection(window=MOST_BYTES, frames=2).wait(Turn(), size, FAST, ROUND_TRIP, 0.0)
    assert halved == pytest.approx(2 * took, rel=0.1)


def test_however_many_share_a_window_it_grows() -> None:
    """All of them on one link, from the first window on: the link is what keeps them, not a rounded share."""
    size, link = 3e7, 6e6
    alone = Connection().wait(Turn(), size, link, ROUND_TRIP, 0.0)
    for share in range(2, 40):
        waited = Connection(frames=share).wait(Turn(), size, link / share, ROUND_TRIP, 0.0)
        assert waited == pytest.approx(alone, rel=0.05), share


@pytest.mark.parametrize("streams", [1, 100])
def test_frames_one_after_the_other_share_a_round_trip(streams: int) -> None:
    connection, turns, at = Connection(window=MOST_BYTES), [Turn() for _ in range(streams)], 0.0
    for frame in range(100):
        at += MOST_BYTES / 4 / FAST + connection.wait(turns[frame % streams], MOST_BYTES / 4, FAST, ROUND_TRIP, at)
    assert at == pytest.approx(25 * ROUND_TRIP, rel=0.1)


def test_a_stream_waits_for_credit_and_its_window_grows() -> None:
    window = StreamWindow()
    assert window.wait(1e5, FAST, ROUND_TRIP, 0.0) == 0.0
    first = window.wait(1e6, FAST, ROUND_TRIP, 0.1)
    assert first > ROUND_TRIP
    assert window.wait(1e6, FAST, ROUND_TRIP, 0.2 + first) < first
    assert StreamWindow().wait(1e8, 1e6, 0.1, 0.0) == 0.0, "credit comes while the link still sends"


def test_a_stream_that_is_kept_sends_its_window_without_waiting() -> None:
    """As was measured of two p2pd 100 ms apart: after some visits 1 MiB takes no more than the way and the work."""
    window = StreamWindow()
    waits = [window.wait(1 << 20, FAST, ROUND_TRIP, 10.0 * visit) for visit in range(6)]
    assert waits[0] > 1.5 * ROUND_TRIP
    assert waits[3:] == [0.0, 0.0, 0.0]


def test_a_frame_over_a_long_way_takes_its_round_trips() -> None:
    """Four of them to open the stream and four until the window of TCP is as large as it takes: 14, 29, 58, 116 kB."""

    async def send(network: Internet) -> None:
        for access in network.accesses.values():
            access.latency = 0.1
        stream = await opened(network)
        await stream.send(bytes(300_000))

    ((at, _, _),) = carried(send, up=1e8)
    assert at == pytest.approx(0.4 * (DIAL_ROUND_TRIPS + 4) + 0.2, abs=0.02)


# ---- machines that are switched off


def test_who_is_switched_off_is_not_seen_to_be_gone_until_it_is_back() -> None:
    async def send(network: Internet) -> None:
        stream = await opened(network)
        network.nodes["near"].kill(silent=True)
        await asyncio.sleep(10.0)
        assert not arrivals
        with pytest.raises(UnreachableError):
            await network.nodes["other"].open("near")
        assert asyncio.get_running_loop().time() > 15.0
        await network.transport("near").serve(answer)
        assert stream.ended

    ((at, sender, size),) = carried(send)
    assert (sender, size) == ("near", 0)
    assert at > 15.0


def test_who_is_killed_is_seen_to_be_gone() -> None:
    async def send(network: Internet) -> None:
        await opened(network)
        network.nodes["near"].kill()
        with pytest.raises(UnreachableError):
            await network.nodes["other"].open("near")

    ((at, _, size),) = carried(send)
    assert size == 0
    assert at < 1.0


def test_a_directory_shows_what_is_published_and_has_not_expired() -> None:
    async def main() -> list[list[str]]:
        directory, read = MemoryDirectory(), []

        async def look() -> None:
            read.append([f"{record.peer}{record.sequence}" for record in await directory.read("run", 1)])

        await look()
        for peer, sequence, lifetime in (("b", 1, 10.0), ("a", 1, 20.0), ("c", 1, 30.0), ("b", 2, 10.0)):
            await directory.publish(Record("run", 1, peer, (), sequence, 1), lifetime)
            await look()
        for seconds in (9.0, 1.0, 10.0, 10.0):
            await asyncio.sleep(seconds)
            await look()
        return read

    assert run(main()) == [
        [],
        ["b1"],
        ["a1", "b1"],
        ["a1", "b1", "c1"],
        ["a1", "b2", "c1"],
        ["a1", "b2", "c1"],
        ["a1", "c1"],
        ["c1"],
        [],
    ]
