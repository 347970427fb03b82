"""Which bytes of a file are in use: pieces taken and given back, first fit. Pure; knows no file."""

import bisect


class Extents:
    """Space from 0 to at most `limit`. `end` is where the last piece in use ends."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.end = 0
        self._free: list[tuple[int, int]] = []
        """(offset, length) of the gaps below `end`, ascending; no two of them touch."""

    def take(self, length: int) -> int | None:
        """The offset of a piece of `length` bytes, or None if there is no room for it."""
        for position, (offset, room) in enumerate(self._free):
            if room >= length:
                if room == length:
                    del self._free[position]
                else:
                    self._free[position] = (offset + length, room - length)
                return offset
        if self.end + length > self.limit:
            return None
        offset = self.end
        self.end += length
        return offset

    def give_back(self, offset: int, length: int) -> None:
        """Frees a piece that was taken."""
        position = bisect.bisect(self._free, (offset, length))
        if position < len(self._free) and self._free[position][0] == offset + length:
            length += self._free.pop(position)[1]
        if position and sum(self._free[position - 1]) == offset:
            offset, before = self._free.pop(position - 1)
            length += before
            position -= 1
        if offset + length == self.end:
            self.end = offset
        elif length:
            self._free.insert(position, (offset, length))
