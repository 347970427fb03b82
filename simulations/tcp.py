"""What TCP and libp2p's streams add to the time that a frame takes on a link: for round trips, its sender waits.

A connection learns how much its way carries. It sends twice as much in each round trip as in the one before (slow
start, RFC 5681, from the window of RFC 6928), until acknowledgements come during half of a round trip (HyStart of
Linux); from there its window grows with the cube of the time that it sends (CUBIC, RFC 9438, Linux' default). For every
timeout that it is idle it forgets half, which it learns again by slow start (RFC 2861). Within that each stream may
have sent only so much that its receiver has not taken yet: yamux' window, which doubles while it is used up within a
few round trips.

The frames of a connection share its window. Not modelled: losses, which make a window smaller.
"""

from collections import deque
from dataclasses import dataclass, field

PACKET_BYTES = 1448
WIRE = (1500 + 52 / 2) / PACKET_BYTES
"""What a byte of a tensor is on a link: packets have headers, and every second one is acknowledged. That goes the other
way, where as much is sent: an activation one way is a gradient the other."""

FIRST_BYTES = 10 * PACKET_BYTES
MOST_BYTES = 2.5e6
"""As was seen of libp2p's between two emulated machines: what one has under way at most, whatever the way holds."""

LEAST_TIMEOUT_SECONDS = 0.2

QUEUE_BYTES = 2e6
"""What a connection takes in before a sender has to wait: p2pd's queue of 64 pieces of 32 KiB, which its streams share.
Emulated peers whose tensors are smaller are as fast whether those go one after the other or at once."""

CUBIC = 0.4
"""Packets per cubed second."""

STREAM_BYTES, MOST_STREAM_BYTES = 1 << 18, 1 << 24
"""yamux' first window of a stream and its largest, in libp2p's settings."""

DOUBLING_ROUND_TRIPS = 4
DIAL_ROUND_TRIPS = 4
"""Until a first stream is open: TCP's handshake, the choice of a protocol, Noise's handshake, the choice of yamux. A
stream more takes none."""

DIAL_PAUSES = (1.0, 2.0, 2.0)
"""Seconds after which a first packet that nobody answers is sent again (RFC 6298), until libp2p gives up."""


def sent_again(since: float, now: float, round_trip: float) -> float:
    """When a connection sends again what it sent at `since` and has had no acknowledgement of until `now`: after a
    timeout, and then twice as long each time (RFC 6298)."""
    timeout = round_trip + LEAST_TIMEOUT_SECONDS
    at = since + timeout
    while at < now:
        timeout *= 2
        at += timeout
    return at


@dataclass(slots=True, eq=False)
class Turn:
    """What has been sent of a connection's window since its round trip began: by one stream of several, or by all that
    sent one after the other."""

    began: float = float("-inf")
    sent: float = 0.0


@dataclass(slots=True, eq=False)
class Connection:
    """One direction of it. `frames`: that are on their way over it now, of `queued` bytes; `busy`: the seconds for
    which it has sent; `turn`: of frames that have it to themselves."""

    window: float = FIRST_BYTES
    used: float = 0.0
    frames: int = 0
    queued: float = 0.0
    busy: float = 0.0
    turn: Turn = field(default_factory=Turn)

    def note(self, now: float, round_trip: float) -> None:
        """Something is sent, however small."""
        timeouts = int((now - self.used) / (round_trip + LEAST_TIMEOUT_SECONDS))
        if timeouts > 0:
            self.window = max(FIRST_BYTES, self.window / 2 ** min(timeouts, 30))
        self.used = max(self.used, now)

    def wait(self, turn: "Turn", size: float, rate: float, round_trip: float, began: float) -> float:
        """For how long acknowledgements are waited for while a frame of so many bytes goes out from `began` on at
        `rate` (bytes a second), of which nothing else keeps it; `turn`: its stream's."""
        self.note(began, round_trip)
        share = max(1, self.frames)
        if share == 1:
            turn = self.turn
        at, left, waited = began, size, 0.0
        while True:
            if at >= turn.began + round_trip:
                if turn.sent * share >= self.window - 1:  # shares of it do not add up to the byte
                    grown = PACKET_BYTES * CUBIC * (self.busy + at - began) ** 3
                    most = min(rate * share * round_trip / 2 + grown, MOST_BYTES)
                    self.window = max(self.window, min(2 * self.window, most))
                turn.began, turn.sent = at, 0.0
            window = self.window / share
            if window / rate >= round_trip:  # the link is what keeps it
                turn.sent, at = window, at + left / rate
                break
            room = max(0.0, window - turn.sent)
            if left <= room:
                turn.sent, at = turn.sent + left, at + left / rate
                break
            turn.sent, at, left = window, at + room / rate, left - room
            waited += max(0.0, turn.began + round_trip - at)
            at = max(at, turn.began + round_trip)
        self.used = max(self.used, at)
        self.busy += (at - began) / share
        return waited


@dataclass(slots=True, eq=False)
class StreamWindow:
    """One direction of a stream. `credit`: what may be sent now; `taken`: what the receiver has taken since it gave
    credit last, at `told`, which it does when that is half of the window; `coming`: credit on its way, and when it
    comes."""

    window: float = STREAM_BYTES
    credit: float = STREAM_BYTES
    taken: float = 0.0
    told: float = float("-inf")
    coming: deque[tuple[float, float]] = field(default_factory=deque)
    turn: Turn = field(default_factory=Turn)

    def wait(self, size: float, rate: float, round_trip: float, began: float) -> float:
        """For how long credit is waited for while a frame goes out."""
        waited, left, at = 0.0, size, began
        while left > 0:
            while self.coming and self.coming[0][0] <= at:
                self.credit += self.coming.popleft()[1]
            half = self.window / 2
            if self.credit <= 0:
                waited += self.coming[0][0] - at
                at = self.coming[0][0]
                continue
            if not self.coming and half / rate >= round_trip:  # credit comes before it is missed
                told, self.taken = divmod(self.taken + left, half)
                self.credit = self.window - self.taken
                self.told = at + left / rate if told else self.told
                return waited
            moved = min(left, self.credit, half - self.taken)
            at += moved / rate
            left, self.credit, self.taken = left - moved, self.credit - moved, self.taken + moved
            if self.taken >= half:
                before = self.window
                if at - self.told < DOUBLING_ROUND_TRIPS * round_trip:
                    self.window = min(2 * before, MOST_STREAM_BYTES)
                self.coming.append((at + round_trip, self.taken + self.window - before))
                self.taken, self.told = 0.0, at
        return waited
