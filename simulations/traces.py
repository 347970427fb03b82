"""When machines were there, as a table: what a cloud's or a project's log of preemptions or sessions can be made into.

    machine,begin,end,leaves
    0,0,5400,
    1,0,180.5,yes
    0,6000,,

Seconds since the run began; an empty `end` is to the run's end; `leaves` (no need of that column, nor of `stage`) says
that it left politely. Errors: `ScenarioError`, which names file, line and column.
"""

import csv
from pathlib import Path
from typing import Any

from ..errors import ScenarioError

NEEDED = ("machine", "begin", "end")
KNOWN = (*NEEDED, "leaves", "stage")
WORDS = {"": False, "no": False, "false": False, "0": False, "yes": True, "true": True, "1": True}


def read_trace(file: Path) -> list[dict[str, Any]]:
    """The sessions of a table, as a scenario has them."""
    try:
        with file.open(encoding="utf-8", newline="") as text:
            reader = csv.DictReader(text)
            names = reader.fieldnames or ()
            if not set(NEEDED) <= set(names) <= set(KNOWN):
                raise ScenarioError(
                    f"{file}:1: wanted the columns {', '.join(KNOWN)}, got {', '.join(names) or 'none'}"
                )
            return [_session(file, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(f"{file}: cannot be read: {error}") from error


def _session(file: Path, line: int, row: dict[str | None, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise ScenarioError(f"{file}:{line}: as many columns are wanted as there are names")
    column = ""
    try:
        column = "machine"
        session: dict[str, Any] = {"machine": int(row["machine"])}
        for column in ("begin", "end"):
            if row[column].strip():
                session[column] = float(row[column])
        column = "stage"
        if row.get("stage", "").strip():
            session["stage"] = int(row["stage"])
        column = "leaves"
        session["leaves"] = WORDS[row.get("leaves", "").strip().lower()]
    except (ValueError, KeyError) as error:
        raise ScenarioError(f"{file}:{line}: {column}: {row[column]!r} is none") from error
    return session
