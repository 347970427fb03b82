"""The tiny run: a manifest on a synthetic text, its samples, and the simulated swarm of it on torch."""

from typing import Any

from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.swarm.arithmetic import RealArithmetic
from swarm_peer.swarm.data import Corpus, CorpusSamples
from swarm_peer.swarm.keys import Identity, delegate, sign_manifest, sign_term
from swarm_peer.swarm.manifest import (
    CodecSettings,
    DataSettings,
    Manifest,
    ModelSettings,
    OptimizerSettings,
    PipelineSettings,
    Settings,
    TrainSettings,
    freeze,
)
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.model.weights import stage_base
from swarm_peer.swarm.peer import Parts
from swarm_peer.swarm.tokenizer import ByteTokenizer
from swarm_peer.swarm.torch_backend import TorchBackend

ORGANIZER = Identity.from_seed("organizer")
TRAINER = Identity.from_seed("trainer")
TEXT = " ".join(f"The {n}th line says {n * n % 97} and no more than that." for n in range(400))
HELDOUT = " ".join(f"An unseen line, {n * 31 % 89} long, of another kind!" for n in range(100))


def tiny_manifest(
    *,
    mode: Any = "lora",
    staleness: Any = 1,
    activations: Any = "fp32",
    gradients: Any = "fp32",
    base: Any = "auto",
    stages: int = 3,
    replicas: int = 2,
    steps: int = 12,
    batch: int = 4,
    microbatch: int = 1,
    seed: int = 3,
) -> Manifest:
    return freeze(
        settings=Settings(
            seed=seed,
            model=ModelSettings(name="tiny", stages=stages, base=base),
            train=TrainSettings(mode=mode, steps=steps, batch=batch, microbatch=microbatch),
            data=DataSettings(sequence_length=32, heldout_tokens=128),
            optimizer=OptimizerSettings(learning_rate=1e-3),
            pipeline=PipelineSettings(staleness=staleness, min_replicas=replicas),
            codecs=CodecSettings(activations=activations, gradients=gradients),
        ),
        shape=TINY,
        texts_sha256=("0" * 64,),
        heldout_sha256=("0" * 64,),
        organizer=ORGANIZER.public_hex,
        nonce="0" * 32,
    )


def corpora() -> tuple[Corpus, Corpus]:
    tokenizer = ByteTokenizer()
    return Corpus(tokenizer.encode(TEXT), len(TEXT)), Corpus(tokenizer.encode(HELDOUT), len(HELDOUT))


def tiny_swarm(manifest: Manifest, **options: Any) -> SimulatedSwarm:
    """A simulated swarm of the manifest's `min_replicas` peers a stage, computing with torch."""
    delegation = delegate(ORGANIZER, manifest.run_id, TRAINER.public_hex)
    peers = manifest.stages * manifest.settings.pipeline.min_replicas
    return SimulatedSwarm(
        signed=sign_manifest(ORGANIZER, manifest),
        manifest=manifest,
        delegations=options.pop("delegations", {TRAINER: delegation}),
        term=sign_term(TRAINER, manifest.run_id, 1, delegation),
        parts=options.pop("parts", Parts(backend=backend, arithmetic=RealArithmetic)),
        samples=options.pop("samples", None) or CorpusSamples(manifest, *corpora()),
        wanted=(None,) * peers,
        **options,
    )


def backend(manifest: Manifest, stage: int) -> TorchBackend:
    return TorchBackend(manifest, stage, stage_base(manifest, stage, None))
