"""From what `--model` says to a `Checkpoint`, wherever it lies.

The Hub is $HF_ENDPOINT, else Hugging Face's; $HF_TOKEN is sent there and nowhere else. Errors: `ModelError`, and what
the source raises (see `ranges.py`, `weight_cache.py`).
"""

import hashlib
import os
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

from ...errors import ModelError, StorageError
from ..sources import HubModel, cache_folder, model_source
from .checkpoint import Checkpoint
from .files import Files, FolderFiles

HUB = "https://huggingface.co"
TOKENIZER = "tokenizer.json"
BESIDE_TOKENIZER = ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "generation_config.json")
_TOKENIZER_BYTES = 64 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_checkpoint(name: str, revision: str = "") -> Checkpoint | None:
    """The checkpoint of a model, None for `tiny`. `revision`: a manifest's, so that a repository of the Hub is read at
    the commit that the run was started with. The caller closes it (a context manager)."""
    files = open_files(name, revision)
    if files is None:
        return None
    with ExitStack() as on_error:
        on_error.callback(files.close)
        checkpoint = Checkpoint(files)
        on_error.pop_all()
    return checkpoint


def open_files(name: str, revision: str = "") -> Files | None:
    """The files of a model, None for `tiny`; see `open_checkpoint`."""
    source = model_source(name)
    if source is None:
        return None
    if isinstance(source, Path):
        return FolderFiles(source)
    # Here, not at the top: an HTTP client takes a tenth of a second that a local model does not need.
    from .http_files import HttpFiles
    from .ranges import RangeClient

    if not isinstance(source, HubModel):
        return HttpFiles(RangeClient(source.url), source.url)
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    repo, _, commit = revision.rpartition("@")
    at = commit if repo == source.repo and _COMMIT.fullmatch(commit) else "main"
    page = f"{endpoint}/{source.repo}"
    return HttpFiles(RangeClient(f"{page}/resolve/{at}/", hub=page, token=_token()), source.repo)


def tokenizer_folder(files: Files) -> Path:
    """A folder with a model's tokenizer.json, and what it has of chat template and special tokens; of a remote model
    these are copied into the cache folder first. Raises `ModelError`, `StorageError`."""
    if files.is_local:
        return Path(files.where)
    contents = {TOKENIZER: files.whole(TOKENIZER, _TOKENIZER_BYTES)}
    contents |= {name: files.whole(name, _TOKENIZER_BYTES) for name in BESIDE_TOKENIZER if files.has(name)}
    digest = hashlib.sha256(b"".join(contents[name] for name in sorted(contents))).hexdigest()
    target = cache_folder() / "tokenizers" / digest
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _place(target / name, content)
    except OSError as error:
        raise StorageError(
            f"{target}: cannot be written: {error.strerror}; free some space there, or set SWARM_PEER_HOME to a folder "
            "on another disk"
        ) from error
    return target


def _place(path: Path, content: bytes) -> None:
    """Writes a file that appears under its name when it is whole."""
    descriptor, written = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(written, path)
    finally:
        Path(written).unlink(missing_ok=True)


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ModelError("HF_TOKEN holds characters that no access token has; set it to yours, or unset it")
    return token
