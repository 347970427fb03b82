"""How fast a simulation is, on one core.

    python benchmarks/simulator.py [--scale] [--peers N...] [--minutes M] [--json FILE] [--plot FILE]

First the fault schedules of the tests: stage-visits a second of CPU time, the real trainer and peers on virtual time
with the exact backend, without faults and with seeded ones, conservation checked at every event.

`--scale`: what a minute costs over the size of a swarm. `--peers` volunteers at home train a model of a 65B shape in 16
stages for `--minutes` after they have begun; steps grow with their number, so that each has as much to do. An event is
one callback of the loop. The runs to be had in five minutes are 100 peers for an hour and 1,000 for ten minutes.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from swarm_peer.simulations.scenario import Scenario, parse_scenario
from swarm_peer.simulations.study import Study

from tests.chaos.checks import check_promises
from tests.chaos.schedules import Schedule, draw_schedule
from tests.chaos.virtual import Chaos

SEEDS = 40
ROUNDS = 5
STEPS, BATCH = 40, 16

STAGES = 16
PEERS = (50, 100, 200, 400)
WANTED = ((100, 60.0), (1000, 10.0))
"""Peers and minutes, in less than `WANTED_SECONDS`."""

WANTED_SECONDS = 300.0

TEXT = """
title = "{peers} peers"
minutes = {minutes}

[run.model]
name = "llama-65b"
stages = 16

[run.train]
steps = 100000
batch = {batch}
lora_rank = 8

[run.data]
sequence_length = 2048

[run.pipeline]
slots = 48
min_replicas = 2

[coordinator]
latency = 10

[[peers]]
name = "home"
count = {peers}
teraflops = [15, 30]
up = [50, 200]
down = [100, 500]
latency = [5, 40]
"""


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


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU `seconds` of a run of so many virtual minutes; `events`: callbacks of the loop."""

    peers: int
    minutes: float
    seconds: float
    events: int
    visits: int


def scenario_of(peers: int, minutes: float) -> Scenario:
    text = TEXT.format(peers=peers, minutes=minutes, batch=4 * peers)
    return parse_scenario(text, f"{peers} peers")


def cost_of(peers: int, minutes: float) -> Cost:
    study = Study(scenario_of(peers, minutes))
    began = time.process_time()
    outcome = study.run()
    seconds = time.process_time() - began
    visits = STAGES * outcome.tokens // 2048
    return Cost(peers, minutes, seconds, study.callbacks, visits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", action="store_true", help="the cost over the size of a swarm")
    parser.add_argument("--peers", type=int, nargs="+", default=PEERS, help="sizes (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of virtual time (default: 10)")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw the cost here")
    options = parser.parse_args()
    if not options.scale:
        schedules()
        return
    print("| peers | virtual minutes | CPU s | visits | events | CPU s a minute | us an event |")
    print("|---|---|---|---|---|---|---|")
    costs = []
    for peers in options.peers:
        cost = cost_of(peers, options.minutes)
        costs.append(cost)
        a_minute, an_event = cost.seconds / cost.minutes, 1e6 * cost.seconds / cost.events
        row = f"{peers} | {cost.minutes:g} | {cost.seconds:.0f} | {cost.visits:,} | {cost.events:,}"
        print(f"| {row} | {a_minute:.1f} | {an_event:.1f} |", flush=True)
    for peers, minutes in WANTED:
        if (peers, minutes) in {(cost.peers, cost.minutes) for cost in costs}:
            seconds = next(cost.seconds for cost in costs if (cost.peers, cost.minutes) == (peers, minutes))
            print(f"\n{peers} peers for {minutes:g} minutes: {seconds / WANTED_SECONDS:.2f} of {WANTED_SECONDS:.0f} s")
    if options.json:
        options.json.write_text(
            json.dumps({"rows": [asdict(cost) for cost in costs]}, indent=2) + "\n", encoding="utf-8"
        )
    if options.plot:
        draw(costs, options.plot)


def schedules() -> None:
    calm = Schedule(seed=0, staleness=1, replicas=2, standby=False, faults=(), steps=STEPS, batch=BATCH)
    print("| simulation | stage-visits a second of CPU time |")
    print("|---|---|")
    print(f"| {STEPS} steps of {BATCH} microbatches, no faults | {visits_a_second([calm]):.0f} |")
    seeds = [draw_schedule(seed) for seed in range(SEEDS)]
    print(f"| {SEEDS} seeded fault schedules of 5 steps of 4 | {visits_a_second(seeds):.0f} |")


def draw(costs: list[Cost], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (whole, each) = pyplot.subplots(1, 2, figsize=(10, 4))
    peers = [cost.peers for cost in costs]
    whole.plot(peers, [cost.seconds / cost.minutes for cost in costs], marker="o")
    whole.set(xlabel="peers", ylabel="CPU seconds a virtual minute", ylim=(0, None))
    each.plot(peers, [1e6 * cost.seconds / cost.events for cost in costs], marker="o", color="C1")
    each.set(xlabel="peers", ylabel="CPU microseconds an event", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
