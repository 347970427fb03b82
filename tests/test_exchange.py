"""An exchange as its callee sees it: what it waits for, and a caller that goes away meanwhile. Virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from swarm_peer.errors import ProtocolError, SilentError, UnreachableError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.network import Link, MemoryNetwork, MemoryStream
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.compute import BACKGROUND, BACKWARD, FORWARD
from swarm_peer.swarm.events import Event, Lost
from swarm_peer.swarm.exchange import CHUNK_BYTES, TIDY_SECONDS, Body, Channel, Meter, Pool
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.messages import pack, unpack
from swarm_peer.swarm.serving import Incoming, serve_exchanges
from swarm_peer.swarm.transport import Stream

from tests.callees import pause
from tests.exact import exact_manifest, exact_swarm

Wait = Callable[[Incoming], Awaitable[None]]


def waited(wait: Wait, act: Callable[[MemoryStream], Awaitable[None]]) -> tuple[str, float]:
    """How `wait` ends in a callee whose caller acts so after a second, and after how many seconds."""

    async def main() -> tuple[str, float]:
        network = MemoryNetwork(latency=(0.0, 0.0))
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[str, float]] = loop.create_future()

        async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
            began = loop.time()
            try:
                await wait(incoming)
                ended.set_result(("over", loop.time() - began))
            except (ProtocolError, UnreachableError) as error:
                ended.set_result((type(error).__name__, loop.time() - began))
                raise

        await network.transport("callee").serve(lambda stream: serve_exchanges(stream, Meter(), lambda: 0, dispatch))
        stream = await network.transport("caller").open("callee")
        await stream.send(pack(pb.Run()))
        await asyncio.sleep(1.0)
        await act(stream)
        return await ended

    return run(main(), limit=100.0)


async def close(stream: MemoryStream) -> None:
    stream.close()


async def ask_again(stream: MemoryStream) -> None:
    await stream.send(pack(pb.Run()))


async def nothing(stream: MemoryStream) -> None:
    pass


def an_event_after(seconds: float) -> Wait:
    async def wait(incoming: Incoming) -> None:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, event.set)
        await incoming.race(event)

    return wait


def a_pause_of(seconds: float) -> Wait:
    return lambda incoming: pause(incoming, seconds)


def test_a_wait_ends_with_its_event() -> None:
    assert waited(an_event_after(5.0), nothing) == ("over", 5.0)
    assert waited(an_event_after(0.5), nothing) == ("over", 0.5)
    assert waited(a_pause_of(5.0), nothing) == ("over", 5.0)


def test_a_wait_ends_when_the_caller_goes_away() -> None:
    assert waited(an_event_after(5.0), close) == ("UnreachableError", 1.0)
    assert waited(a_pause_of(5.0), close) == ("UnreachableError", 1.0)


def test_a_caller_that_asks_again_before_its_answer_breaks_the_protocol() -> None:
    assert waited(an_event_after(5.0), ask_again) == ("ProtocolError", 1.0)
    assert waited(a_pause_of(5.0), ask_again) == ("ProtocolError", 1.0)


def test_a_caller_that_went_away_before_the_wait_is_noticed_at_once() -> None:
    async def wait(incoming: Incoming) -> None:
        await asyncio.sleep(3.0)
        event = asyncio.Event()
        event.set()
        await incoming.race(event)

    assert waited(wait, close) == ("UnreachableError", 3.0)


def test_streams_that_are_not_needed_any_more_are_given_up() -> None:
    """Eight questions at once, then three at once every second, and then none but one now and then."""
    served: list[str] = []

    async def main() -> list[int]:
        network = MemoryNetwork(latency=(0.01, 0.01))

        async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
            await incoming.channel.send(pb.Fetched())

        async def serve(stream: MemoryStream) -> None:
            served.append(stream.peer)
            try:
                await serve_exchanges(stream, Meter(), lambda: 0, dispatch)
            finally:
                served.remove(stream.peer)

        await network.transport("callee").serve(serve)
        pool = Pool(network.transport("caller"), Meter())

        async def ask() -> None:
            async with pool.exchange("callee") as channel:
                await channel.send(pb.Fetch())
                await channel.receive(0)

        async def minutes(count: int, at_once: int, seconds: float) -> int:
            for _ in range(round(count * TIDY_SECONDS / seconds)):
                await asyncio.gather(*(ask() for _ in range(at_once)))
                await asyncio.sleep(seconds)
            return len(served)

        return [
            await minutes(1, 8, TIDY_SECONDS / 2),
            await minutes(2, 3, 1.0),
            await minutes(6, 3, 1.0),
            await minutes(6, 1, 5.0),
        ]

    assert run(main(), limit=3600.0) == [8, 3, 3, 1]


def first_contact(seconds: float, *, frozen: bool = False) -> tuple[str, float]:
    """How a first question to a peer ends that takes so long to be reached, and when; `frozen`: it says nothing."""

    class FarNetwork(MemoryNetwork):
        def dialling(self, caller: str, peer: str) -> float:
            return seconds

    async def main() -> tuple[str, float]:
        network = FarNetwork(latency=(0.0, 0.0))
        loop = asyncio.get_running_loop()

        async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
            await incoming.channel.send(pb.Fetched())

        callee = network.transport("callee")
        await callee.serve(lambda stream: serve_exchanges(stream, Meter(), lambda: 0, dispatch))
        if frozen:
            callee.freeze()
        pool = Pool(network.transport("caller"), Meter(), silence=3.0)
        try:
            async with pool.exchange("callee") as channel:
                await channel.send(pb.Fetch())
                await channel.receive(0)
            return "answered", loop.time()
        except SilentError:
            return "silent", loop.time()

    return run(main(), limit=100.0)


def test_a_first_contact_may_take_longer_than_a_silence() -> None:
    """Over a relay between two long ways it takes 5 s; a limit of 3 s let no such two ever meet."""
    assert first_contact(4.8) == ("answered", 4.8)
    assert first_contact(6.5) == ("silent", 6.0)
    assert first_contact(1.0, frozen=True) == ("silent", 4.0), "once it is reached the limit is the usual one"


def heard_until(pauses: Sequence[float], silences: Sequence[float]) -> float:
    """When a peer counts as silent that says something after each of these pauses, and then nothing more; `silences`:
    how long it may be so before each message, and after the last."""

    async def main() -> float:
        network, loop = MemoryNetwork(latency=(0.0, 0.0)), asyncio.get_running_loop()

        async def talk(stream: Stream) -> None:
            for gap in pauses:
                await asyncio.sleep(gap)
                await Channel(stream, Meter()).send(pb.Watch())
            await asyncio.sleep(1e4)

        await network.transport("talker").serve(talk)
        channel = Channel(await network.transport("listener").open("talker"), Meter())
        for silence in silences[:-1]:
            await channel.receive_while_heard(silence)
        with pytest.raises(SilentError, match=f"silent for {silences[-1]} s"):
            await channel.receive_while_heard(silences[-1])
        return loop.time()

    return run(main(), limit=1e5)


def test_a_peer_is_silent_from_its_last_word_on() -> None:
    assert heard_until([2.5, 2.5, 0.5], [3.0] * 4) == pytest.approx(8.5)
    assert heard_until([], [3.0]) == pytest.approx(3.0)


def test_how_long_it_may_be_silent_may_change_with_every_message() -> None:
    assert heard_until([100.0, 1.0], [600.0, 3.0, 3.0]) == pytest.approx(104.0)
    assert heard_until([1.0, 20.0], [3.0, 30.0, 30.0]) == pytest.approx(51.0)


async def pool_with(answer: Callable[[Incoming, Body], Awaitable[None]], size: int, link: Link | None = None) -> Pool:
    """A caller's pool, on `link`, in a network whose "callee" is watched and answers so; payloads of `size` at most."""
    network = MemoryNetwork(latency=(0.0, 0.0))

    async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
        await (Heartbeats(pb.Heartbeat).serve(incoming) if isinstance(body, pb.Watch) else answer(incoming, body))

    await network.transport("callee").serve(lambda stream: serve_exchanges(stream, Meter(), lambda: size, dispatch))
    return Pool(network.transport("caller", link), Meter(), silence=3.0)


def arrivals(count: int, megabytes: int) -> tuple[list[float], list[tuple[float, str]]]:
    """When it was the turn of each of so many calls that are made of a peer at once, over a link of 1 MB a second, and
    when they have come there; and a question that was asked with them."""
    turns: list[float] = []
    came: list[tuple[float, str]] = []

    async def main() -> None:
        loop, size = asyncio.get_running_loop(), megabytes << 20

        async def answer(incoming: Incoming, body: Body) -> None:
            came.append((round(loop.time()), body.DESCRIPTOR.name))
            await incoming.channel.send(pb.Fetched())

        pool = await pool_with(answer, size, Link(up=CHUNK_BYTES))

        async def ask(body: Body, payload: bytes) -> None:
            async with pool.exchange("callee") as channel:
                await channel.send(body, payload, begins=lambda: turns.append(round(loop.time())))
                await channel.receive(0)

        tensors = [ask(pb.Run(), bytes(size)) for _ in range(count)]
        await asyncio.gather(*tensors, ask(pb.Fetch(), b""))

    run(main(), limit=1000.0)
    return turns, came


def test_calls_go_to_a_peer_one_after_the_other() -> None:
    """At once, all three would come after 18 seconds; what is small waits for no more than a frame of the others."""
    turns, came = arrivals(3, 6)
    assert turns == [0, 6, 12]
    assert came == [(0, "Fetch"), (6, "Run"), (12, "Run"), (18, "Run")]


def beats(every: float, seconds: float) -> list[float]:
    """When heartbeats come from a callee that tells its caller something every so many seconds, to the end."""
    came: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def answer(incoming: Incoming, body: Body) -> None:
            while loop.time() + every < seconds:
                await pause(incoming, every)
                await incoming.channel.send(pb.Progress())
            await pause(incoming, seconds - loop.time())
            await incoming.channel.send(pb.Done())

        pool = await pool_with(answer, size=0)
        pool.on_heartbeat = lambda peer, beat: came.append(round(loop.time(), 2))
        async with pool.exchange("callee") as channel:
            await channel.send(pb.Run())
            while isinstance((await channel.receive(0))[0], pb.Progress):
                pass

    run(main(), limit=100.0)
    return came


def test_a_heartbeat_comes_for_each_second_in_which_nothing_else_does() -> None:
    assert beats(every=10.0, seconds=4.5) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert beats(every=0.6, seconds=4.5) == [0.0]
    assert beats(every=1.25, seconds=4.5) == [0.0, 1.0, 2.25, 3.5]


def busy_once(payloads: list[int], link: Link | None) -> tuple[list[tuple[float, str]], int]:
    """What is answered, and when, of calls with payloads of so many bytes, one after the other on one stream, to a
    callee that says at once of the first that it is busy; and the bytes that were sent."""
    told: list[tuple[float, str]] = []
    meter = Meter()

    async def main() -> None:
        network, loop = MemoryNetwork(latency=(0.0, 0.0)), asyncio.get_running_loop()
        asked = 0

        def at_once(body: Body, sender: str) -> Body | None:
            nonlocal asked
            asked += 1
            return pb.Busy() if asked == 1 else None

        async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
            await incoming.channel.send(pb.Done(loss=pb.Scalar(real=len(payload))))

        await network.transport("callee").serve(
            lambda stream: serve_exchanges(stream, Meter(), lambda: 1 << 30, dispatch, at_once=at_once)
        )
        channel = Channel(await network.transport("caller", link).open("callee"), meter)
        for size in payloads:
            reply, _ = await channel.ask(pb.Run(), bytes(size), 0)
            words = f"{reply.loss.real:.0f}" if isinstance(reply, pb.Done) else reply.DESCRIPTOR.name
            told.append((round(loop.time(), 3), words))

    run(main(), limit=100.0)
    return told, meter.sent


def test_a_call_that_is_answered_at_once_is_not_sent_to_its_end() -> None:
    """Of nine seconds of a tensor one is spent, and its stream is as good as before."""
    told, sent = busy_once([9 * CHUNK_BYTES, 2 * CHUNK_BYTES], Link(up=CHUNK_BYTES))
    assert told == [(0.0, "Busy"), (3.0, str(2 * CHUNK_BYTES))]
    assert sent < 3.01 * CHUNK_BYTES


def test_an_answer_at_once_that_comes_when_all_has_left_is_as_good() -> None:
    told, sent = busy_once([5, 7], None)
    assert [words for _, words in told] == ["Busy", "7"]
    assert sent > 12


def test_whoever_waits_for_his_turn_hears_at_once_that_it_is_in_vain() -> None:
    """Of two calls on a link of 1 MB a second the second may go elsewhere at once."""

    async def main() -> tuple[float, float]:
        network, loop = MemoryNetwork(latency=(0.0, 0.0)), asyncio.get_running_loop()

        async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
            await (
                Heartbeats(pb.Heartbeat).serve(incoming)
                if isinstance(body, pb.Watch)
                else incoming.channel.send(pb.Done())
            )

        await network.transport("callee").serve(
            lambda stream: serve_exchanges(
                stream,
                Meter(),
                lambda: 1 << 30,
                dispatch,
                at_once=lambda body, sender: pb.Busy() if body.step else None,
            )
        )
        pool = Pool(network.transport("caller", Link(up=CHUNK_BYTES)), Meter())

        async def ask(step: int) -> float:
            async with pool.exchange("callee") as channel:
                await channel.ask(pb.Run(step=step), bytes(5 * CHUNK_BYTES), 0)
                return round(loop.time(), 1)

        first, second = await asyncio.gather(ask(0), ask(1))
        return first, second

    assert run(main(), limit=100.0) == (5.0, 0.0)


def answers_to(*frames: bytes) -> list[str]:
    """What a callee that is busy at once says to these frames, which come one after the other."""

    async def main() -> list[str]:
        network = MemoryNetwork(latency=(0.0, 0.0))

        async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
            await incoming.channel.send(pb.Done())

        await network.transport("callee").serve(
            lambda stream: serve_exchanges(
                stream, Meter(), lambda: 10, dispatch, at_once=lambda body, sender: pb.Busy()
            )
        )
        stream = await network.transport("caller").open("callee")
        for frame in frames:
            await stream.send(frame)
        told: list[str] = []
        try:
            async with asyncio.timeout(1.0):
                while True:
                    told.append(unpack(await stream.receive(), "callee").DESCRIPTOR.name)
        except (TimeoutError, UnreachableError) as end:
            return [*told, type(end).__name__]

    return run(main(), limit=100.0)


RUN, CHUNK, NO_CHUNK = pack(pb.Run(payload=8)), pack(pb.Chunk(data=b"1234")), pack(pb.Chunk())


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        ([RUN, NO_CHUNK, RUN, CHUNK, NO_CHUNK, RUN], ["Busy", "Busy", "Busy", "TimeoutError"]),
        ([RUN, CHUNK, CHUNK, RUN, CHUNK, CHUNK, NO_CHUNK, RUN], ["Busy", "Busy", "Busy", "TimeoutError"]),
        ([RUN, NO_CHUNK, NO_CHUNK], ["Busy", "Refused", "UnreachableError"]),
        ([RUN, CHUNK, CHUNK, CHUNK], ["Busy", "Refused", "UnreachableError"]),
        ([RUN, CHUNK, RUN], ["Busy", "Refused", "UnreachableError"]),
        ([NO_CHUNK], ["Refused", "UnreachableError"]),
    ],
    ids=["the rest stays", "all of it comes", "twice no more", "too much comes", "no end", "no question"],
)
def test_after_an_answer_at_once_the_payload_comes_or_an_empty_chunk_ends_it(
    frames: list[bytes], told: list[str]
) -> None:
    assert answers_to(*frames) == told


@pytest.mark.parametrize(("heartbeat", "silence"), [(0.1, 0.3), (5.0, 12.0)])
def test_everybody_keeps_to_the_pace_of_the_manifest(heartbeat: float, silence: float) -> None:
    """Of a run whose visits take longer than anybody may be silent: nobody is taken for gone."""
    seen: list[Event] = []
    manifest = exact_manifest(steps=3)
    settings = manifest.settings
    pace = settings.pipeline.model_copy(update={"heartbeat": heartbeat, "silence": silence})
    manifest = manifest.model_copy(update={"settings": settings.model_copy(update={"pipeline": pace})})
    durations = {FORWARD: 2 * silence, BACKWARD: 3 * silence, BACKGROUND: 0.1}
    swarm = exact_swarm(manifest, emit=seen.append, durations=durations)
    report = run(swarm.run())
    assert report["faults"] == []
    assert not [event for event in seen if isinstance(event, Lost)]
    pools = [swarm.trainer.pool, *(peer.pool for peer in swarm.peers.values())]
    assert {pool.silence for pool in pools} == {silence}
