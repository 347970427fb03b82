"""How much of the devices a swarm keeps, over link speed and latency, beside two other ways to train over such links.

    python benchmarks/pipeline.py [--quick] [--emulate] [--tcp NAME] [--slots N] [--jobs J] [--json FILE] [--plot FILE]

A 65B shape in S stages with R replicas each: a visit keeps a device for 0.67 s forward and 1.34 s backward, and sends a
tensor of 16.9 MB each way (8 bits an element). Kept is what was trained of what the devices alone could, from the first
Commit to the last but one. Latency is one way, between any two peers.

`delayed`: as swarm-peer trains, updates one step late (staleness 1). `flushed`: the same code without delay: as GPipe
and 1F1B do, every step waits for the pipeline to drain and for the update. `star`: as SWARM's trainers do, every tensor
passes through the trainer, which has a link like everybody's; the same code again, with its link between any two peers.

Links and devices are simulated (`simulations/`), everything else is the product's own code. `--emulate` runs the point
at 200 Mbit/s and 100 ms with real processes over an emulated internet as well, with a twentieth of the bytes and of the
rates: it takes fifteen minutes."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from swarm_peer.simulations.emulation import Emulation
from swarm_peer.simulations.namespace import TCP
from swarm_peer.simulations.outcome import Outcome
from swarm_peer.simulations.scenario import Scenario, parse_scenario
from swarm_peer.simulations.study import Study

STAGES, REPLICAS, SLOTS, MICROBATCHES, STEPS = 4, 2, 48, 128, 6
FORWARD, BACKWARD = 0.67, 1.34
RATES = (50, 100, 200, 500, 1000)
LATENCIES = (10, 100, 300)
AT = (200, 100)
"""Mbit/s and ms at which at least `LEAST` is to be kept."""

LEAST = 0.85
WAYS = {
    "delayed": ("run.pipeline.staleness=1",),
    "flushed": ("run.pipeline.staleness=0",),
    "star": ("run.pipeline.staleness=1", "peers.0.relay=coordinator"),
}

TEXT = """
title = "Throughput kept"
minutes = 120

[run.model]
name = "{model}"
stages = {stages}

[run.train]
steps = {steps}
batch = {batch}
lora_rank = {rank}

[run.data]
sequence_length = {tokens}

[run.pipeline]
min_replicas = {replicas}
slots = {slots}
rebalance = 0

[coordinator]
latency = {latency}
up = {rate}
down = {rate}

[[peers]]
name = "equal"
count = {count}
forward = {forward}
backward = {backward}
up = {rate}
down = {rate}
latency = {latency}
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One way to train at one link: `rate` in Mbit/s, `latency` in ms, one way."""

    way: str
    rate: float
    latency: float


def scenario_of(point: Point, slots: int = SLOTS, *, scaled: bool = False) -> Scenario:
    """`slots`: of a peer; `scaled`: as the emulation has it."""
    by = 20 if scaled else 1
    text = TEXT.format(
        model="smollm2-135m" if scaled else "llama-65b",
        tokens=round(2048 * 8192 / by / 576) if scaled else 2048,
        rank=16 if scaled else 8,
        stages=STAGES,
        replicas=REPLICAS,
        slots=slots,
        steps=STEPS,
        batch=MICROBATCHES,
        count=STAGES * REPLICAS,
        forward=FORWARD,
        backward=BACKWARD,
        rate=point.rate / by,
        latency=point.latency / 2,
    )
    return parse_scenario(text, "benchmark", WAYS[point.way])


def simulate(point: Point, slots: int) -> Outcome:
    return Study(scenario_of(point, slots)).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only 200 Mbit/s and 100 ms")
    parser.add_argument("--emulate", action="store_true", help="that point with real processes, too (Linux)")
    parser.add_argument(
        "--tcp", default=TCP, metavar="NAME", help="congestion control of the real processes (default: %(default)s)"
    )
    parser.add_argument(
        "--slots", type=int, default=SLOTS, help="visits that may be open on a peer (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--plot", type=Path, help="draw the curves here")
    options = parser.parse_args()
    links = [AT] if options.quick else [(rate, latency) for latency in LATENCIES for rate in RATES]
    points = [Point(way, *link) for link in links for way in WAYS]
    in_flight = int(0.8 * options.slots * REPLICAS)
    print(
        f"S = {STAGES} stages, R = {REPLICAS} replicas, {MICROBATCHES} microbatches a step, "
        f"{options.slots} slots a peer ({in_flight} microbatches in flight)\n"
    )
    with ProcessPoolExecutor(options.jobs) as pool:
        kept = {
            point: outcome.kept
            for point, outcome in zip(points, pool.map(partial(simulate, slots=options.slots), points), strict=True)
        }
    print("| Mbit/s | ms | " + " | ".join(WAYS) + " |\n|---|---|" + "---|" * len(WAYS))
    for link in links:
        shares = " | ".join(f"{kept[Point(way, *link)]:.1%}" for way in WAYS)
        print(f"| {link[0]} | {link[1]} | {shares} |")
    emulated = emulate(options.slots, options.tcp) if options.emulate else {}
    share = kept[Point("delayed", *AT)]
    print(f"\nat {AT[0]} Mbit/s and {AT[1]} ms: {share:.1%} kept; at least {LEAST:.0%} is wanted")
    if options.json:
        rows: list[dict[str, Any]] = [{**asdict(point), "kept": share} for point, share in kept.items()]
        options.json.write_text(json.dumps({"rows": rows, "emulated": emulated}, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        draw(kept, options.plot)
    sys.exit(min([share, *emulated.values()]) < LEAST)


def emulate(slots: int, tcp: str) -> dict[str, float]:
    """Kept by real processes, by the way to train."""
    point = Point("delayed", *AT)
    scenario = scenario_of(point, slots, scaled=True)
    outcome = Emulation(scenario, tcp=tcp).run()
    simulated = Study(scenario).run()
    print(f"\nemulated at this ratio: {outcome.kept:.1%} kept; {simulated.kept:.1%} when the same is simulated")
    print(f"the router took {outcome.router:.0%} of a core")
    return {point.way: outcome.kept}


def draw(kept: dict[Point, float], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    latencies = sorted({point.latency for point in kept})
    figure, axes = pyplot.subplots(1, len(latencies), figsize=(4.5 * len(latencies), 4), sharey=True, squeeze=False)
    for axis, latency in zip(axes[0], latencies, strict=True):
        for way in WAYS:
            found: Sequence[tuple[float, float]] = sorted(
                (point.rate, share) for point, share in kept.items() if point.way == way and point.latency == latency
            )
            axis.plot([rate for rate, _ in found], [100 * share for _, share in found], marker="o", label=way)
        axis.axhline(100 * LEAST, color="0.7", linestyle="--", linewidth=0.8)
        axis.set(title=f"{latency:g} ms", xlabel="Mbit/s", xscale="log", ylim=(0, 105))
    axes[0][0].set_ylabel("% of the devices kept")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
