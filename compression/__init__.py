"""Wire codecs: a tensor as bytes that say what they are, and back, whoever sent them.

Naming a codec needs no torch, so the functions that do are imported on first use: programs that only ask a run how it
is start in a fraction of the time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .spec import CodecSpec

if TYPE_CHECKING:
    from .codec import decode, encode, encoded_bytes
    from .feedback import ErrorFeedback

__all__ = ["CodecSpec", "ErrorFeedback", "decode", "encode", "encoded_bytes"]

_MODULES = {"ErrorFeedback": "feedback", "decode": "codec", "encode": "codec", "encoded_bytes": "codec"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value
