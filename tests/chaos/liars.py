"""What a schedule can have go wrong besides machines and links: memory that flips a bit, a gradient that is not finite,
a stranger who forges or repeats messages, and what is left of an epoch that is over. The rules that answer it have no
other cause among honest peers.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from swarm_peer.errors import SwarmError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.swarm.authority import from_term
from swarm_peer.swarm.epochs import Lineage
from swarm_peer.swarm.exact_backend import WIDTH, ExactState
from swarm_peer.swarm.host import Moment, StageHost
from swarm_peer.swarm.keys import Identity, delegate, sign_term
from swarm_peer.swarm.messages import pack
from swarm_peer.swarm.reduction import GroupReduction, Reducer

from tests.exact import LENGTH, open_visits

STRANGER = Identity.from_seed("stranger")
REPEATS_SECONDS = 0.05
FORGED_NUMBER = 1000


class Faulty(Protocol):
    """A backend that can be told to go wrong once. `wrong_next`: its next gradient is not finite."""

    wrong_next: bool


def flip_reduction(swarm: SimulatedSwarm, peer: str, moment: Moment) -> bool:
    """Flips a bit of what an attempt has just left with one of its members; says whether that can be told.

    It cannot where nobody holds the same, or may not get to hold it: an attempt of which one member alone answers.
    """
    reducer, stage = swarm.peers[peer]._reducer, moment.stage
    assert isinstance(reducer, Reducer)
    key = max((key for key in reducer.kept if key.step == moment.step), default=None)
    made = reducer._kept[key].get("stage") if key is not None else None
    others = [member.peer for member in swarm.trainer.roster.ready(stage) if member.peer != peer]
    if key is None or made is None or len(made.parts) < 2 or len(others) + 1 != len(made.parts):
        return False
    if any(swarm.network.is_cut(peer, other) or other in swarm.killed for other in others):
        return False
    first = bytes([made.parts[0][0] ^ 1]) + made.parts[0][1:]
    wrong = replace(made, parts=(first, *made.parts[1:]), part_digests=(bytes(32), *made.part_digests[1:]))
    reducer._kept[key]["stage"] = wrong  # type: ignore[index]  # the very mapping that its answer is made of
    return True


def spoil_what_is_over(swarm: SimulatedSwarm, lineage: Lineage) -> None:
    """Makes wrong what peers and coordinators still hold of epochs that are over. It would be right otherwise: the
    exact backend does the same again, bit by bit, and nobody would notice who takes it for a part of the run."""
    for peer in swarm.peers.values():
        if peer.host is not None and peer._reducer is not None and peer.host.authority.epoch < lineage.number:
            _spoil_host(peer.host, lineage)
            _spoil_reductions(peer._reducer)
    for coordinator in swarm.coordinators.values():
        _spoil_past(coordinator._past.values(), lineage)


def _spoil_host(host: StageHost, lineage: Lineage) -> None:
    for version, state in host.versions._states.items():
        wrong = ExactState(version, (state.weights[0] ^ 1, *state.weights[1:]))
        host.versions.put(version, wrong, host.backend.digest(wrong))
    for entry in host.gradients._steps.values():
        entry.apart = {index: host.backend.add([gradient, [1] * WIDTH]) for index, gradient in entry.apart.items()}
        entry.summed = None if entry.summed is None else host.backend.add([entry.summed, [1] * WIDTH])
    for commit in host.recollection.commits.values():
        commit.loss.residue ^= 1
    _spoil_past(host.recollection.past.values(), lineage)


def _spoil_reductions(reducer: Reducer) -> None:
    """Their digests are those of what is in them then."""
    for key, reduction in reducer._kept.items():
        reducer._kept[key] = {name: _with_a_bit_flipped(made) for name, made in reduction.items()}


def _with_a_bit_flipped(made: GroupReduction) -> GroupReduction:
    parts = tuple(bytes([part[0] ^ 1]) + part[1:] if part else part for part in made.parts)
    return replace(made, parts=parts, part_digests=tuple(hashlib.sha256(part).digest() for part in parts))


def _spoil_past(told: Iterable[pb.Past], lineage: Lineage) -> None:
    for past in told:
        if past.epoch < lineage.number and past.step >= lineage.first:
            past.loss.residue ^= 1


def spoil_gradient(swarm: SimulatedSwarm, peer: str) -> bool:
    """Has the peer's next gradient hold a NaN; says whether there is one to spoil."""
    host = swarm.peers[peer].host
    if host is None:
        return False
    backend: Faulty = host.backend  # type: ignore[assignment]
    backend.wrong_next = True
    return True


def forge_term(swarm: SimulatedSwarm, peer: str) -> bool:
    """A stranger claims to lead, delegated by himself, and says that all steps are closed."""
    host = swarm.peers[peer].host
    if host is None:
        return False
    run_id, last = swarm.manifest.run_id, swarm.manifest.stages - 1
    term = sign_term(STRANGER, run_id, FORGED_NUMBER, delegate(STRANGER, run_id, STRANGER.public_hex))
    forged = pb.Run(
        run=run_id, term=from_term(term), step=1 << 20, samples=1, first=host.stage, last=last, order=[1],
        closed=1 << 20, labels=bytes(4 * LENGTH), payload=4 * LENGTH,
    )  # fmt: skip
    _as_stranger(swarm, peer, lambda: [(pack(forged), pack(pb.Chunk(data=bytes(4 * LENGTH))))], 0.0)
    return True


def repeat_runs(swarm: SimulatedSwarm, peer: str, seconds: float) -> bool:
    """A stranger sends the Runs again that the peer is busy with, again and again for `seconds`."""
    host = swarm.peers[peer].host
    if host is None:
        return False

    def frames() -> list[list[bytes]]:
        runs = [(visit.run, visit.data) for visit in open_visits(host.visits)]
        return [[pack(run), *([pack(pb.Chunk(data=data))] if run.payload else [])] for run, data in runs]

    _as_stranger(swarm, peer, frames, seconds)
    return True


def _as_stranger(
    swarm: SimulatedSwarm, peer: str, messages: Callable[[], Iterable[Sequence[bytes]]], seconds: float
) -> None:
    """Sends what `messages` gives, each on a stream of its own, until `seconds` are over."""
    transport = swarm.network.nodes.get(STRANGER.peer_id) or swarm.network.transport(STRANGER.peer_id)

    async def send(frames: Sequence[bytes]) -> None:
        with contextlib.suppress(SwarmError):
            stream = await transport.open(peer)
            for frame in frames:
                await stream.send(frame)
            await stream.receive()
            stream.close()

    async def go_on() -> None:
        until = swarm.now + seconds
        while True:
            for frames in messages():
                transport.spawn(send(frames))
            if swarm.now >= until:
                return
            await asyncio.sleep(REPEATS_SECONDS)

    transport.spawn(go_on())
