"""Where the peers of a run are placed: several ways that are good, to be compared by what comes of them. Pure.

Two kinds of way. One stage each, so that the slowest stage is as fast as can be: first every stage is covered (a
matching, since not every peer holds every stage), then peers are moved and swapped for as long as the slowest stage
gains. And columns of peers that deal spans out among them, which is better for those that have memory to spare and
little link, and all there is for fewer peers than stages. Each with and without those who are left over.

Errors: `FittingError` when the peers cannot hold the model: how many more are needed, of which size.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import FittingError
from .advice import LEAST_SLOTS
from .budget import Budget, budget
from .machine import Machine, bytes_text
from .manifest import Manifest
from .work import Pace, pace


@dataclass(frozen=True, slots=True)
class Hosting:
    """What one peer hosts, as planned. `peer`: its place in what was given."""

    peer: int
    budget: Budget
    pace: Pace

    @property
    def stages(self) -> range:
        return self.budget.stages


def ways_to_place(manifest: Manifest, peers: Sequence[Machine]) -> list[list[Hosting]]:
    """Several good placements, of which the caller takes the fastest. Raises `FittingError` if there is none."""
    candidates = _Candidates(manifest, peers)
    ways = [_deal_out_columns(manifest, candidates, columns) for columns in _column_counts(len(peers))]
    covered = _cover(manifest.stages, len(peers), candidates)
    if covered is not None:
        singles = {peer: range(stage, stage + 1) for peer, stage in covered.items()}
        ways.append(_improve(manifest.stages, _with_the_rest(manifest.stages, singles, candidates), candidates))
    # With few microbatches in flight, a slow replica more may cost more than it brings: so without the rest as well.
    ways += [_with_the_rest(manifest.stages, way, candidates) for way in ways if way]
    found = [_hostings(way, candidates) for way in ways if way]
    if not found:
        raise _too_few(manifest, _deal_out(manifest, range(len(peers)), candidates)[1])
    return found


class _Candidates:
    """What each peer could host. Equal machines and equal spans are looked at once."""

    def __init__(self, manifest: Manifest, peers: Sequence[Machine]) -> None:
        self._manifest, self.peers = manifest, peers
        kinds: dict[Machine, int] = {}
        self.kinds = [kinds.setdefault(machine, len(kinds)) for machine in peers]
        self._known: dict[tuple[object, ...], tuple[Budget, Pace] | None] = {}
        self._spans: dict[tuple[int, int, int], tuple[Budget, Pace] | None] = {}
        self._rates: dict[tuple[int, int], float] = {}

    def of(self, peer: int, stages: range) -> tuple[Budget, Pace] | None:
        place = self.kinds[peer], stages.start, stages.stop
        if place not in self._spans:
            self._spans[place] = self._like(peer, stages)
        return self._spans[place]

    def _like(self, peer: int, stages: range) -> tuple[Budget, Pace] | None:
        """From an equal span, if there was one."""
        shape = stages.start == 0, stages.stop == self._manifest.stages
        key = (self.kinds[peer], *shape, *(len(self._manifest.layers(stage)) for stage in stages))
        if key not in self._known:
            self._known[key] = self._look(self.peers[peer], stages)
        found = self._known[key]
        return None if found is None else (replace(found[0], stages=stages), found[1])

    def rate(self, peer: int, stage: int) -> float:
        """Visits a second of a peer at a stage; 0 if it does not fit."""
        key = self.kinds[peer], stage
        if key not in self._rates:
            found = self.of(peer, range(stage, stage + 1))
            self._rates[key] = 0.0 if found is None else 1 / found[1].seconds
        return self._rates[key]

    def different(self, placed: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Of (peer, stage), one of each kind of machine at each stage."""
        return list({(self.kinds[peer], stage): (peer, stage) for peer, stage in placed}.values())

    def _look(self, machine: Machine, stages: range) -> tuple[Budget, Pace] | None:
        slots, device = self._manifest.settings.pipeline.slots, machine.devices[0]
        for recompute, count in ((False, slots), (True, slots), (True, min(slots, LEAST_SLOTS))):
            found = budget(self._manifest, stages, slots=count, recompute=recompute)
            if found.fits(machine, device):
                return found, pace(self._manifest, stages, device.flops, machine.link, recompute=recompute)
        return None


def _hostings(spans: Mapping[int, range], candidates: _Candidates) -> list[Hosting]:
    hostings = []
    for peer, span in sorted(spans.items()):
        found = candidates.of(peer, span)
        assert found is not None
        hostings.append(Hosting(peer, *found))
    return hostings


def stage_rates(stages: int, hostings: Sequence[Hosting]) -> list[float]:
    """Visits a second of each stage."""
    rates = [0.0] * stages
    for hosting in hostings:
        for stage in hosting.stages:
            rates[stage] += 1 / hosting.pace.seconds
    return rates


def _column_counts(peers: int) -> list[int]:
    """How many columns to try: a few, down from one for each peer."""
    counts = {1}
    while peers > 1:
        counts.add(peers)
        peers = peers * 3 // 4
    return sorted(counts)


def _cover(stages: int, peers: int, candidates: _Candidates) -> dict[int, int] | None:
    """A peer for each stage (peer -> stage), by augmenting paths; None if there is none."""
    holder: dict[int, int] = {}

    def find(stage: int, tried: set[int]) -> bool:
        for peer in range(peers):
            if peer in tried or not candidates.rate(peer, stage):
                continue
            tried.add(peer)
            if peer not in holder or find(holder[peer], tried):
                holder[peer] = stage
                return True
        return False

    return holder if peers >= stages and all(find(stage, set()) for stage in range(stages)) else None


def _with_the_rest(stages: int, spans: dict[int, range], candidates: _Candidates) -> dict[int, range]:
    """Beside those that have something to host the others, the fastest first, each with the slowest stage that it can
    hold."""
    placed = dict(spans)
    totals = stage_rates(stages, _hostings(placed, candidates))
    rest = [peer for peer in range(len(candidates.peers)) if peer not in placed]
    rest.sort(key=lambda peer: -max(candidates.rate(peer, stage) for stage in range(stages)))
    for peer in rest:
        able = [stage for stage in range(stages) if candidates.rate(peer, stage)]
        if able:
            stage = min(able, key=lambda stage: totals[stage])
            placed[peer] = range(stage, stage + 1)
            totals[stage] += candidates.rate(peer, stage)
    return placed


def _improve(stages: int, placed: dict[int, range], candidates: _Candidates) -> dict[int, range]:
    """Of peers with a stage each, moves some to the slowest stage, or swaps them into it, while the slowest of the
    stages touched gains."""
    at = {peer: span.start for peer, span in placed.items()}
    while True:
        totals = [0.0] * stages
        for peer, stage in at.items():
            totals[stage] += candidates.rate(peer, stage)
        slowest = min(range(stages), key=lambda stage: totals[stage])
        there_now = candidates.different(entry for entry in at.items() if entry[1] == slowest)
        best, change = totals[slowest] * (1 + 1e-9), dict[int, int]()
        for peer, stage in candidates.different(entry for entry in at.items() if entry[1] != slowest):
            left, gained = totals[stage] - candidates.rate(peer, stage), candidates.rate(peer, slowest)
            if gained and min(left, totals[slowest] + gained) > best:
                best, change = min(left, totals[slowest] + gained), {peer: slowest}
            for other, _ in there_now:
                there = candidates.rate(other, stage)
                here = totals[slowest] + gained - candidates.rate(other, slowest)
                if gained and there and min(left + there, here) > best:
                    best, change = min(left + there, here), {peer: slowest, other: stage}
        if not change:
            return {peer: range(stage, stage + 1) for peer, stage in at.items()}
        at |= change


def _deal_out_columns(manifest: Manifest, candidates: _Candidates, columns: int) -> dict[int, range]:
    """So many columns, the fast and the slow dealt to all of them alike; those that cannot hold the model stay out."""
    order = sorted(range(len(candidates.peers)), key=lambda peer: -candidates.peers[peer].devices[0].flops)
    spans: dict[int, range] = {}
    for column in range(columns):
        dealt, missing = _deal_out(manifest, order[column::columns], candidates)
        spans |= {} if missing else dealt
    return spans


def _deal_out(manifest: Manifest, order: Sequence[int], candidates: _Candidates) -> tuple[dict[int, range], int]:
    """Spans for peers in this order, each as long as it holds within a time that is halved in on; and how many stages
    nobody can hold."""

    def deal(seconds: float) -> tuple[dict[int, range], int]:
        spans: dict[int, range] = {}
        first = 0
        for peer in order:
            last = first
            for stop in range(first + 1, manifest.stages + 1):
                found = candidates.of(peer, range(first, stop))
                if found is None or found[1].compute > seconds:
                    break
                # A longer span may move less: the ends of the model move nothing.
                last = stop if found[1].seconds <= seconds else last
            if last > first:
                spans[peer] = range(first, last)
            first = last
        return spans, manifest.stages - first

    best, missing = deal(float("inf"))
    if missing:
        return best, missing
    low, high = 0.0, max(found[1].seconds for peer, span in best.items() if (found := candidates.of(peer, span)))
    for _ in range(12):
        middle = (low + high) / 2
        spans, lacking = deal(middle)
        if lacking:
            low = middle
        else:
            best, high = spans, middle
    return best, 0


def _too_few(manifest: Manifest, missing: int) -> FittingError:
    slots = min(LEAST_SLOTS, manifest.settings.pipeline.slots)
    each = max(
        budget(manifest, range(stage, stage + 1), slots=slots, recompute=True).total
        for stage in range(manifest.stages - missing, manifest.stages)
    )
    peers = "1 more peer" if missing == 1 else f"{missing} more peers"
    instead = ", or smaller stages (model.stages, model.base)" if missing == manifest.stages else ""
    return FittingError(
        f"memory: {missing} of {manifest.stages} stages have nobody who can hold them; the run needs "
        f"{peers} of >= {bytes_text(each)}{instead}"
    )
