"""What others have measured, beside what the simulator gives for something like it: shapes, not numbers, because their
models, devices and schedules are not ours. `validation_page.py` shows both.

Sources: SWARM (Ryabinin et al. 2023, arXiv 2301.11913), device utilization and rebalancing; DT-FM (Yuan et al. 2022,
arXiv 2206.01288), the raw tables beside its code, GPipe.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..swarm.window import WINDOW_SHARE
from ..swarm.work import forward_flops
from .cast import manifest_of
from .scenario import Scenario, parse_scenario
from .study import Study

DEVICE_FLOPS = 3e13
"""Useful operations a second of a V100 in half precision, roughly."""

WIDTHS = {576: "smollm2-135m", 2048: "tinyllama", 4096: "llama-7b", 8192: "llama-65b"}
"""Of a hidden state, and a model that has it."""

ADDED_LATENCIES = (0, 10, 50, 100, 200)
PUBLISHED_UTILIZATION = {
    768: (0.180, 0.118, 0.049, 0.028, 0.015),
    12288: (0.821, 0.793, 0.703, 0.602, 0.485),
}
"""SWARM, figure 3: BERT-base's layer and GPT-3's, at 500 Mbit/s."""

STAGES = 4

GPIPE_LINKS = ((0, 0), (10, 1000), (50, 1000))
"""(ms, Mbit/s; 0: as in a data centre)"""

PUBLISHED_GPIPE = (15.16, 22.90, 29.08)
"""Seconds a step of GPT-3 XL by GPipe on 12 V100."""

PUBLISHED_REBALANCING = (0.827, 0.958)
"""Of the best throughput: without, and with a move every 300 s."""

TEXT = """
title = "{title}"
minutes = {minutes}

[run.model]
name = "{model}"
stages = {stages}

[run.train]
steps = {steps}
batch = {batch}
lora_rank = 1
lora_targets = ["q_proj"]

[run.data]
sequence_length = {tokens}

[run.pipeline]
rebalance = 0
slots = {slots}
min_replicas = {replicas}

[coordinator]
latency = 0.5

[[peers]]
name = "equal"
count = {count}
forward = {forward}
backward = {backward}
latency = {latency}
"""


def _scenario(title: str, model: str, *changes: str, **told: float) -> Scenario:
    values = {"minutes": 600.0, "steps": 6, "batch": 32, "replicas": 1, "latency": 0.5, "tokens": 2048, **told}
    return parse_scenario(TEXT.format(title=title, model=model, **values), title, changes)


@dataclass(frozen=True, slots=True)
class Utilization:
    """Share of the devices' time that is used, at 500 Mbit/s, for each of `ADDED_LATENCIES`; `width`: of a hidden
    state; `published`: by SWARM, of its own."""

    width: int
    published: bool
    shares: tuple[float, ...]


def utilization() -> Iterator[Utilization]:
    """One layer a stage and device, four of them: the wider a layer, the more it computes for what it sends. As many
    microbatches are in flight as there are devices. What is published grows, as 1 / share, in proportion to the latency
    (of GPT-3's layer by 0.0041 to 0.0044 a ms): so much time a visit, of which no other work hides any."""
    for width, shares in PUBLISHED_UTILIZATION.items():
        yield Utilization(width, True, shares)
    for width in WIDTHS:
        yield Utilization(width, False, tuple(Study(_layer(width, added)).run().kept for added in ADDED_LATENCIES))


def _layer(width: int, added: float) -> Scenario:
    told = {
        "stages": STAGES,
        "count": STAGES,
        "slots": math.ceil(STAGES / WINDOW_SHARE),
        "batch": 64,
        "latency": 0.5 + added / 2,
    }
    links = ("peers.0.up=500", "peers.0.down=500")
    manifest = manifest_of(_scenario("one layer", WIDTHS[width], forward=1, backward=1, **told), 0)
    forward = forward_flops(manifest, range(1, 2)) / len(manifest.layers(1)) / DEVICE_FLOPS
    return _scenario(f"layers {width} wide", WIDTHS[width], *links, forward=forward, backward=3 * forward, **told)


@dataclass(frozen=True, slots=True)
class Flushed:
    """A step of a pipeline that is flushed: `latency` in ms, `rate` in Mbit/s (0: as in a data centre), seconds."""

    latency: float
    rate: float
    published: float
    simulated: float


def gpipe() -> Iterator[Flushed]:
    """GPT-3 XL's width in 11 stages, 64 microbatches a step, half precision on the wire; devices such that a step takes
    in a data centre what it took there."""
    stages, batch = 11, 64
    visit = PUBLISHED_GPIPE[0] / (batch + stages - 1)
    for (latency, rate), published in zip(GPIPE_LINKS, PUBLISHED_GPIPE, strict=True):
        codecs = ('run.codecs.activations="fp16"', 'run.codecs.gradients="fp16"', "run.pipeline.staleness=0")
        links = (f"peers.0.up={rate}", f"peers.0.down={rate}", f"peers.0.latency={latency / 2}")
        told = {"stages": stages, "count": stages, "slots": 80, "batch": batch, "steps": 4}
        scenario = _scenario(
            "a flushed pipeline", "tinyllama", *codecs, *links, forward=visit / 3, backward=2 * visit / 3, **told
        )
        yield Flushed(latency, rate, published, Study(scenario).run().step_seconds)


@dataclass(frozen=True, slots=True)
class Rebalanced:
    """Share of what the devices that were there could do; `period`: seconds between two moves, 0: none."""

    period: float
    published: float
    simulated: float


def rebalancing() -> Iterator[Rebalanced]:
    """Machines come and go (24 of them, four stages), often enough that a step must be short beside their sessions: who
    goes takes along what is not committed. What the study itself has, 400 machines and 32 stages on a trace like its
    own, is `benchmarks/rebalancing.py`."""
    for period, published in zip((0, 300), PUBLISHED_REBALANCING, strict=True):
        scenario = _scenario(
            "machines come and go",
            "llama-7b",
            f"run.pipeline.rebalance={period}",
            "peers.0.stays={mean=1500}",
            "peers.0.away={mean=900}",
            "coordinator.checkpoint_every=5",
            forward=1,
            backward=2,
            stages=4,
            count=24,
            replicas=2,
            slots=8,
            batch=32,
            steps=10_000,
            minutes=60.0,
        )
        yield Rebalanced(period, published, Study(scenario).run().kept)
