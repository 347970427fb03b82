"""JSON Lines: one object a line, each a conversation, a prompt with its completion, or a text.

A line is the first of these whose keys it has: `messages` (a list of `{"role": ..., "content": ...}`), `prompt` and
`completion`, `text`. Other keys of a line are left alone; other keys of a message are refused, since a conversation
without them would be another one.

Errors: `DataError` saying what is wrong with a line; `numbered_lines` names the file, its caller the line.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .chat_template import Message

LINE_LIMIT = 1 << 22
"""Bytes of one line."""

ROLES = ("system", "user", "assistant")
WANTED = 'wanted {"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}'


@dataclass(frozen=True, slots=True)
class Conversation:
    """At least one message; each has a `role` of `ROLES` and a `content` that is not empty."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """A `prompt`, "" for a text, and what follows it."""

    prompt: str
    completion: str


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, counted from 1; one that is longer than the limit comes cut, one byte longer than it."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_LIMIT + 1):
                number += 1
                yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def parse_line(line: bytes) -> Conversation | Completion:
    """What one line holds. Raises `DataError`."""
    if len(line) > LINE_LIMIT:
        raise DataError(f"is longer than {LINE_LIMIT} bytes: split what it holds")
    if not line.strip():
        raise DataError(f"is empty; {WANTED}")
    try:
        found = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON in UTF-8: {error}; {WANTED}") from error
    if not isinstance(found, dict):
        raise DataError(f"holds a {type(found).__name__}; {WANTED}")
    if "messages" in found:
        return Conversation(_messages(found["messages"]))
    if "prompt" in found and "completion" in found:
        return Completion(_text(found, "prompt"), _text(found, "completion"))
    if "text" in found:
        return Completion("", _text(found, "text"))
    raise DataError(f"has the keys {', '.join(sorted(found)[:8]) or '(none)'}; {WANTED}")


def _messages(found: Any) -> tuple[Message, ...]:
    if not isinstance(found, list) or not found:
        came = "an empty list" if found == [] else f"a {type(found).__name__}"
        raise DataError(f"messages: is {came}; wanted a list of messages")
    return tuple(_message(message, f"messages[{place}]") for place, message in enumerate(found))


def _message(found: Any, where: str) -> Message:
    if not isinstance(found, dict) or set(found) != {"role", "content"}:
        came = f"has the keys {', '.join(sorted(found)[:8])}" if isinstance(found, dict) else f"is {found!r:.40}"
        raise DataError(f"{where}: {came}; wanted role and content, and nothing else")
    role = found["role"]
    if role not in ROLES:
        raise DataError(f"{where}: role is {role!r:.40}; wanted one of {', '.join(ROLES)}")
    return {"role": role, "content": _text(found, "content", f"{where}.")}


def _text(found: dict[str, Any], key: str, where: str = "") -> str:
    value = found[key]
    if not isinstance(value, str):
        raise DataError(f"{where}{key}: is a {type(value).__name__}; wanted a string")
    if not value:
        raise DataError(f"{where}{key}: is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may hold half a surrogate pair
        raise DataError(f"{where}{key}: is not Unicode text: {error}") from error
    return value
