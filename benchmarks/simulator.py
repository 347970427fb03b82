"""How fast a simulation is: stage-visits a second of real time on one core.

    python benchmarks/simulator.py

The real trainer and peers on virtual time with the exact backend, without faults and with seeded ones, conservation
checked at every event as in the fault schedules.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.chaos.checks import check_promises
from tests.chaos.schedules import Schedule, draw_schedule
from tests.chaos.virtual import Chaos

SEEDS = 40
ROUNDS = 5
STEPS, BATCH = 40, 16


def visits_a_second(schedules: list[Schedule]) -> float:
    """The best of some rounds: what else the machine does only takes away. The log becomes text outside the time."""
    rates = []
    for _ in range(ROUNDS):
        began = time.process_time()
        played = [Chaos(schedule) for schedule in schedules]
        for chaos in played:
            check_promises(chaos.simulate(), chaos.schedule)
        seconds = time.process_time() - began
        visits = sum('"event": "forward"' in line for chaos in played for line in chaos.log)
        rates.append(visits / seconds)
    return max(rates)


def main() -> None:
    calm = Schedule(seed=0, staleness=1, replicas=2, standby=False, faults=(), steps=STEPS, batch=BATCH)
    print("| simulation | stage-visits a second of CPU time |")
    print("|---|---|")
    print(f"| {STEPS} steps of {BATCH} microbatches, no faults | {visits_a_second([calm]):.0f} |")
    seeds = [draw_schedule(seed) for seed in range(SEEDS)]
    print(f"| {SEEDS} seeded fault schedules of 5 steps of 4 | {visits_a_second(seeds):.0f} |")


if __name__ == "__main__":
    main()
