"""Makes a failing schedule small: what is left of it is needed for the failure."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.chaos.schedules import Fault, Schedule

Fails = Callable[[Schedule], bool]


def shrink(schedule: Schedule, fails: Fails) -> Schedule:
    """The schedule with every fault, delay and extra taken out without which it still `fails`."""
    if not fails(schedule):
        raise ValueError("the schedule does not fail")
    while True:
        smaller = next((candidate for candidate in _smaller(schedule) if fails(candidate)), None)
        if smaller is None:
            return schedule
        schedule = smaller


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    """Schedules one notch simpler, those with the greatest savings first."""
    for number in range(len(schedule.faults)):
        yield schedule.without(number)
    plain = Schedule(schedule.seed, schedule.staleness, schedule.replicas, schedule.standby, schedule.faults)
    for name in ("visits", "gradients", "background", "directory_stale", "directory_delay", "latency"):
        if getattr(schedule, name) != getattr(plain, name):
            yield replace(schedule, **{name: getattr(plain, name)})
    if schedule.standby:
        yield replace(schedule, standby=False)
    if schedule.replicas > 2:
        yield replace(schedule, replicas=2)
    if schedule.steps > 1:
        yield replace(schedule, steps=schedule.steps - 1)
    if schedule.batch > 1:
        yield replace(schedule, batch=schedule.batch - 1)
    for number, fault in enumerate(schedule.faults):
        for simpler in _simpler(fault):
            yield replace(schedule, faults=(*schedule.faults[:number], simpler, *schedule.faults[number + 1 :]))


def _simpler(fault: Fault) -> Iterator[Fault]:
    if fault.kind in ("one-way cut", "isolate"):
        yield replace(fault, kind="cut")
    if 0.5 < fault.seconds < float("inf"):
        yield replace(fault, seconds=0.5)
    if fault.trigger is not None and fault.at > 0:
        yield replace(fault, at=0.0)
    if fault.trigger is None and fault.at != round(fault.at, 1):
        yield replace(fault, at=round(fault.at, 1))
