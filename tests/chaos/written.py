"""Schedules written by hand, for rules that are needed only after several faults in a row, which chance hardly draws.

What is left to a seed is the network's latency and who is asked first.
"""

from collections.abc import Callable

from tests.chaos.schedules import ELSEWHERE, LOSE, MISLOADS, RESUME, STANDBY, TRAINER, Fault, Schedule, Trigger

LIMIT = 60.0
"""None of them takes so many virtual seconds: one that does has stuck."""


def away_while_the_run_went_back(seed: int) -> Schedule:
    """A peer cannot reach the trainer; the others, who meanwhile have begun anew, still find it in the directory."""
    when = Trigger("forward", 1, 1, 0)
    faults = (
        Fault("cut", 0.0, 30.0, "", TRAINER, when),
        Fault(LOSE, 0.1, 0.5, "stage 2", "", when),
    )
    return Schedule(seed, staleness=0, replicas=2, standby=False, faults=faults, checkpoints=1, patience=0.1)


def standby_that_missed_an_epoch(seed: int) -> Schedule:
    """The trainer goes back while its standby does not hear it, and is cut off when it has done steps once more: the
    standby, who leads then, has been told of those steps as they were before."""
    when = Trigger("forward", 2, 2, 0)
    faults = (
        Fault("cut", 0.0, 90.0, TRAINER, STANDBY, when),
        Fault(LOSE, 0.05, 0.5, "stage 2", "", when),
        Fault("isolate", 0.1, 60.0, TRAINER, "", Trigger("applied", 0, 1, 3)),
    )
    return Schedule(seed, staleness=0, replicas=2, standby=True, faults=faults, patience=0.1)


def checkpoint_that_is_loaded_wrong(seed: int) -> Schedule:
    """The first newcomer after a stage was lost makes a wrong state of what the trainer gives it."""
    lose = Fault(LOSE, 0.0, 1.0, "stage 1", MISLOADS, Trigger("forward", 1, 3, 0))
    return Schedule(seed, staleness=1, replicas=2, standby=False, faults=(lose,), checkpoints=1, patience=0.1)


def twice_back(seed: int) -> Schedule:
    """A stage loses its state, and after it was restored, loses it again."""
    faults = tuple(Fault(LOSE, 0.0, 0.5, "stage 1", "", Trigger("forward", 1, step, 0)) for step in (2, 5))
    return Schedule(seed, staleness=1, replicas=2, standby=False, faults=faults, steps=7, checkpoints=1, patience=0.1)


def back_before_patience_is_over(seed: int) -> Schedule:
    """Nobody of a stage reaches the trainer for a while, so that a newcomer finds nobody to give it the state."""
    cuts = (Fault("cut", 0.0, 10.0, "", TRAINER, Trigger("applied", 1, 2, nth)) for nth in range(2))
    join = Fault("join", 6.0, 0.0, trigger=Trigger("applied", 1, 2, 1))
    return Schedule(seed, staleness=1, replicas=2, standby=False, faults=(*cuts, join), checkpoints=1)


def resumed_by_another(seed: int) -> Schedule:
    """The run goes back, and is then resumed from the same checkpoint by somebody who does not know of that."""
    faults = (
        Fault(LOSE, 0.0, 0.5, "stage 1", "", Trigger("forward", 1, 3, 0)),
        Fault(RESUME, 0.0, 1.0, TRAINER, ELSEWHERE, Trigger("forward", 1, 3, 2)),
    )
    return Schedule(seed, staleness=1, replicas=2, standby=False, faults=faults, checkpoints=1, patience=0.1)


def away_before_the_trainer_was(seed: int) -> Schedule:
    """A peer cannot reach the trainer from the first step on. When that one is cut off, the standby hears the peer that
    stayed behind long before any other."""
    cut_off = Trigger("applied", 0, 3, 0)
    faults = (
        Fault("cut", 0.0, 90.0, "peer 2", TRAINER, Trigger("applied", 0, 0, 1)),
        Fault("isolate", 0.0, 60.0, TRAINER, "", cut_off),
        *(Fault("cut", 0.0, 8.0, f"peer {other}", STANDBY, cut_off) for other in (0, 1, 3, 4, 5)),
    )
    return Schedule(seed, staleness=1, replicas=2, standby=True, faults=faults, patience=0.1)


def more_come_than_there_were(seed: int) -> Schedule:
    """Four join three founders, all seven make a Commit, and before a founder hears of it, those are cut off from the
    others together with the standby."""
    founders, others = [f"peer {number}" for number in range(3)], [f"peer {number}" for number in range(3, 7)]
    reduced = Trigger("reduced", 0, 1, 1)
    apart = [
        (TRAINER, STANDBY),
        *((founder, TRAINER) for founder in founders),
        *((other, STANDBY) for other in others),
        *((founder, other) for founder in founders for other in others),
    ]
    faults = (
        *(Fault("join", 0.0, 0.0, trigger=Trigger("applied", 0, 0, 0)) for _ in others),
        *(Fault("cut", 0.002, 30.0, one, other, reduced) for one, other in apart),
    )
    return Schedule(seed, staleness=1, replicas=1, standby=True, faults=faults, steps=7)


def frozen_before_the_commit(seed: int) -> Schedule:
    """A replica has reduced a step and is frozen until the others are at the next: when it thaws, a call that says that
    the step is closed may be before it as soon as the Commit is."""
    faults = (Fault("freeze", 0.0, 2.0, trigger=Trigger("reduced", 2, 3, 0)),)
    return Schedule(seed, staleness=0, replicas=2, standby=False, faults=faults, latency=(0.02, 0.2))


WRITTEN: tuple[Callable[[int], Schedule], ...] = (
    away_while_the_run_went_back,
    standby_that_missed_an_epoch,
    checkpoint_that_is_loaded_wrong,
    twice_back,
    back_before_patience_is_over,
    resumed_by_another,
    away_before_the_trainer_was,
    more_come_than_there_were,
    frozen_before_the_commit,
)


def over_while_a_stage_is_away(seed: int) -> Schedule:
    """All steps are done when the second trainer goes, whose successor knows nobody of a stage but a newcomer."""
    last = Trigger("applied", 0, 4, 1)
    faults = (
        Fault("kill", 0.05, 20.0, trigger=Trigger("applied", 0, 4, 0)),
        Fault("kill", 0.05, 20.0, trigger=last),
        Fault("kill", 1.98, 4.0, TRAINER, trigger=last),
        Fault("isolate", 2.7, 2.0, "peer 4", TRAINER),
        Fault("freeze", 4.264, 20.0, TRAINER),
        Fault("one-way cut", 0.0, 8.0, "", "peer 5", Trigger("held", 0, 4, 0)),
        Fault(LOSE, 0.0, 2.0, "stage 1", "", Trigger("part", 2, 4, 0)),
    )
    limits = {"visits": 4, "spilled": 4, "disk": 4, "checkpoints": 2}
    return Schedule(seed, 1, 3, standby=True, faults=faults, directory_stale=3.0, patience=0.1, **limits)
