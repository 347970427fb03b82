"""The exact run: a manifest for the exact backend, its samples, and a reference loop written on its own."""

import hashlib
from collections import Counter
from typing import Any

from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.swarm.checkpoint import MemoryCheckpoints
from swarm_peer.swarm.driving import Microbatch
from swarm_peer.swarm.exact_backend import ExactArithmetic, ExactBackend
from swarm_peer.swarm.keys import Identity, delegate, sign_manifest, sign_term
from swarm_peer.swarm.manifest import LlamaShape, Manifest, freeze, parse_settings
from swarm_peer.swarm.peer import Parts
from swarm_peer.swarm.visits import Visit, VisitTable

ORGANIZER = Identity.from_seed("organizer")
TRAINER = Identity.from_seed("trainer")
LENGTH = 2

SHAPE = LlamaShape(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=64,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
    vocab_size=2,
    max_position_embeddings=8,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    tie_word_embeddings=False,
)


def exact_manifest(
    *, stages: int = 3, steps: int = 4, batch: int = 4, staleness: int = 1, replicas: int = 2, slots: int = 4
) -> Manifest:
    settings = parse_settings(
        f"""
        [model]
        name = "exact"
        stages = {stages}
        [train]
        steps = {steps}
        batch = {batch}
        [data]
        sequence_length = {LENGTH}
        [pipeline]
        staleness = {staleness}
        min_replicas = {replicas}
        slots = {slots}
        """
    )
    zeros = ("0" * 64,)
    return freeze(
        settings=settings,
        shape=SHAPE,
        texts_sha256=zeros,
        heldout_sha256=zeros,
        organizer=ORGANIZER.public_hex,
        nonce="0" * 32,
    )


class ExactSamples:
    """Token bytes that are a function of (step, index)."""

    def microbatch(self, step: int, index: int) -> Microbatch:
        data = hashlib.sha256(f"{step}/{index}".encode()).digest()[: 4 * LENGTH]
        return Microbatch(1, data, data, LENGTH)

    def heldout(self) -> list[Microbatch]:
        return [self.microbatch(-1, 0)]

    def heldout_bytes(self) -> int:
        return LENGTH


def exact_swarm(manifest: Manifest, **options: Any) -> SimulatedSwarm:
    """A simulated swarm of the manifest's `min_replicas` peers a stage."""
    signed = sign_manifest(ORGANIZER, manifest)
    delegation = delegate(ORGANIZER, manifest.run_id, TRAINER.public_hex)
    replicas = manifest.settings.pipeline.min_replicas
    return SimulatedSwarm(
        signed=signed,
        manifest=manifest,
        delegations=options.pop("delegations", {TRAINER: delegation}),
        term=sign_term(TRAINER, manifest.run_id, 1, delegation),
        parts=Parts(
            backend=lambda manifest, stage: ExactBackend(manifest.settings.seed, stage, manifest.stages),
            arithmetic=lambda manifest: ExactArithmetic(),
        ),
        samples=ExactSamples(),
        wanted=options.pop("wanted", (None,) * (manifest.stages * replicas)),
        **options,
    )


def memory(manifest: Manifest, every: int = 1) -> MemoryCheckpoints:
    """Checkpoints of an exact run, in memory."""

    def digest(stage: int, state: bytes) -> bytes:
        backend = ExactBackend(manifest.settings.seed, stage, manifest.stages)
        return backend.digest(backend.load(state))

    return MemoryCheckpoints(every, digest)


def open_visits(table: VisitTable) -> list[Visit]:
    return [visit for visit in table._visits.values() if not visit.ended]


def check_counts(table: VisitTable) -> None:
    """Counts anew what a table counts with every change of a visit."""
    visits = open_visits(table)
    below = [visit for visit in visits if visit.own.phase == pb.BELOW]
    holders = [visit.below.get(visit.own.stage + 1) for visit in below]
    assert (table.open, table.waiting_below()[0]) == (len(visits), len(below))
    assert table._waiting == Counter(holder.peer for holder in holders if holder is not None)
