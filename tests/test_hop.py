"""A hop as its caller makes it, towards callees that answer as a script says; the network in memory, virtual time."""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from swarm_peer.errors import FailedError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.network import Link, MemoryNetwork
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.directory import Record
from swarm_peer.swarm.exchange import Body, Meter, Pool
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.hedging import UNMEASURED_SECONDS, Budget
from swarm_peer.swarm.hop import Hop
from swarm_peer.swarm.least_work import least_work
from swarm_peer.swarm.neighbours import Neighbours
from swarm_peer.swarm.serving import Incoming, serve_exchanges

from tests.callees import pause

STAGE = 1
SILENCE = 3.0
PATIENCE = 30.0

Script = Callable[[Incoming], Awaitable[None]]


async def hang(incoming: Incoming) -> None:
    """Takes the visit and never gets further; its heartbeats go on."""
    await incoming.channel.send(pb.Accepted(changes=[pb.PathEntry(stage=STAGE, phase=pb.FORWARD)]))
    await incoming.race(asyncio.Event())


def answer(message: Body, after: float = 0.0) -> Script:
    async def play(incoming: Incoming) -> None:
        await pause(incoming, after)
        await incoming.channel.send(message)

    return play


def failed(reason: Any, *, stage: int = STAGE, after: float = 0.0) -> Script:
    return answer(pb.Failed(stage=stage, reason=reason), after)


def outcome(
    scripts: dict[str, Script],
    *,
    absent: tuple[str, ...] = (),
    patience: float = PATIENCE,
    view: int = sys.maxsize,
    payload: bytes = b"",
    up: float | None = None,
) -> tuple[Any, float]:
    """What a call of these callees ends with, an answer or an error, and after how many virtual seconds; `absent` ones
    are in the directory and cannot be reached; `up`: bytes a second of the caller's link."""

    async def main() -> tuple[Any, float]:
        network = MemoryNetwork(seed=1)

        async def attend(name: str) -> None:
            async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
                if isinstance(body, pb.Watch):
                    await Heartbeats(pb.Heartbeat).serve(incoming)
                else:
                    await scripts[name](incoming)

            await network.transport(name).serve(
                lambda stream: serve_exchanges(stream, Meter(), lambda: len(payload), dispatch)
            )

        for name in scripts:
            await attend(name)
        records = [Record("run", STAGE, name, (name,), 1, 1) for name in sorted((*scripts, *absent))]

        async def read(stage: int) -> list[Record]:
            return records

        caller = network.transport("caller", Link(up=up))
        pool = Pool(caller, Meter(), silence=SILENCE)
        hop = Hop(pool, Neighbours(read, pool, random.Random(1), least_work, view), max_payload=0)
        request = pb.Run(first=STAGE, last=STAGE)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            done, _ = await hop.call(
                request, payload, order=lambda: (1,), hint=dict, hear=lambda changes: None, patience=patience
            )
            return done, loop.time() - began
        except FailedError as error:
            return error, loop.time() - began

    return run(main(), limit=1000.0)


def in_order(*scripts: Script) -> dict[str, Script]:
    """As many callees, of which the first that is asked plays the first script, and so on."""
    left = list(scripts)

    async def play(incoming: Incoming) -> None:
        await left.pop(0)(incoming)

    return {f"callee {number}": play for number in range(len(scripts))}


def reason_of(ended: Any) -> tuple[int, str]:
    assert isinstance(ended, FailedError)
    return ended.stage, ended.reason


DONE = answer(pb.Done())


def test_whoever_is_cut_off_below_is_passed_over_for_one_that_is_not() -> None:
    done, seconds = outcome(in_order(failed(pb.CUT_OFF), DONE))
    assert isinstance(done, pb.Done)
    assert seconds < 1.0


def test_a_call_fails_as_cut_off_only_if_all_replicas_are() -> None:
    ended, _ = outcome({name: failed(pb.CUT_OFF) for name in "abc"})
    assert reason_of(ended) == (STAGE, "CUT_OFF")


def test_a_call_fails_as_cut_off_when_patience_is_over_with_nobody_reached() -> None:
    ended, seconds = outcome({}, absent=("a", "b"))
    assert reason_of(ended) == (STAGE, "CUT_OFF")
    assert PATIENCE < seconds < 2 * PATIENCE


def test_the_only_one_that_can_be_reached_is_found_beyond_those_that_a_caller_goes_by() -> None:
    done, seconds = outcome({"z": DONE}, absent=tuple(f"absent {number}" for number in range(30)), view=4)
    assert isinstance(done, pb.Done)
    assert seconds < 2 * PATIENCE


def test_a_tensor_that_takes_long_is_sent_again_to_a_callee_whose_stream_ended() -> None:
    """Two seconds, twice; the callee is not banned meanwhile."""

    async def drop(incoming: Incoming) -> None:
        await incoming.channel.send(pb.Accepted())
        incoming.channel.close()

    left = [drop, DONE]
    done, seconds = outcome({"only": lambda incoming: left.pop(0)(incoming)}, payload=bytes(2 << 20), up=1 << 20)
    assert isinstance(done, pb.Done)
    assert 4.0 < seconds < 4.1


def test_calls_that_wait_for_their_turn_are_not_hedged() -> None:
    """Twenty, so that it is known how long one takes to come: a second; then twenty at once."""

    async def main() -> Budget:
        network = MemoryNetwork(seed=1)

        async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
            if isinstance(body, pb.Watch):
                await Heartbeats(pb.Heartbeat).serve(incoming)
            await incoming.channel.send(pb.Accepted(changes=[pb.PathEntry(stage=STAGE, phase=pb.FORWARD)]))
            await incoming.channel.send(pb.Done())

        async def read(stage: int) -> list[Record]:
            return [Record("run", STAGE, name, (name,), 1, 1) for name in "ab"]

        for name in "ab":
            await network.transport(name).serve(
                lambda stream: serve_exchanges(stream, Meter(), lambda: 1 << 20, dispatch)
            )
        pool = Pool(network.transport("caller", Link(up=1 << 20)), Meter(), silence=SILENCE)
        hop = Hop(pool, Neighbours(read, pool, random.Random(1), least_work), max_payload=0)

        async def call(size: int) -> None:
            request = pb.Run(first=STAGE, last=STAGE)
            await hop.call(request, bytes(size), order=lambda: (1,), hint=dict, hear=lambda changes: None)

        for _ in range(20):
            await call(1 << 20)
        await asyncio.gather(*(call(1 << 20) for _ in range(20)))
        return hop.budget

    assert run(main(), limit=1000.0) == Budget(), "none has begun"


def test_one_that_was_busy_is_asked_again_before_one_that_failed_by_its_own_numbers() -> None:
    asked: list[str] = []

    async def busy_at_first(incoming: Incoming) -> None:
        asked.append("busy")
        late = len(asked) > 1
        await incoming.channel.send(pb.Done() if late else pb.Busy(retry_after_ms=50, load=pb.Load(forward=10**8)))

    async def fail(incoming: Incoming) -> None:
        asked.append("failing")
        await failed(pb.NON_FINITE)(incoming)

    ended, _ = outcome({"a": busy_at_first, "b": fail})
    assert isinstance(ended, pb.Done)
    assert asked == ["busy", "failing", "busy"]


def test_one_that_failed_by_its_own_numbers_is_asked_no_more_while_another_is_busy() -> None:
    asked: list[str] = []

    def playing(name: str, *answers: Body) -> Script:
        left = list(answers)

        async def play(incoming: Incoming) -> None:
            asked.append(name)
            await incoming.channel.send(left.pop(0) if len(left) > 1 else left[0])

        return play

    busy, fails = pb.Busy(retry_after_ms=50), pb.Failed(stage=STAGE, reason=pb.NON_FINITE)
    ended, _ = outcome({"a": playing("a", *[busy] * 5, pb.Done()), "b": playing("b", fails)})
    assert isinstance(ended, pb.Done)
    assert (asked.count("a"), asked.count("b")) == (6, 1)


def test_patience_begins_anew_with_every_answer() -> None:
    busy = 0

    async def busy_for_long(incoming: Incoming) -> None:
        nonlocal busy
        busy += 1
        await incoming.channel.send(pb.Done() if busy > 200 else pb.Busy(retry_after_ms=1000))

    done, seconds = outcome({"a": busy_for_long}, absent=("b",))
    assert isinstance(done, pb.Done)
    assert seconds > 2 * PATIENCE


def waiting_below(seconds: float) -> Script:
    """Computes for 5 s, waits below for so long, and hangs in its backward."""

    async def play(incoming: Incoming) -> None:
        await incoming.channel.send(pb.Accepted(changes=[pb.PathEntry(stage=STAGE, phase=pb.FORWARD)]))
        for gap, phase in ((5.0, pb.BELOW), (seconds, pb.BACKWARD)):
            await pause(incoming, gap)
            await incoming.channel.send(pb.Progress(changes=[pb.PathEntry(stage=STAGE, phase=phase)]))
        await incoming.race(asyncio.Event())

    return play


@pytest.mark.parametrize("seconds", [1.0, 300.0])
def test_a_call_is_hedged_by_its_callee_s_own_time_whenever_that_goes_on(seconds: float) -> None:
    ended, after = outcome(in_order(waiting_below(seconds), answer(pb.Done())))
    assert isinstance(ended, pb.Done)
    assert after == pytest.approx(seconds + UNMEASURED_SECONDS, abs=0.5)


@pytest.mark.parametrize("reason", [pb.INPUT_GONE, pb.GRADIENT_GONE])
def test_what_is_gone_ends_the_call_though_another_attempt_hangs(reason: Any) -> None:
    ended, seconds = outcome(in_order(hang, failed(reason)))
    assert reason_of(ended) == (STAGE, pb.Reason.Name(reason))
    assert UNMEASURED_SECONDS < seconds < UNMEASURED_SECONDS + 5.0, "the hedge's answer ended it at once"


def test_a_failure_further_down_is_passed_up_unchanged_and_not_tried_again() -> None:
    ended, _ = outcome(in_order(failed(pb.NON_FINITE, stage=STAGE + 1), DONE))
    assert reason_of(ended) == (STAGE + 1, "NON_FINITE")


@pytest.mark.parametrize("reason", [pb.FENCED, pb.CLOSED])
def test_what_is_final_ends_the_call_though_another_attempt_hangs(reason: Any) -> None:
    ended, seconds = outcome(in_order(hang, failed(reason)))
    assert UNMEASURED_SECONDS < seconds < UNMEASURED_SECONDS + 5.0
    assert reason_of(ended)[1] == pb.Reason.Name(reason)


def test_what_the_next_stage_calls_malformed_is_tried_by_another_replica() -> None:
    done, _ = outcome(in_order(failed(pb.MALFORMED, stage=STAGE + 1), DONE))
    assert isinstance(done, pb.Done)


def test_what_comes_out_malformed_of_two_replicas_is_passed_up() -> None:
    ended, _ = outcome({name: failed(pb.MALFORMED, stage=STAGE + 1) for name in "abc"})
    assert reason_of(ended) == (STAGE + 1, "MALFORMED")
