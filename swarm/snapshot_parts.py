"""A state in parts: what a donor offers, which parts are there, and who is to be asked for the next one.

Pure: knows no socket, and times are told. Every part is checked against its sha256 as it comes, and what has arrived is
never asked for again. A donor is asked for one part more at once after each that came quickly, and for half as many
after a slow one, so that a narrow link is not filled by all donors at once. When nothing is left to ask for, a donor
that has nothing to do fetches once more what another has been at for long: a slow donor does not hold up the end.

Errors: `WireError` for an offer or a part that is too large or not what it should be.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..errors import ProtocolError, WireError
from ..protos import swarm_pb2 as pb

MAX_STATE_PARTS = 1 << 14
DIGEST_BYTES = 32

MOST_AT_ONCE = 6
"""Parts that one donor is asked for at once. A fresh stream carries little in each round trip, so one is too few."""

FIRST_ALTOGETHER = 8
"""Parts that all donors together are asked for at first, one of each at the least."""

QUICK_SECONDS = 1.0
"""A part that took longer was slow."""

FIRST_PATIENCE_SECONDS, LEAST_PATIENCE_SECONDS = 3.0, 1.0
PATIENCE = 4.0
"""How many times longer than usual a part may be on its way before another donor is asked for it too. Of the streams of
one connection some carry much more than others: what is fetched twice for that takes room from the rest."""

FETCHERS = 2
"""Donors that are asked for the same part at once, at the most."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A version of a state that a donor can give: its bytes, and the sha256 of each of its parts."""

    version: int
    size: int
    digests: tuple[bytes, ...]

    def bounds(self, part: int) -> tuple[int, int]:
        """Where a part begins and ends."""
        length = part_bytes(self.size, len(self.digests))
        return part * length, min(self.size, (part + 1) * length)


def part_bytes(size: int, parts: int) -> int:
    """What each part of a state has, but for the last."""
    return -(-size // parts) if parts else 0


def parts_of(size: int, most: int) -> int:
    """In how many parts a state of `size` bytes is given, when one may have `most` bytes."""
    return -(-size // most)


def read_offer(answer: pb.Fetched, donor: str, version: int | None, max_part: int, max_bytes: int) -> Offer:
    """What a donor's answer offers. Raises `WireError` if it is another version, too large, or does not add up."""
    parts, digests = answer.parts, answer.digests
    if version not in (None, answer.version):
        raise WireError(f"{donor} was asked for version {version} and offers {answer.version}")
    if answer.size > max_bytes:
        raise WireError(f"{donor} offers a state of {answer.size} bytes; at most {max_bytes} are accepted")
    if parts > MAX_STATE_PARTS:
        raise WireError(f"{donor} offers a state in {parts} parts; at most {MAX_STATE_PARTS} are accepted")
    length = part_bytes(answer.size, parts)
    if parts != (parts_of(answer.size, length) if length else 0) or bool(parts) != bool(answer.size):
        raise ProtocolError(f"{donor} offers a state of {answer.size} bytes in {parts} parts, which does not add up")
    if length > max_part:
        raise WireError(f"{donor} offers parts of {length} bytes; at most {max_part} are accepted")
    if len(digests) != parts or any(len(digest) != DIGEST_BYTES for digest in digests):
        raise ProtocolError(
            f"{donor} offers {parts} parts and sends {len(digests)} digests, or none of {DIGEST_BYTES} bytes"
        )
    return Offer(answer.version, answer.size, tuple(digests))


def most_offered(offers: Mapping[str, Sequence[Offer]], without: Collection[Offer] = ()) -> Offer | None:
    """What most donors offer; of what equally many offer, what comes first."""
    counts = Counter(offer for made in offers.values() for offer in made if offer not in without)
    return max(counts, key=lambda offer: counts[offer], default=None)


class PartTable:
    """Which parts of an offer, which so many donors make, are there, on their way and from whom, or due."""

    def __init__(self, offer: Offer, donors: int) -> None:
        self.offer = offer
        self._at_first = max(1, min(MOST_AT_ONCE, FIRST_ALTOGETHER // donors))
        self.data = bytearray(offer.size)
        self._due = deque(range(len(offer.digests)))
        self._missing = set(self._due)
        self._coming: dict[int, dict[str, float]] = {}
        """Of each part on its way: who was asked for it, and when."""

        self._at_once: dict[str, int] = {}
        self._usual = 0.0

    @property
    def complete(self) -> bool:
        return not self._missing

    @property
    def arrived_bytes(self) -> int:
        return self.offer.size - sum(last - first for first, last in map(self.offer.bounds, self._missing))

    def next_for(self, donor: str, now: float) -> int | None:
        """The part that a donor is to be asked for now; None if it has enough to do, or there is nothing for it yet."""
        if self._has_enough(donor):
            return None
        if self._due:
            part = self._due.popleft()
        else:
            late = self._late_for(donor)
            if late is None or late[0] > now:
                return None
            part = late[1]
        self._coming.setdefault(part, {})[donor] = now
        return part

    def look_again(self, donor: str) -> float | None:
        """When there will be something for a donor that got None, if nothing happens before."""
        late = None if self._has_enough(donor) else self._late_for(donor)
        return None if late is None else late[0]

    def arrived(self, part: int, donor: str, data: bytes, now: float) -> None:
        """Takes what a donor sent. Raises `WireError` if it is not what was offered."""
        first, last = self.offer.bounds(part)
        if len(data) != last - first or hashlib.sha256(data).digest() != self.offer.digests[part]:
            raise WireError(f"{donor} sent {len(data)} bytes that are not part {part} of version {self.offer.version}")
        seconds = now - self._coming[part][donor]
        quick = seconds <= QUICK_SECONDS
        at_once = self._at_once[donor]
        self._at_once[donor] = min(MOST_AT_ONCE, at_once + 1) if quick else max(1, at_once // 2)
        self._usual += (seconds - self._usual) / 4 if self._usual else seconds
        if part in self._missing:
            self._missing.remove(part)
            self.data[first:last] = data

    def ended(self, part: int, donor: str) -> None:
        """A donor is no longer at a part, whether it came or not."""
        asked = self._coming[part]
        del asked[donor]
        if not asked:
            del self._coming[part]
            if part in self._missing:
                self._due.appendleft(part)

    def _has_enough(self, donor: str) -> bool:
        asked_for = sum(donor in asked for asked in self._coming.values())
        return asked_for >= self._at_once.setdefault(donor, self._at_first)

    def _late_for(self, donor: str) -> tuple[float, int] | None:
        """The part that another donor has been at for longest, and when this one may be asked for it."""
        coming = (
            (min(asked.values()), part)
            for part, asked in self._coming.items()
            if part in self._missing and donor not in asked and len(asked) < FETCHERS
        )
        oldest = min(coming, default=None)
        if oldest is None:
            return None
        patience = max(LEAST_PATIENCE_SECONDS, PATIENCE * self._usual) if self._usual else FIRST_PATIENCE_SECONDS
        return oldest[0] + patience, oldest[1]
