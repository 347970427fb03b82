"""JSON merge patches (RFC 7396): what has changed between two documents, to be sent in place of the new one.

A patch names only what differs; null removes a key. A document that is patched holds no null that matters: a value that
becomes null is removed, and whoever reads it finds nothing, which is the same to him. Pure.
"""

from collections.abc import Mapping
from typing import Any


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The patch that makes `after` of `before`."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        earlier = before.get(key)
        if isinstance(value, Mapping) and isinstance(earlier, Mapping):
            inner = difference(earlier, value)
            if inner:
                patch[key] = inner
        elif key not in before or earlier != value:
            patch[key] = value
    return patch


def apply(document: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The document after a patch."""
    after = dict(document)
    for key, value in patch.items():
        if value is None:
            after.pop(key, None)
        elif isinstance(value, Mapping):
            inner = after.get(key)
            after[key] = apply(inner if isinstance(inner, Mapping) else {}, value)
        else:
            after[key] = value
    return after
