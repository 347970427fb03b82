"""Conversations packed into windows: one goes on where the one before it ends, and each token comes once a pass.

In each pass the conversations stand in an order of its own, keyed by the seed and the number of the pass, one after the
other without padding; the passes follow each other in the same way. Window n is the T+1 tokens from n * T on
(T = `data.sequence_length`), so a conversation that a window cuts goes on in the next. As in most packers, attention
and positions are not reset where conversations meet: a token sees the ones before it in its window, whosever they are.

Errors: `DataError` for a step that could hold nothing to learn.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .data import Row, id_type, pass_order


@dataclass(frozen=True, slots=True, eq=False)
class Conversations:
    """Token ids [n] in the narrowest type, of each a bit for whether it is learned, and where conversations begin
    [count + 1]. `gap`: the most tokens in a row, in any order of conversations, of which none is learned."""

    tokens: NDArray[np.generic]
    bits: NDArray[np.uint8]
    starts: NDArray[np.int64]
    gap: int
    text_bytes: int = 0

    @classmethod
    def of(cls, items: Iterable[tuple[NDArray[np.int32], NDArray[np.bool_]]], vocab_size: int) -> "Conversations":
        """From ids [n] and what is learned [n], which must hold one True at least, of each conversation in turn."""
        kind = id_type(vocab_size)
        ids, bits, starts = bytearray(), bytearray(), [0]
        rest = np.zeros(0, np.bool_)
        inside = head = tail = 0
        for tokens, learned in items:
            ids += tokens.astype(kind).tobytes()
            starts.append(starts[-1] + tokens.size)
            rest = np.concatenate([rest, learned])
            whole = rest.size - rest.size % 8
            bits += np.packbits(rest[:whole]).tobytes()
            rest = rest[whole:]
            places = np.flatnonzero(learned)
            inside = max(inside, int(np.diff(places).max(initial=1)) - 1)
            head, tail = max(head, int(places[0])), max(tail, learned.size - 1 - int(places[-1]))
        bits += np.packbits(rest).tobytes()
        return cls(
            np.frombuffer(ids, kind),
            np.frombuffer(bits, np.uint8),
            np.array(starts, dtype=np.int64),
            max(inside, head + tail),
        )

    def __len__(self) -> int:
        return int(self.tokens.size)

    def window(self, start: int, length: int) -> Row:
        """The length + 1 tokens from `start` on, in the order of the file, and which of them are learned."""
        return self.slice(start, start + length + 1)

    def slice(self, first: int, last: int) -> Row:
        bits = np.unpackbits(self.bits[first // 8 : -(-last // 8)])
        return self.tokens[first:last], bits[first % 8 :][: last - first].astype(np.bool_)

    def order(self, seed: int, length: int, samples: int) -> "PackedOrder":
        """The windows of training; `samples` of them make a step. Raises `DataError`."""
        if self.gap >= samples * length:
            raise DataError(
                f"a step of {samples} samples of {length} tokens can fall into {self.gap} tokens of which none is "
                "learned: raise train.batch or data.sequence_length, or shorten what is only read"
            )
        return PackedOrder(self, seed, length)


class PackedOrder:
    """Window by number. Keeps the order of two passes, which may meet in a window."""

    def __init__(self, conversations: Conversations, seed: int, length: int) -> None:
        self._conversations, self._seed, self._length = conversations, seed, length
        self._sizes = np.diff(conversations.starts)
        self._passes: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def window(self, number: int) -> Row:
        which, place = divmod(number * self._length, len(self._conversations))
        pieces, missing = self._take(which, place, self._length + 1)
        while missing:
            which += 1
            more, missing = self._take(which, 0, missing)
            pieces += more
        tokens, learned = zip(*pieces, strict=True)
        return np.concatenate(tokens), np.concatenate(learned)

    def _take(self, which: int, place: int, wanted: int) -> tuple[list[Row], int]:
        """At most `wanted` tokens from a place in a pass on, in pieces, and how many are missing at its end."""
        order, ends = self._pass(which)
        pieces: list[Row] = []
        at = int(np.searchsorted(ends, place, side="right"))
        while wanted and at < order.size:
            conversation = int(order[at])
            last = int(self._conversations.starts[conversation + 1])
            first = last - (int(ends[at]) - place)
            piece = self._conversations.slice(first, min(last, first + wanted))
            pieces.append(piece)
            wanted -= piece[0].size
            place = int(ends[at])
            at += 1
        return pieces, wanted

    def _pass(self, which: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The conversations of a pass in order, and where in the pass each ends."""
        if which not in self._passes:
            order = pass_order(self._seed, which, self._sizes.size)
            if len(self._passes) == 2:
                del self._passes[next(iter(self._passes))]
            self._passes[which] = (order, np.cumsum(self._sizes[order]))
        return self._passes[which]
