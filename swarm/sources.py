"""Where texts and models lie on this machine: names that `swarm-peer fetch` knows, or paths.

Reads the cache folder only; fetching is `peer/fetch.py`'s. Errors: `DataError` and `ModelError`, which name the command
to run.
"""

import os
from pathlib import Path

from ..errors import DataError, ModelError

TINY = "tiny"
"""The model without files: a small Llama with a seeded random base and one token a byte."""


def cache_folder() -> Path:
    """$SWARM_PEER_HOME, else the user's cache folder."""
    chosen = os.environ.get("SWARM_PEER_HOME")
    return Path(chosen) if chosen else Path.home() / ".cache" / "swarm-peer"


def text_path(name: str) -> Path:
    """The file of a text: a path that exists, or a fetched name."""
    given = Path(name)
    if given.is_file():
        return given
    fetched = cache_folder() / "texts" / f"{name}.txt"
    if "/" not in name and fetched.is_file():
        return fetched
    raise DataError(f"the text {name!r} is neither a file nor fetched; run: swarm-peer fetch {name}")


def model_path(name: str) -> Path | None:
    """The folder of a model (config.json, safetensors, tokenizer.json): a path, or a fetched name; None for `tiny`."""
    if name == TINY:
        return None
    given = Path(name)
    if given.is_dir():
        return given
    fetched = cache_folder() / "models" / name
    if "/" not in name and fetched.is_dir():
        return fetched
    raise ModelError(f"the model {name!r} is neither a folder nor fetched; run: swarm-peer fetch {name}")
