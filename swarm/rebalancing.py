"""Who moves to another stage, and when: a state machine over snapshots of the stages. Pure; time is passed in.

The rule is SWARM's adaptive rebalancing (Ryabinin et al. 2023, arXiv 2301.11913, algorithm 2): every T seconds a peer
of the stage that needs it least moves to the one that needs it most. Here that is told by rates instead of queues, and
nothing moves for nothing:

- One mover at a time; the caller says when a move has ended (`settled`), also when its mover is lost.
- A move must raise the weaker of its two stages, target and source, by `gain`, with the mover's own rate, above what
  the target has now. So the sorted rates of the stages only grow, no move is undone by a later one, and there is an
  end. (Asked of the slowest stage of the run instead, nobody would move while two stages are equally slow.)
- That must have been so for `confirm` seconds at every call: a peer that is restarted comes back, a rate that was
  measured once proves little. Stages where somebody came less than `confirm` seconds ago are left alone.
- A peer that was chosen is not chosen again for `settle` seconds, whatever came of it.
- No source is left without `min_replicas` others that take visits and do not leave.
- A stage with nobody, or with too few, waits for nothing but the mover before. Then a source may have fewer than
  `min_replicas`, if the target has nobody, but never nobody.

Equal snapshots give equal moves: ties go to the richer source, then to the newest member. What is remembered is lost
with the process; a new one waits a period first. Errors: none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .placement import NOISE, Hosted, Stages, staying, total_rate, typical_rate


@dataclass(frozen=True, slots=True)
class Settings:
    """`period`: seconds from the end of a move to the next. `settle`: for how long a peer is left alone after one, so
    that nobody loads more than two stages an hour; six periods, in which others move. `confirm`: longer than a peer
    takes to start again. `gain`: up to three replicas whose rates are 5 % off either way can feign 10.5 %; of more,
    noise averages out (`required_gain`)."""

    period: float = 300.0
    settle: float = 1800.0
    confirm: float = 30.0
    gain: float = 0.12
    min_replicas: int = 1

    def required_gain(self, replicas: int) -> float:
        """What a move to a stage of so many replicas must gain. Of 12, one replica more is 8 %: a tenth asked of all
        stages alike would leave them one short."""
        return self.gain * math.sqrt(3 / max(3, replicas))


@dataclass(frozen=True, slots=True)
class Move:
    """A member is to go from its stage to another."""

    member: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    """`weaker`: the rate of the weaker of the two stages after the move; `rich`: that of the source before it."""

    hosted: Hosted
    move: Move
    weaker: float
    rich: float


class Rebalancer:
    """Decides for one run. To be asked every few seconds, and whenever a stage has lost somebody."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._moving: tuple[int, str] | None = None
        """Member and peer of the move that has not ended."""
        self._chosen: dict[str, float] = {}
        """When a peer's last move ended."""
        self._due: float | None = None
        self._wanted_since: float | None = None

    def decide(self, now: float, stages: Stages) -> Move | None:
        """The move to begin now, if any; until it is `settled` there is no other. `stages`: all replicas of each."""
        if self._moving is not None:
            return None
        if self._due is None:
            self._due = now + self.settings.period
        self._chosen = {peer: at for peer, at in self._chosen.items() if now - at < self.settings.settle}
        counted = [staying(replicas) for replicas in stages]
        best = self._urgent(counted) or self._gainful(now, self._due, counted)
        if best is None:
            return None
        self._moving = best.hosted.member, best.hosted.peer
        return best.move

    def settled(self, now: float, member: int, ok: bool) -> None:
        """The move of `member` has ended: it serves its new stage, or (not `ok`) it failed, or is lost. Tells of anyone
        else are nothing new."""
        if self._moving is None or self._moving[0] != member:
            return
        self._chosen[self._moving[1]] = now
        self._moving = self._wanted_since = None
        self._due = now + self.settings.period

    def _urgent(self, stages: Stages) -> _Candidate | None:
        """A move to the stage with fewest replicas, if those are none or too few."""
        counts = [len(replicas) for replicas in stages]
        target = counts.index(min(counts))
        if counts[target] >= max(1, self.settings.min_replicas):
            return None
        totals = _totals(stages)
        sources = [at for at in range(len(stages)) if at != target]
        keep = self.settings.min_replicas if counts[target] else 1
        return _best(self._candidates(stages, totals, target, sources, keep), totals[target])

    def _gainful(self, now: float, due: float, stages: Stages) -> _Candidate | None:
        """A move to the slowest stage, if that gains enough, has done so for long enough, and the period is over."""
        if now < due - self.settings.confirm:
            return None
        totals = _totals(stages)
        target = min(range(len(stages)), key=lambda at: (totals[at], len(stages[at])))
        least = totals[target]
        required = least * (1 + self.settings.required_gain(len(stages[target])))
        rich = [at for at, total in enumerate(totals) if total - required >= required - least and at != target]
        sources = [at for at in rich if not self._is_new(now, stages[at])]
        candidates = self._candidates(stages, totals, target, sources, self.settings.min_replicas)
        best = _best([candidate for candidate in candidates if candidate.weaker >= required], least)
        if best is None:
            self._wanted_since = None
        elif self._wanted_since is None:
            self._wanted_since = now
        if self._wanted_since is None or now < max(due, self._wanted_since + self.settings.confirm):
            return None
        return None if self._is_new(now, stages[target]) else best

    def _is_new(self, now: float, replicas: Sequence[Hosted]) -> bool:
        """Whether somebody came so lately that the stage's rate has yet to be measured."""
        return any(now - hosted.since < self.settings.confirm for hosted in replicas)

    def _candidates(
        self, stages: Stages, totals: Sequence[float], target: int, sources: Sequence[int], keep: int
    ) -> list[_Candidate]:
        """All moves from `sources` that leave `keep` others there."""
        if not sources:
            return []
        typical, candidates = typical_rate(stages), []
        for source in sources:
            for hosted in spared(stages[source], keep):
                if hosted.peer in self._chosen or target in hosted.besides:
                    continue
                rate = hosted.rate if hosted.rate > 0 else typical
                weaker = min(totals[source] - rate, totals[target] + rate)
                candidates.append(_Candidate(hosted, Move(hosted.member, source, target), weaker, totals[source]))
        return candidates


def _totals(stages: Stages) -> list[float]:
    typical = typical_rate(stages)
    return [total_rate(replicas, typical) for replicas in stages]


def spared(replicas: Sequence[Hosted], keep: int) -> list[Hosted]:
    """Of those of a stage that stay: who may move, so that `keep` others that take visits are left, at least one."""
    serving = [hosted for hosted in replicas if hosted.ready]
    return serving if len(serving) > max(1, keep) else []


def _best(candidates: Sequence[_Candidate], now: float) -> _Candidate | None:
    """What gains most over what the target has now. What measurement cannot tell from that counts as equal: then the
    richest source, then the newest member."""
    if not candidates:
        return None
    most = max(candidate.weaker for candidate in candidates)
    equal = [candidate for candidate in candidates if most - candidate.weaker <= NOISE * abs(most - now)]
    return max(equal, key=lambda candidate: (candidate.rich, candidate.hosted.member))
