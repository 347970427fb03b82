"""Schedules written by hand, for rules that are needed only after several faults in a row, which chance hardly draws.

What is left to a seed is the network's latency and who is asked first.
"""

from tests.chaos.schedules import LOSE, MISLOADS, STANDBY, TRAINER, Fault, Schedule, Trigger


def away_while_the_run_went_back(seed: int) -> Schedule:
    """A peer cannot reach the trainer; the others, who meanwhile have begun anew, still find it in the directory."""
    when = Trigger("forward", 1, 1, 0)
    faults = (
        Fault("slow", 0.0, 60.0, "peer 1", "", when),
        Fault("cut", 0.0, 30.0, "peer 4", TRAINER, when),
        Fault(LOSE, 4.0, 0.5, "stage 2", "", when),
    )
    return Schedule(seed, staleness=0, replicas=2, standby=False, faults=faults, patience=0.1)


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
    faults = tuple(Fault(LOSE, 0.0, 0.5, "stage 1", "", Trigger("forward", 1, 3, nth)) for nth in (0, 2))
    return Schedule(seed, staleness=1, replicas=2, standby=False, faults=faults, checkpoints=1, patience=0.1)
