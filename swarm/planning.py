"""How fast a run would be that has not begun, with given peers, and what limits it. Pure; `plan_command.py` prints it.

Of the ways to place the peers (`placing.py`) the fastest is taken. The pace of a stage is the sum of its replicas'; the
pace of the run is that of its slowest stage, times the share of it that the microbatches in flight keep busy.

Errors: `FittingError`, as in `placing.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import FittingError
from .machine import Machine
from .manifest import Manifest
from .placing import Hosting, stage_rates, ways_to_place

HALF_BUSY = 0.625
"""With n times as many microbatches in flight as would do if all were evenly spaced, n / (n + HALF_BUSY) of the slowest
stage's time is used. Set so that 80 % takes n = 2.5, as DESIGN has it for 20 stages: about 60 in flight a column,
where 24 would do. One curve for all swarms, so a rough one."""

GOOD_USE = 0.8
IN_FLIGHT_SHARE = 0.8
"""Of the slots of the narrowest stage: more the trainer does not issue."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who hosts what, and what comes of it. `rates`: visits a second by stage.
    `path_seconds`: a microbatch from its first stage down and back, alone.
    `in_flight`: microbatches that may be; `wanted_in_flight`: that would keep the slowest stage 80 % busy."""

    hostings: tuple[Hosting, ...]
    rates: tuple[float, ...]
    path_seconds: float
    in_flight: float
    wanted_in_flight: float
    microbatches_per_second: float
    tokens_per_second: float
    step_seconds: float
    limit: str


def plan(manifest: Manifest, peers: Sequence[Machine]) -> Plan:
    """The plan for the manifest's own number of stages: the fastest of the ways. Raises `FittingError`."""
    found = [_outcome(manifest, peers, hostings) for hostings in ways_to_place(manifest, peers)]
    return max(found, key=lambda each: each.tokens_per_second)


def best_stages(manifest: Manifest, peers: Sequence[Machine]) -> tuple[int, Plan]:
    """The number of stages that gives the most tokens a second, the smallest of equals. Raises `FittingError`, the one
    for a stage a layer, which is the least that a peer can hold."""
    best: tuple[int, Plan] | None = None
    problem: FittingError | None = None
    layers = manifest.shape.num_hidden_layers
    # Cuts into as many stages as need so many layers at the most: any other has no smaller largest stage.
    for stages in sorted({-(-layers // most) for most in range(1, layers + 1)}):
        try:
            found = plan(with_stages(manifest, stages), peers)
        except FittingError as error:
            problem = error
            continue
        if best is None or found.tokens_per_second > best[1].tokens_per_second * 1.001:
            best = stages, found
        if best is not None and stages >= 2 * len(peers):
            break  # from here on, more stages only deal out the same layers in smaller pieces
    if best is None:
        assert problem is not None
        raise problem
    return best


def with_stages(manifest: Manifest, stages: int) -> Manifest:
    """The same run, cut otherwise."""
    model = manifest.settings.model.model_copy(update={"stages": stages})
    return manifest.model_copy(update={"settings": manifest.settings.model_copy(update={"model": model})})


# ---- what comes of it


def _outcome(manifest: Manifest, peers: Sequence[Machine], hostings: list[Hosting]) -> Plan:
    by_stage = [[hosting for hosting in hostings if stage in hosting.stages] for stage in range(manifest.stages)]
    rates = tuple(stage_rates(manifest.stages, hostings))
    slowest = min(range(manifest.stages), key=lambda stage: rates[stage])
    path = _path_seconds(peers, by_stage)
    slots = min(sum(hosting.budget.slots for hosting in found) for found in by_stage)
    settings = manifest.settings
    open_at_once = manifest.microbatches * (1 + settings.pipeline.staleness)
    in_flight = max(1.0, min(IN_FLIGHT_SHARE * slots, open_at_once))
    bound = "pipeline.slots" if IN_FLIGHT_SHARE * slots < open_at_once else "train.batch"
    just_enough = rates[slowest] * path
    use = in_flight / (in_flight + HALF_BUSY * just_enough)
    if in_flight < just_enough:
        use = min(use, in_flight / just_enough)
    step_seconds = manifest.microbatches / (rates[slowest] * use)
    if settings.pipeline.staleness == 0:
        step_seconds += path  # the pipeline runs empty at the end of each step
    wanted = just_enough * HALF_BUSY * GOOD_USE / (1 - GOOD_USE)
    return Plan(
        hostings=tuple(hostings),
        rates=rates,
        path_seconds=path,
        in_flight=in_flight,
        wanted_in_flight=wanted,
        microbatches_per_second=manifest.microbatches / step_seconds,
        tokens_per_second=settings.train.batch * settings.data.sequence_length / step_seconds,
        step_seconds=step_seconds,
        limit=_limit(by_stage[slowest], slowest, in_flight, wanted, bound),
    )


def _path_seconds(peers: Sequence[Machine], by_stage: list[list[Hosting]]) -> float:
    """One microbatch alone: of every stage its replicas, as often as they are chosen (by pace), and the way between
    them, there and back. A span's seconds are spread over its stages."""
    total = 0.0
    for found in by_stage:
        rates = sum(1 / hosting.pace.seconds for hosting in found)
        for hosting in found:
            share = 1 / hosting.pace.seconds / rates / len(hosting.stages)
            moved = hosting.pace.up + hosting.pace.down
            total += share * (hosting.pace.compute + moved / 2 + peers[hosting.peer].link.round_trip)
    return total


def _limit(hostings: list[Hosting], stage: int, in_flight: float, wanted: float, by: str) -> str:
    """What would have to grow for the run to be faster."""
    if in_flight < wanted:
        return f"microbatches in flight: {in_flight:.0f} of {wanted:.0f} wanted ({by})"
    shares: dict[str, float] = {}
    for hosting in hostings:
        shares[hosting.pace.limit] = shares.get(hosting.pace.limit, 0.0) + 1 / hosting.pace.seconds
    return f"{max(shares, key=lambda name: shares[name])} of stage {stage}"
