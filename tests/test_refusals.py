"""What must not be is refused with a typed error at the right side, and the run goes on to a clean end.

Whole swarms on virtual time, exact backend: every run here must also end bit-equal to the reference.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from swarm_peer.errors import NonFiniteError, RefusedError, StoppedError, SwarmError, UnreachableError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.devices import SimulatedDevice
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.authority import Authority, from_term
from swarm_peer.swarm.backend import BackwardResult, StageInput
from swarm_peer.swarm.directory import TRAINER_STAGE, Record
from swarm_peer.swarm.exact_backend import ExactArithmetic, ExactBackend
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.keys import Identity, SignedTerm, delegate, sign_manifest, sign_term
from swarm_peer.swarm.manifest import Manifest
from swarm_peer.swarm.messages import pack, unpack
from swarm_peer.swarm.peer import WRONG_STATES, Parts, Peer
from swarm_peer.swarm.transport import MAX_FRAME_BYTES

from tests.chaos.checks import check_promises
from tests.chaos.schedules import Schedule, draw_schedule
from tests.chaos.virtual import Chaos
from tests.exact import LENGTH, ORGANIZER, TRAINER, exact_manifest, exact_swarm

STAGES, STEPS, BATCH = 3, 4, 4
PLAIN = Schedule(0, staleness=1, replicas=2, standby=False, faults=(), stages=STAGES, steps=STEPS, batch=BATCH)
INTRUDER = Identity.from_seed("intruder")
Intrusion = Callable[[SimulatedSwarm], Awaitable[None]]


def clean_run(intrusion: Intrusion, *, after_steps: int = 1, **options: Any) -> dict[str, Any]:
    """A run during which `intrusion` happens, once `after_steps` steps are committed; it must end as the reference."""

    async def main() -> dict[str, Any]:
        under_way = asyncio.Event()
        seen = 0

        def emit(event: Any) -> None:
            nonlocal seen
            seen += event.kind == "stepped"
            if seen >= after_steps:
                under_way.set()

        manifest = exact_manifest(stages=STAGES, steps=STEPS, batch=BATCH)
        swarm = exact_swarm(manifest, emit=emit, **options)
        running = asyncio.create_task(swarm.run())
        if after_steps:
            await under_way.wait()
        else:
            await asyncio.sleep(0.05)
        await intrusion(swarm)
        return await running

    report = run(main(), limit=200.0)
    check_promises(report, PLAIN)
    return report


async def ask(swarm: SimulatedSwarm, peer: str, *frames: bytes) -> Any:
    """What a peer answers to frames from a stranger."""
    transport = swarm.network.nodes.get(INTRUDER.peer_id) or swarm.network.transport(INTRUDER.peer_id)
    stream = await transport.open(peer)
    for frame in frames:
        await stream.send(frame)
    try:
        return unpack(await stream.receive(), peer)
    finally:
        stream.close()


def good_run(swarm: SimulatedSwarm, stage: int = 0, **changes: Any) -> pb.Run:
    """A Run that a peer of this stage would take, but for `changes`."""
    fields: dict[str, Any] = {
        "run": swarm.manifest.run_id,
        "term": from_term(swarm.term),
        "step": STEPS + 5,
        "index": 0,
        "samples": 1,
        "version": 0,
        "first": stage,
        "last": STAGES - 1,
        "order": [1],
        "labels": bytes(4 * LENGTH),
        "payload": 4 * LENGTH,
    }
    return pb.Run(**{**fields, **changes})


TOKENS = pack(pb.Chunk(data=bytes(4 * LENGTH)))


# ---- joining


def joining_error(swarm: SimulatedSwarm, run_id: str, stage: int | None = None) -> Awaitable[SwarmError | str]:
    async def join() -> SwarmError | str:
        transport = swarm.network.transport(INTRUDER.peer_id)
        peer = Peer(transport, swarm.directory, SimulatedDevice(random.Random(1)), swarm.parts)
        try:
            return await peer.run(run_id, stage)
        except SwarmError as error:
            return error

    return join()


def test_a_stage_that_does_not_exist_is_refused() -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        error = await joining_error(swarm, swarm.manifest.run_id, stage=STAGES)
        assert isinstance(error, RefusedError)
        assert error.reason == "WRONG_STAGE"

    clean_run(intrude, after_steps=0)


def test_a_run_that_nobody_leads_is_not_found() -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        error = await joining_error(swarm, "f" * 64)
        assert isinstance(error, UnreachableError)
        assert "no trainer" in str(error)

    clean_run(intrude)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        ({"run": "f" * 64}, pb.WRONG_RUN),
        ({"protocol": 2}, pb.WRONG_PROTOCOL),
        ({"addresses": ["a"] * 17}, pb.MALFORMED),
        ({"addresses": ["a" * 300]}, pb.MALFORMED),
    ],
)
def test_a_hello_that_does_not_fit_is_refused(hello: dict[str, Any], reason: int) -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        fields = {"run": swarm.manifest.run_id, "protocol": 1, **hello}
        answer = await ask(swarm, TRAINER.peer_id, pack(pb.Hello(**fields)))
        assert isinstance(answer, pb.Refused)
        assert answer.reason == reason

    clean_run(intrude, after_steps=0)


def forged_terms(swarm: SimulatedSwarm) -> dict[str, SignedTerm]:
    run_id, stranger = swarm.manifest.run_id, Identity.from_seed("stranger")
    return {
        "delegated by a stranger": sign_term(INTRUDER, run_id, 9, delegate(stranger, run_id, INTRUDER.public_hex)),
        "delegated for another run": sign_term(INTRUDER, run_id, 9, delegate(ORGANIZER, "0" * 64, INTRUDER.public_hex)),
        "another's delegation": sign_term(INTRUDER, run_id, 9, swarm.term.delegation),
        "number changed": SignedTerm(9, swarm.term.trainer, swarm.term.delegation, swarm.term.signature),
        "unsigned": SignedTerm(9, swarm.term.trainer, swarm.term.delegation, b""),
        "empty": SignedTerm(0, "", b"", b""),
    }


def test_forged_terms_are_refused_by_peers() -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        for name, term in forged_terms(swarm).items():
            for peer in swarm.live_at(0):
                answer = await ask(swarm, peer, pack(good_run(swarm, term=from_term(term))), TOKENS)
                assert isinstance(answer, pb.Refused), name
                assert answer.reason == pb.UNTRUSTED, name

    clean_run(intrude)


def test_a_false_trainer_is_not_believed() -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        run_id = swarm.manifest.run_id
        false = Identity.from_seed("false trainer")
        transport = swarm.network.transport(false.peer_id)
        term = sign_term(false, run_id, 9, delegate(false, run_id, false.public_hex))

        async def welcome(stream: Any) -> None:
            await stream.receive()
            signed = sign_manifest(ORGANIZER, swarm.manifest)
            answer = pb.Welcome(
                manifest=signed.canonical, signature=signed.signature, term=from_term(term), member=1, stage=0
            )
            await stream.send(pack(answer))
            await asyncio.sleep(1)

        await transport.serve(welcome)
        record = Record(run_id, TRAINER_STAGE, false.peer_id, transport.addresses, sequence=9 << 32, protocol=1)
        await swarm.directory.publish(record, 100.0)
        asked.append(false.peer_id)
        assert await joining_error(swarm, run_id) == "the run is finished"
        joined.append(INTRUDER.peer_id)

    asked: list[str] = []
    joined: list[str] = []
    clean_run(intrude)
    assert asked
    assert joined


def test_a_lower_term_is_fenced() -> None:
    manifest = exact_manifest()
    authority = Authority(manifest, "peer", lambda: 0.0)
    delegation = delegate(ORGANIZER, manifest.run_id, TRAINER.public_hex)
    first, second = (from_term(sign_term(TRAINER, manifest.run_id, number, delegation)) for number in (1, 2))
    authority.admit(first, "trainer")
    authority.admit(second, "trainer")
    with pytest.raises(RefusedError) as refused:
        authority.admit(first, "trainer")
    assert refused.value.reason == "FENCED"


# ---- malformed messages


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": "f" * 64}, pb.WRONG_RUN),
        ({"epoch": 1}, pb.WRONG_EPOCH),
        ({"first": 1}, pb.WRONG_STAGE),
        ({"first": 2, "last": 1}, pb.MALFORMED),
        ({"last": STAGES}, pb.MALFORMED),
        ({"index": BATCH}, pb.MALFORMED),
        ({"samples": 0}, pb.MALFORMED),
        ({"samples": 2}, pb.MALFORMED),
        ({"order": []}, pb.MALFORMED),
        ({"order": [1] * 2000}, pb.MALFORMED),
        ({"hint": [pb.PathEntry(stage=stage) for stage in range(9)]}, pb.MALFORMED),
        ({"labels": b"short"}, pb.MALFORMED),
        ({"step": 0}, pb.CLOSED),
    ],
)
def test_a_run_that_does_not_fit_is_refused(change: dict[str, Any], reason: int) -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        await asyncio.sleep(0.5)
        for peer in swarm.live_at(0):
            answer = await ask(swarm, peer, pack(good_run(swarm, **change)), TOKENS)
            assert isinstance(answer, pb.Refused)
            assert answer.reason == reason

    clean_run(intrude)


async def answer_to_the_first_frame(swarm: SimulatedSwarm, run_message: pb.Run) -> Any:
    """What a peer of stage 0 says of a Run whose payload has not come, None if it waits for that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0.02):
            return await ask(swarm, swarm.live_at(0)[0], pack(run_message))
    return None


def test_a_peer_without_a_slot_says_so_before_a_payload_has_come() -> None:
    """But nobody that has no business here hears it."""

    async def intrude(swarm: SimulatedSwarm) -> None:
        answer = None
        while answer is None:
            answer = await answer_to_the_first_frame(swarm, good_run(swarm))
            stranger = await answer_to_the_first_frame(swarm, good_run(swarm, epoch=1))
            assert stranger is None
        assert isinstance(answer, pb.Busy)
        assert answer.retry_after_ms > 0
        assert answer.HasField("load")

    clean_run(intrude)


def malformed(swarm: SimulatedSwarm) -> dict[str, Sequence[bytes]]:
    huge, elsewhere = good_run(swarm, payload=1 << 40), good_run(swarm, epoch=1)
    return {
        "random bytes": [random.Random(7).randbytes(100)],
        "nothing": [b""],
        "a kind that peers do not serve": [pack(pb.Commit())],
        "a chunk of nothing": [TOKENS],
        "a payload above the limit": [pack(huge)],
        "an empty chunk": [pack(elsewhere), pack(pb.Chunk())],
        "a longer chunk than announced": [pack(elsewhere), pack(pb.Chunk(data=bytes(1000)))],
        "a message for a chunk": [pack(elsewhere), pack(pb.Accepted())],
        "a slice of another run": [pack(pb.Part(run="f" * 64))],
        "a Fetch that brings what nobody asked for": [pack(pb.Fetch(kind=pb.Fetch.OUTPUT, payload=4 * LENGTH)), TOKENS],
    }


def test_malformed_frames_are_refused_by_peers() -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        for name, frames in malformed(swarm).items():
            answer = await ask(swarm, swarm.live_at(0)[0], *frames)
            assert isinstance(answer, pb.Refused), name
            assert answer.reason == pb.MALFORMED, name

    clean_run(intrude)


def test_malformed_frames_end_a_strangers_control_stream() -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        for frame in (b"", b"\xff" * 50, TOKENS, pack(pb.Reduced(indices=[1]))):
            try:
                answer = await ask(swarm, TRAINER.peer_id, frame)
            except UnreachableError:
                continue
            assert isinstance(answer, pb.Refused)

    clean_run(intrude)


def test_an_oversize_frame_is_never_sent() -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        with pytest.raises(SwarmError, match="above the limit"):
            await ask(swarm, TRAINER.peer_id, bytes(MAX_FRAME_BYTES + 1))

    clean_run(intrude)


def test_what_is_not_kept_is_refused() -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        for kind in (pb.Fetch.OUTPUT, pb.Fetch.INPUT_GRADIENT, pb.Fetch.REDUCTION):
            fetch = pb.Fetch(run=swarm.manifest.run_id, kind=kind, step=99, stage=0)
            answer = await ask(swarm, swarm.live_at(0)[0], pack(fetch))
            assert isinstance(answer, pb.Refused)
            assert answer.reason == pb.NOT_KEPT

    clean_run(intrude)


def test_a_later_call_takes_a_visit_and_an_earlier_one_does_not() -> None:
    async def intrude(swarm: SimulatedSwarm) -> None:
        peer = swarm.live_at(0)[0]
        transport = swarm.network.transport(INTRUDER.peer_id)
        swarm.devices[peer].hang()

        async def call(*order: int) -> Any:
            stream = await transport.open(peer)
            for frame in (pack(good_run(swarm, mode=pb.EVAL, version=1, order=order)), TOKENS):
                await stream.send(frame)
            return stream, unpack(await stream.receive(), peer)

        async def answer(stream: Any) -> Any:
            while isinstance(message := unpack(await stream.receive(), peer), pb.Progress):
                pass
            return message

        first, accepted = await call(1, 5)
        assert isinstance(accepted, pb.Accepted)
        for order in ((1, 5), (1, 4, 9), (0, 9)):
            _, refused = await call(*order)
            assert isinstance(refused, pb.Refused)
            assert refused.reason == pb.SUPERSEDED
        later, accepted = await call(1, 5, 0)
        assert isinstance(accepted, pb.Accepted)
        assert (await answer(first)).reason == pb.SUPERSEDED
        swarm.devices[peer].resume()
        assert isinstance(await answer(later), pb.Done)

    clean_run(intrude)


# ---- numbers


class Faulty(ExactBackend):
    """An exact stage that goes wrong in one way at (step 1, microbatch 2), or at version 2."""

    def __init__(self, manifest: Manifest, stage: int, fault: str) -> None:
        super().__init__(manifest.settings.seed, stage, manifest.stages)
        self.fault = fault
        self.visit: StageInput | None = None

    def forward(self, state: Any, visit: StageInput, *, train: bool) -> Any:
        result = super().forward(state, visit, train=train)
        return type(result)(result.output, result.loss, (visit, result.context))

    def backward(self, state: Any, context: Any, output_gradient: bytes | None) -> BackwardResult:
        visit, saved = context
        result = super().backward(state, saved, output_gradient)
        if (visit.step, visit.index) == (1, 2):
            if self.fault == "NaN":
                raise NonFiniteError("the gradient of w holds NaN")
            if self.fault == "garbage":
                return BackwardResult(b"not a gradient", result.gradient)
        return result

    def digest(self, state: Any) -> bytes:
        right = super().digest(state)
        return bytes(32) if self.fault == "digest" and state.version == 2 else right

    def reduce(self, group: str, slices: Sequence[bytes], length: int) -> Any:
        return super().reduce(group, slices, length)


def faulty_parts(stage: int, fault: str, count: int) -> Parts:
    """Backends of which the first `count` of `stage` have the fault."""
    left = count

    def backend(manifest: Manifest, at: int) -> ExactBackend:
        nonlocal left
        if at == stage and left > 0:
            left -= 1
            return Faulty(manifest, at, fault)
        return Faulty(manifest, at, "none")

    return Parts(backend=backend, arithmetic=lambda manifest: ExactArithmetic())


def run_with(parts: Parts, replicas: int = 2) -> dict[str, Any]:
    swarm = exact_swarm(exact_manifest(stages=STAGES, steps=STEPS, batch=BATCH, replicas=replicas))
    swarm.parts = parts
    return run(swarm.run(), limit=200.0)


@pytest.mark.parametrize("stage", range(STAGES))
def test_a_nan_gradient_on_one_replica_is_computed_on_another(stage: int) -> None:
    check_promises(run_with(faulty_parts(stage, "NaN", 1)), PLAIN)


@pytest.mark.parametrize("stage", range(STAGES))
def test_a_nan_gradient_on_every_replica_stops_the_run_and_is_named(stage: int) -> None:
    with pytest.raises(StoppedError, match=rf"microbatch 2 of step 1 gives NaN or infinity at stage {stage}"):
        run_with(faulty_parts(stage, "NaN", 2))


@pytest.mark.parametrize("stage", [1, 2])
def test_garbage_in_place_of_a_gradient_is_asked_elsewhere(stage: int) -> None:
    check_promises(run_with(faulty_parts(stage, "garbage", 1)), PLAIN)


@pytest.mark.parametrize("stage", range(STAGES))
def test_a_replica_with_a_wrong_digest_is_declared_lost(stage: int) -> None:
    report = run_with(faulty_parts(stage, "digest", 1), replicas=3)
    check_promises(report, PLAIN)
    assert {fault["stage"] for fault in report["faults"]} == {stage}
    assert 1 <= len(report["faults"]) <= WRONG_STATES
    assert all("differs from the other replicas'" in fault["why"] for fault in report["faults"])


# ---- reductions


def test_a_member_that_misses_the_reduction_pulls_it() -> None:
    pulled = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.name, moment.stage, moment.step) == ("commit", 1, 1) and not pulled:
            pulled.append(peer)
            reducer = swarm.peers[peer]._reducer
            assert reducer is not None
            assert reducer._kept
            reducer._kept.clear()

    swarm = exact_swarm(exact_manifest(stages=STAGES, steps=STEPS, batch=BATCH), watch=watch)
    check_promises(run(swarm.run(), limit=200.0), PLAIN)
    assert pulled


@pytest.mark.parametrize("seed", range(20))
def test_streams_that_break_in_the_all_reduce_cost_an_attempt(seed: int) -> None:
    draw = random.Random(seed)
    step, stage, broken = draw.randrange(STEPS), draw.randrange(STAGES), []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if (moment.name, moment.stage, moment.step) == ("part", stage, step) and not broken:
            broken.append(peer)
            others = set(swarm.live_at(stage)) - {peer}
            for stream in swarm.network.nodes[peer]._streams:
                if stream.peer in others:
                    stream.close()

    swarm = exact_swarm(exact_manifest(stages=STAGES, steps=STEPS, batch=BATCH, replicas=3), watch=watch, seed=seed)
    report = run(swarm.run(), limit=200.0)
    check_promises(report, PLAIN)
    assert broken
    assert report["faults"] == []


@pytest.mark.parametrize("seed", range(40))
def test_gradients_beyond_the_budget_are_summed_and_still_counted_once(seed: int) -> None:
    schedule = replace(draw_schedule(seed), gradients=1)
    check_promises(Chaos(schedule).simulate(), schedule)
