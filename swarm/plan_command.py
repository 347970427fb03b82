"""`swarm-coordinator plan`: what peers of given kinds would make of a run, before it begins.

Reads the organizer's settings and the model's shape; weights and texts need not be here. The plan is `planning.py`'s.
Errors: `UsageError` for a peer that cannot be read, and those of its sources.
"""

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from .freezing import on_nf4
from .machine import MBIT, Device, Link, Machine, bytes_text, parse_memory
from .manifest import LlamaShape, Manifest, Settings, Weights, freeze, load_settings
from .model.config import TINY
from .model.opening import open_checkpoint
from .model.table import MODELS
from .planning import Plan, best_stages, plan

_SPEC = re.compile(r"(?:(\d+)x:)?(.+)")
_FIELDS = ("memory", "gflops", "up", "down", "rtt")
_DEFAULTS = {"up": "100", "down": "100", "rtt": "100ms"}
MOST_PEERS = 10_000


def run_plan(options: argparse.Namespace) -> int:
    settings = load_settings(options.manifest)
    peers = [peer for spec in options.peers for peer in parse_peers(spec)]
    manifest = sketch_of(settings)
    found, (stages, best) = plan(manifest, peers), best_stages(manifest, peers)
    if options.json:
        print(json.dumps({"stages": manifest.stages, **to_json(found), "best_stages": stages, "best": to_json(best)}))
        return 0
    print("\n".join(plan_lines(manifest, peers, found)))
    if best.tokens_per_second > 1.05 * found.tokens_per_second:
        print(f"with model.stages = {stages}: {best.tokens_per_second:.0f} tokens/s, limited by {best.limit}")
    return 0


def parse_peers(spec: str) -> list[Machine]:
    """The machines of `8x:memory=24GB,gflops=20000,up=100,down=500,rtt=60ms`. Raises `UsageError`."""
    match = _SPEC.fullmatch(spec)
    fields: dict[str, str] = {}
    for part in match[2].split(",") if match else []:
        name, _, value = part.partition("=")
        if name not in _FIELDS or name in fields or not value:
            raise UsageError(f"peer {spec!r}: {part!r} is none of {', '.join(_FIELDS)}, each once, as name=value")
        fields[name] = value
    if match is None or not {"memory", "gflops"} <= fields.keys():
        raise UsageError(f"peer {spec!r}; wanted such as 8x:memory=24GB,gflops=20000,up=100,down=500,rtt=60ms")
    count = int(match[1] or 1)
    if not 1 <= count <= MOST_PEERS:
        raise UsageError(f"peer {spec!r}: {count} of them; wanted 1 to {MOST_PEERS}")
    told = {**_DEFAULTS, **fields}
    if "%" in told["memory"]:
        raise UsageError(f"peer {spec!r}: memory is {told['memory']!r}; wanted such as 24GB")
    memory = parse_memory(told["memory"], 0)
    link = Link(
        _number(spec, "up", told["up"]) * MBIT,
        _number(spec, "down", told["down"]) * MBIT,
        _number(spec, "rtt", told["rtt"].removesuffix("ms")) / 1000,
    )
    # Planned as one memory: of a volunteer's GPU machine, RAM is what there is more of.
    device = Device("device", None, _number(spec, "gflops", told["gflops"]) * 1e9)
    return [Machine(memory, (device,), link)] * count


def _number(spec: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UsageError(f"peer {spec!r}: {name} is {text!r}; wanted a number above 0")
    return number


def shape_of(model: str) -> LlamaShape:
    """The shape of a model by its name, from the table of known ones or from wherever it lies. Raises `ModelError`,
    `UnreachableError`."""
    if model in MODELS:
        return MODELS[model].shape
    checkpoint = open_checkpoint(model)
    if checkpoint is None:
        return TINY
    with checkpoint:
        return checkpoint.shape


def sketched(settings: Settings, shape: LlamaShape) -> Manifest:
    """A manifest to reckon with, of which only shapes and settings mean anything. `auto` computes in bf16, as most GPUs
    do. Raises `ManifestError`."""
    if settings.model.compute_dtype == "auto":
        model = settings.model.model_copy(update={"compute_dtype": "bf16"})
        settings = settings.model_copy(update={"model": model})
    nothing = "0" * 64
    return freeze(
        settings=settings,
        shape=shape,
        weights=Weights(headers=nothing),
        texts_sha256=(nothing,) * len(settings.data.texts),
        heldout_sha256=(nothing,) * len(settings.data.heldout),
        organizer=nothing,
        nonce=nothing[:32],
    )


def sketch_of(settings: Settings) -> Manifest:
    """The same, of the model that the settings name: if that is in nf4, the base is too. Raises `ManifestError`, and as
    `shape_of` does."""
    name = settings.model.name
    checkpoint = None if name in MODELS else open_checkpoint(name)
    if checkpoint is None:
        return sketched(settings, shape_of(name))
    with checkpoint:
        return sketched(on_nf4(settings) if checkpoint.says_nf4 else settings, checkpoint.shape)


# ---- for people, and for scripts


def plan_lines(manifest: Manifest, peers: Sequence[Machine], found: Plan) -> list[str]:
    """One line a stage, or a span where peers host several, and what comes of it."""
    lines = [f"{'stage':<8}{'layers':<9}{'replicas':<34}{'visits/s':>9}  {'memory':>9}"]
    spans = sorted({(hosting.stages.start, hosting.stages.stop) for hosting in found.hostings})
    for first, stop in spans:
        here = [hosting for hosting in found.hostings if hosting.stages == range(first, stop)]
        layers = f"{manifest.layers(first).start}-{manifest.layers(stop - 1).stop - 1}"
        name = str(first) if stop == first + 1 else f"{first}-{stop - 1}"
        who = _peers_text([hosting.peer for hosting in here])
        most = max(hosting.budget.total for hosting in here)
        rate = min(found.rates[first:stop])
        lines.append(f"{name:<8}{layers:<9}{who:<34}{rate:>9.3g}  {bytes_text(most):>9}")
    spare = len(peers) - len(found.hostings)
    if spare:
        lines.append(f"to spare: {spare} of {len(peers)} peers (too small, or too slow to help)")
    recomputing = sum(hosting.budget.recompute for hosting in found.hostings)
    if recomputing:
        lines.append(f"{recomputing} of {len(found.hostings)} compute graphs again for want of memory")
    lines += [
        f"{found.tokens_per_second:.3g} tokens/s, {found.step_seconds:.3g} s a step "
        f"of {manifest.microbatches} microbatches",
        f"a microbatch alone takes {found.path_seconds:.3g} s; {found.wanted_in_flight:.0f} in flight would hide it, "
        f"{found.in_flight:.0f} can be",
        f"limited by {found.limit}",
    ]
    return lines


def _peers_text(peers: Sequence[int]) -> str:
    """`3 peers: 0-1, 7`."""
    runs: list[list[int]] = []
    for peer in peers:
        if runs and peer == runs[-1][-1] + 1:
            runs[-1].append(peer)
        else:
            runs.append([peer])
    listed = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    text = f"{len(peers)} peer{'s' if len(peers) > 1 else ''}: {listed}"
    return text if len(text) < 33 else f"{len(peers)} peers: {listed[:18]}..."


def to_json(found: Plan) -> dict[str, Any]:
    return {
        "tokens_per_second": found.tokens_per_second,
        "step_seconds": found.step_seconds,
        "microbatches_per_second": found.microbatches_per_second,
        "path_seconds": found.path_seconds,
        "in_flight": found.in_flight,
        "wanted_in_flight": found.wanted_in_flight,
        "limit": found.limit,
        "stage_rates": list(found.rates),
        "hostings": [
            {
                "peer": hosting.peer,
                "stages": list(hosting.stages),
                "memory_bytes": hosting.budget.total,
                "slots": hosting.budget.slots,
                "recompute": hosting.budget.recompute,
                "compute_seconds": hosting.pace.compute,
                "up_seconds": hosting.pace.up,
                "down_seconds": hosting.pace.down,
            }
            for hosting in found.hostings
        ],
    }
