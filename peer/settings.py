"""The flags that `demo` and `reference` share, and the settings that they mean. Errors: `UsageError`,
`ManifestError`."""

import argparse
from typing import Any

from ..errors import ManifestError, UsageError
from ..swarm.manifest import Settings, parse_settings
from ..swarm.sources import TINY

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_BASE = "nf4"
MODEL_HELP = (
    "tiny, a fetched name, a folder, an alias such as llama-65b, a Hugging Face Hub id (org/name), or the http(s) URL "
    "of a folder; of a remote model only the stage's own bytes are read"
)

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    TINY: {
        "train": {"steps": 20, "batch": 8, "microbatch": 1, "mode": "full"},
        "data": {"sequence_length": 64},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 3},
    },
    "": {
        "train": {"steps": 20, "batch": 8, "microbatch": 1, "mode": "lora"},
        "data": {"sequence_length": 128},
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 2},
    },
}
"""By model; the empty name is for every other."""

TINY_LORA_RATE = 5e-4
"""At tiny's own rate adapters on a random base come to rest within a few steps; the gradient that is left then is
smaller than what one rounding of an 8-bit code makes of it."""


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a run on this machine."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: {DEFAULT_MODEL})")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=2, help="peers a stage")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--staleness", type=int, choices=(0, 1), default=1, help="1: the one-step delayed update")
    parser.add_argument(
        "--codec", help="of both directions, such as int8+columns or nf4 (default: int8 down, dynamic8 back)"
    )
    parser.add_argument(
        "--base",
        choices=("fp32", "bf16", "int8", "nf4"),
        help="what the frozen base's linear layers are held in (default: nf4; of tiny fp32)",
    )
    parser.add_argument("--train", choices=("lora", "full"), help="adapters on a frozen base, or everything")
    parser.add_argument("--seed", type=int, default=0)


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that the flags mean. Raises `ManifestError`."""
    return parse_settings(toml_of(options), "the flags given")


def toml_of(options: argparse.Namespace) -> str:
    """The same as a manifest file, TOML."""
    if options.replicas < 1:
        raise UsageError(f"--replicas is {options.replicas}; a stage needs at least one peer")
    tables = {name: dict(table) for name, table in PRESETS.get(options.model, PRESETS[""]).items()}
    tables["model"] = {"name": options.model, "stages": options.stages}
    mode = options.train or tables["train"]["mode"]
    base = options.base or (DEFAULT_BASE if options.model != TINY and mode == "lora" else None)
    if base is not None:
        tables["model"]["base"] = base
    tables["pipeline"] = {"staleness": options.staleness, "min_replicas": options.replicas}
    if options.steps is not None:
        tables["train"]["steps"] = options.steps
    if options.train is not None:
        tables["train"]["mode"] = options.train
    if options.model == TINY and tables["train"]["mode"] == "lora":
        tables["optimizer"] = {**tables["optimizer"], "learning_rate": TINY_LORA_RATE}
    if options.codec is not None:
        tables["codecs"] = {"activations": options.codec, "gradients": options.codec}
    lines = [f"seed = {options.seed}"]
    for name, table in tables.items():
        lines.append(f"\n[{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        if any(ord(character) < 32 for character in value):
            raise ManifestError(f"{value!r} holds control characters")
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
