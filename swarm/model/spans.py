"""The bytes of a checkpoint that are read at once: a tensor, or several small ones side by side.

A weight in nf4 is six tensors, five of them small; from the network each would be a request. Those of a piece that lie
side by side are read together, and handed out one by one.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from .files import Files
from .header import Entry

SMALL_BYTES = 4 << 20
"""A tensor of no more than this is read with the one before it."""


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor of the checkpoint: which file, and where in it."""

    file: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, stop) of a file; `tensors` of them, one after the other."""

    file: str
    start: int
    stop: int
    tensors: int = 1


def spans_of(tensors: Iterable[Located]) -> dict[Located, Span]:
    """In which span each is read."""
    spans: list[Span] = []
    members: list[list[Located]] = []
    for one in sorted(tensors, key=lambda one: (one.file, one.entry.start)):
        last = spans[-1] if spans else None
        is_next = last is not None and (last.file, last.stop) == (one.file, one.entry.start)
        if last is not None and is_next and one.entry.stop - one.entry.start <= SMALL_BYTES:
            spans[-1] = Span(last.file, last.start, one.entry.stop, last.tensors + 1)
            members[-1].append(one)
        else:
            spans.append(Span(one.file, one.entry.start, one.entry.stop))
            members.append([one])
    return {one: span for span, here in zip(spans, members, strict=True) for one in here}


class SpanReader:
    """Hands out tensors' bytes, each once, in any order. `together`: those that may share a span. A span's bytes are
    held until the last tensor of it has been handed out."""

    def __init__(self, files: Files, together: Collection[Located], came: Callable[[int], None]) -> None:
        self.spans = spans_of(together)
        self._files = files
        self._came = came
        self._held: dict[Span, tuple[memoryview, int]] = {}

    def read(self, tensor: Located) -> memoryview:
        """What the source raises."""
        entry = tensor.entry
        span = self.spans.get(tensor) or Span(tensor.file, entry.start, entry.stop)
        content, left = self._held.pop(span, (None, span.tensors))
        if content is None:
            content = memoryview(bytearray(span.stop - span.start))
            self._files.read(span.file, span.start, content, self._came)
        if span.tensors == 1:
            return content
        if left > 1:
            self._held[span] = content, left - 1
        return memoryview(bytearray(content[entry.start - span.start : entry.stop - span.start]))
