"""Where texts and models lie: names that `swarm-peer fetch` knows, paths, and for models the Hub or a URL.

Reads the cache folder only; fetching is `peer/fetch.py`'s, opening `model/opening.py`'s. Errors: `DataError` and
`ModelError`, which name the command to run.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import DataError, ModelError

TINY = "tiny"
"""The model without files: a small Llama with a seeded random base and one token a byte."""


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository of the Hugging Face Hub, `org/name`."""

    repo: str


@dataclass(frozen=True, slots=True)
class UrlModel:
    """A folder behind an http(s) URL, which ends with a slash."""

    url: str


ModelSource = Path | HubModel | UrlModel


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
    folder = _folder(name)
    if folder is None:
        raise _unknown(name)
    return folder


def model_source(name: str) -> ModelSource | None:
    """What `--model` means: `tiny` (None), a folder, a fetched name, a URL, an alias of `model/table.py`, a Hub id."""
    # Here, not at the top: shapes bring torch, which takes seconds that a text does not need.
    from .model.table import MODELS

    if name == TINY:
        return None
    folder = _folder(name)
    if folder is not None:
        return folder
    if name.startswith(("http://", "https://")):
        return _url(name)
    if name in MODELS and MODELS[name].repo:
        return HubModel(MODELS[name].repo)
    if _HUB_ID.fullmatch(name):
        return HubModel(name)
    raise _unknown(name)


def _folder(name: str) -> Path | None:
    given = Path(name)
    if given.is_dir():
        return given
    fetched = cache_folder() / "models" / name
    return fetched if "/" not in name and fetched.is_dir() else None


def _url(name: str) -> UrlModel:
    try:
        parts = urlsplit(name)
        is_plain = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ModelError(f"the model {name!r} is not a URL: {error}") from error
    if not is_plain or "@" in parts.netloc or parts.query or parts.fragment:
        raise ModelError(
            f"the model {name!r} is not the URL of a folder: wanted https://host/path/ without a password, query or "
            "fragment; every peer of a run reads it"
        )
    return UrlModel(name if name.endswith("/") else name + "/")


def _unknown(name: str) -> ModelError:
    return ModelError(
        f"the model {name!r} is neither a folder nor fetched; run: swarm-peer fetch {name}\n"
        "Other models: a folder, an alias such as llama-65b, a Hub id such as org/name, or an http(s) URL"
    )
