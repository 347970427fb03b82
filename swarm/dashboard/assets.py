"""The page's files: read once, named by their contents, compressed once."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    """`tag`: of the contents, for caches."""

    content: bytes
    compressed: bytes
    type: str
    tag: str


def asset(content: bytes, suffix: str) -> Asset:
    return Asset(content, gzip.compress(content, 9, mtime=0), TYPES[suffix], hashlib.sha256(content).hexdigest()[:16])


def read_assets() -> tuple[Asset, dict[str, Asset]]:
    """The page, and its other files by their hashed names, which the page and its files have in place of `{{name}}`."""
    names: dict[str, str] = {}
    files: dict[str, Asset] = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in TYPES and path.suffix != ".html":
            found = asset(path.read_bytes(), path.suffix)
            names[path.name] = f"{path.stem}.{found.tag}{path.suffix}"
            files[names[path.name]] = found
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    for name, hashed in names.items():
        page = page.replace("{{" + name + "}}", f"/static/{hashed}")
    return asset(page.encode(), ".html"), files
