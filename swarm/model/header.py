"""The header of a safetensors file, read before any of its tensors: which are there, and which bytes they are.

The format: 8 bytes, little endian, the length of a JSON table; the table; the tensors' bytes. A header from anywhere
is checked whole, so that no offset in it can point outside the file or into another tensor.

Errors: `ModelError`, naming the file and what is wrong with it.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError

LENGTH_BYTES = 8
HEADER_LIMIT = 32 << 20
"""Bytes of the table; that of the largest models' shards is a few hundred kilobytes."""

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: dtype by the format's name, shape, and its bytes [start, stop) in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def broken(where: str, why: str) -> ModelError:
    return ModelError(f"{where}: is not a whole safetensors file ({why}); fetch it again")


def header_length(prefix: bytes, size: int, where: str) -> int:
    """How many bytes the table has, from the first 8 of a file of `size` bytes. Raises `ModelError`."""
    if len(prefix) < LENGTH_BYTES:
        raise broken(where, f"it has {size} bytes")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > min(HEADER_LIMIT, size - LENGTH_BYTES):
        raise broken(where, f"its header is said to have {length} bytes, the file has {size}")
    return length


def parse_header(table: bytes, size: int, where: str) -> dict[str, Entry]:
    """Name -> entry, from the table of a file of `size` bytes. Raises `ModelError`."""
    try:
        decoded = json.loads(table)
    except (ValueError, RecursionError) as error:
        raise broken(where, f"its header is not JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise broken(where, f"its header is a {type(decoded).__name__}")
    decoded.pop("__metadata__", None)
    offset = LENGTH_BYTES + len(table)
    entries = {name: _entry(name, fields, offset, where) for name, fields in decoded.items()}
    reached = offset
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != reached:
            raise broken(where, f"{name} begins at byte {entry.start}; what comes before it ends at {reached}")
        reached = entry.stop
    if reached != size:
        raise broken(where, f"its header wants {reached} bytes, the file has {size}")
    return entries


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(name: str, fields: Any, offset: int, where: str) -> Entry:
    if not isinstance(fields, dict):
        raise broken(where, f"{name} is a {type(fields).__name__}")
    dtype, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str):
        raise broken(where, f"{name} has dtype {dtype!r}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise broken(where, f"{name} has shape {shape!r}")
    if not isinstance(span, list) or len(span) != 2 or not all(map(_is_count, span)) or span[0] > span[1]:
        raise broken(where, f"{name} has offsets {span!r}")
    wanted = math.prod(shape) * _ITEM_BYTES.get(dtype, 0)
    if dtype in _ITEM_BYTES and span[1] - span[0] != wanted:
        raise broken(where, f"{name} has {span[1] - span[0]} bytes; {dtype} of shape {tuple(shape)} has {wanted}")
    return Entry(dtype, tuple(shape), offset + span[0], offset + span[1])
