"""`swarm-peer probe`: what this machine offers, and what it could host of a model. Measures for some seconds.

Errors: `ModelError` for a model that is not here, `UsageError` for flags that cannot be.
"""

import argparse
import json
from dataclasses import replace
from typing import Any

from ..errors import FittingError
from ..swarm.fitting import choose_each, pace_of
from ..swarm.machine import Machine, Overrides, bytes_text, overridden
from ..swarm.manifest import Manifest, parse_settings
from ..swarm.model.precision import resolve_compute_dtype
from ..swarm.plan_command import shape_of, sketched
from ..swarm.sources import TINY, cache_folder
from .lending import said_by
from .probe import probe

CUTS = (1, 2, 4, 8)
"""Into how many stages the model is cut to see what this machine could host of it."""


def run_probe(options: argparse.Namespace) -> int:
    said = said_by(options)
    shape = shape_of(options.model)
    dtype = resolve_compute_dtype()
    machine = overridden(probe(shape, options.base, dtype, disk=cache_folder(), threads=options.threads or 0), said)
    length = options.length or min(2048, shape.max_position_embeddings)
    hosting = []
    for stages in sorted({min(cut, shape.num_hidden_layers) for cut in CUTS}):
        text = (
            f'[model]\nname = "{TINY}"\nstages = {stages}\nbase = "{options.base}"\ncompute_dtype = "{dtype}"\n'
            f"[data]\nsequence_length = {length}\n"
        )
        hosting.append(_hosting(sketched(parse_settings(text, "probe"), shape), machine, said))
    found = {"model": options.model, "base": options.base, "dtype": dtype, "length": length, **_machine(machine)}
    if options.json:
        print(json.dumps({**found, "hosting": hosting}))
        return 0
    what = f"of {options.model}, base {options.base}, {length} tokens a microbatch:"
    print("\n".join([*machine_lines(machine), what, *(f"  {_sentence(entry)}" for entry in hosting)]))
    return 0


def _hosting(manifest: Manifest, machine: Machine, said: Overrides) -> dict[str, Any]:
    try:
        choices = choose_each(manifest, _computing(machine, said), [0] * manifest.stages, Overrides(stages=said.stages))
    except FittingError as error:
        return {"of": manifest.stages, "stages": 0, "problem": str(error)}
    pace = pace_of(manifest, machine, choices)
    return {
        "of": manifest.stages,
        "layers": len(manifest.layers(0)),
        "stages": sum(len(choice.stages) for choice in choices),
        "device": ", ".join(choice.device.name for choice in choices),
        "slots": min(choice.slots for choice in choices),
        "memory_bytes": sum(choice.budget.total for choice in choices),
        "seconds_a_visit": pace.seconds,
        "limit": pace.limit,
    }


def _computing(machine: Machine, said: Overrides) -> Machine:
    """With the devices that `join` would compute on: all of CUDA's, if nothing else is said and there are any."""
    cuda = tuple(device for device in machine.devices if device.kind == "cuda")
    return machine if said.device or not cuda else replace(machine, devices=cuda)


def _sentence(entry: dict[str, Any]) -> str:
    if not entry["stages"]:
        return f"cut into {entry['of']}: {entry['problem']}"
    return (
        f"cut into {entry['of']} (up to {entry['layers']} layers each): {entry['stages']} on {entry['device']}, "
        f"{bytes_text(entry['memory_bytes'])}, {entry['slots']} slots, {entry['seconds_a_visit']:.3g} s a visit "
        f"(by {entry['limit']})"
    )


def _machine(machine: Machine) -> dict[str, Any]:
    link = machine.link
    return {
        "ram_bytes": machine.ram,
        "disk_bytes": machine.disk,
        "cores": machine.cores,
        "devices": [
            {"name": device.name, "memory_bytes": device.memory, "flops": device.flops} for device in machine.devices
        ],
        "link": {"up": link.up, "down": link.down, "round_trip": link.round_trip},
    }


def machine_lines(machine: Machine) -> list[str]:
    """What a machine offers, for people."""
    lines = [f"RAM {bytes_text(machine.ram)}, disk {bytes_text(machine.disk)}, {machine.cores} cores"]
    for device in machine.devices:
        memory = "" if device.memory is None else f", {bytes_text(device.memory)}"
        lines.append(f"{device.name}: {device.flops / 1e9:.3g} GFLOP/s{memory}")
    link = machine.link
    lines.append(f"link: {link.up / 1e6:.4g} Mbit/s up, {link.down / 1e6:.4g} down, as told or assumed")
    return lines
