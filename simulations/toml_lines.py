"""On which line of a TOML text a key is: `tomllib` gives values without their places, and an error must name one."""

import re
from collections.abc import Sequence

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_PART = re.compile(r"[\w-]+|\"[^\"]*\"|'[^']*'")

Path = tuple[str | int, ...]


def line_of(text: str, path: Sequence[str | int]) -> int:
    """The line, counted from 1, of the longest beginning of `path` (keys, and indices into arrays of tables) that has
    one; 1 if none has. Lines inside strings of several lines may be taken for keys."""
    lines = _lines(text)
    for length in range(len(path), 0, -1):
        found = lines.get(tuple(path[:length]))
        if found is not None:
            return found
    return 1


def _lines(text: str) -> dict[Path, int]:
    found: dict[Path, int] = {}
    tables: dict[Path, int] = {}
    here: Path = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            here = _resolve(_keys(header[2]), tables)
            if header[1] == "[[":
                tables[here] = tables.get(here, -1) + 1
                found.setdefault(here, number)
                here = (*here, tables[here])
            found.setdefault(here, number)
        elif key := _KEY.match(line):
            found.setdefault((*here, *_keys(key[1])), number)
    return found


def _keys(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def _resolve(keys: tuple[str, ...], tables: dict[Path, int]) -> Path:
    """A header's path: what lies below an array of tables lies in its last one."""
    path: Path = ()
    for at, key in enumerate(keys):
        path = (*path, key)
        if path in tables and at < len(keys) - 1:
            path = (*path, tables[path])
    return path
