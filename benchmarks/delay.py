"""What the one-step delay buys in time: virtual seconds of a run at staleness 0 and 1, as closing a step takes longer.

    python benchmarks/delay.py

The real trainer and hosts on virtual time (exact backend, 3 stages x 2 replicas, 8 microbatches a step); durations are
simulated, so the ratios do not depend on the machine. Closing time is what sums and updates take on each replica.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.compute import BACKGROUND, BACKWARD, FORWARD

from tests.exact import exact_manifest, exact_swarm


def seconds_a_step(staleness: int, background: float) -> float:
    """Mean virtual seconds between commits after the first two steps."""
    commits: list[float] = []
    swarm = exact_swarm(
        exact_manifest(steps=12, batch=8, staleness=staleness, slots=8),
        durations={FORWARD: 0.1, BACKWARD: 0.2, BACKGROUND: background},
        emit=lambda event: commits.append(swarm.now) if event.kind == "stepped" else None,
    )
    run(swarm.run(), limit=10_000.0)
    return (commits[-1] - commits[1]) / (len(commits) - 2)


def main() -> None:
    print("| one background job (there are about five a step) | staleness 0, s a step | staleness 1 | ratio |")
    print("|---|---|---|---|")
    for background in (0.01, 0.05, 0.1, 0.2, 0.4):
        synchronous, delayed = seconds_a_step(0, background), seconds_a_step(1, background)
        print(f"| {background:.2f} s | {synchronous:.2f} | {delayed:.2f} | {synchronous / delayed:.2f} |")


if __name__ == "__main__":
    main()
