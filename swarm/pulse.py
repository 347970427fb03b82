"""The pulse of a run: what members say of themselves and where the trainer is, as one event now and then.

Of a large swarm it comes more seldom, so that a log grows by about as much whoever takes part. Only what is new is in
it. What members say is cleaned here: bounded, and without anything that a terminal or a page could take for its own.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..protos import swarm_pb2 as pb
from . import events
from .exchange import Meter
from .loads import from_message
from .roster import Member, Roster

PULSE_SECONDS = 1.0
MEMBERS_A_SECOND = 100
"""Of more members than that a pulse comes so many seconds apart as there are hundreds of them."""

MAX_LINKS = 8
"""Links that a member is believed."""

MAX_NAME = 64
MAX_COUNT = 1 << 60


@dataclass
class Pulses:
    """`standing()`: (the newest step that is issued, microbatches in flight, the window)."""

    roster: Roster
    meter: Meter
    standing: Callable[[], tuple[int, int, int]]
    emit: Callable[[events.Event], None]
    _told: dict[int, events.MemberPulse] = field(default_factory=dict)
    _links: dict[tuple[int, str], events.LinkPulse] = field(default_factory=dict)

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(max(PULSE_SECONDS, len(self.roster.live()) / MEMBERS_A_SECOND))
            self.beat()

    def beat(self) -> None:
        """Tells what is new, if anything is."""
        members, links = [], []
        live = self.roster.live()
        for member in live:
            pulse = pulse_of(member)
            if self._told.get(member.number) != pulse:
                self._told[member.number] = pulse
                members.append(pulse)
            for link in links_of(member):
                if self._links.get((link.member, link.peer)) != link:
                    self._links[link.member, link.peer] = link
                    links.append(link)
        numbers = {member.number for member in live}
        for gone in self._told.keys() - numbers:
            del self._told[gone]
        for key in [key for key in self._links if key[0] not in numbers]:
            del self._links[key]
        step, in_flight, window = self.standing()
        if members or links:
            sent = self.meter.sent + self.meter.received
            self.emit(events.Pulse(tuple(members), tuple(links), step, in_flight, window, sent))


def pulse_of(member: Member) -> events.MemberPulse:
    """What a member has last said of itself."""
    beat = member.beat
    load = from_message(beat.load)
    return events.MemberPulse(
        member=member.number,
        version=member.version,
        open=min(beat.open_visits, MAX_COUNT),
        below=min(beat.below, beat.open_visits),
        waits_for=clean(beat.waits_for),
        forward=0.0 if load is None else load.forward,
        backward=0.0 if load is None else load.backward,
        codec_seconds=beat.codec_microseconds / 1e6,
        activation_bytes=min(beat.activation_bytes, MAX_COUNT),
        gradient_bytes=min(beat.gradient_bytes, MAX_COUNT),
        reduce_bytes=min(beat.reduce_bytes, MAX_COUNT),
        busy=min(beat.busy, MAX_COUNT),
        refused=_refusals(beat),
    )


def _refusals(beat: pb.Heartbeat) -> tuple[tuple[str, int], ...]:
    """By the names of the reasons that this version knows."""
    counts: dict[str, int] = {}
    for entry in beat.refused[: len(pb.Reason.values())]:
        if entry.reason in pb.Reason.values():
            counts[pb.Reason.Name(entry.reason)] = min(entry.count, MAX_COUNT)
    return tuple(sorted(counts.items()))


def links_of(member: Member) -> list[events.LinkPulse]:
    """The links that a member has measured."""
    return [
        events.LinkPulse(member.number, clean(link.peer), link.round_trip_us / 1e6, min(link.rate, MAX_COUNT))
        for link in member.beat.links[:MAX_LINKS]
    ]


def clean(text: str) -> str:
    """What a peer says, for people's terminals and pages: letters, digits and few signs, not long."""
    return re.sub(r"[^\w ().,:+-]", "", text[:MAX_NAME]).strip()
