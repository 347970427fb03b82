"""What the one-step delay costs in loss: staleness 0 against 1 on `tiny`, paired seeds, same data and steps.

    python benchmarks/staleness.py [--steps N] [--seeds K] [--train lora|full]

Uses the single-process reference, whose numbers the swarm reproduces (tests/test_agreement.py). Needs the texts:
`swarm-peer fetch shakespeare hamlet`.
"""

import argparse
import statistics

from swarm_peer.peer.reference import run_reference
from swarm_peer.peer.settings import add_run_flags, settings_of
from swarm_peer.swarm.freezing import prepare


def final_losses(staleness: int, seed: int, steps: int, train: str) -> tuple[float, float]:
    """(mean training loss of the last 5 steps, held-out loss after), nats per token."""
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    flags = ["--model", "tiny", "--steps", str(steps), "--seed", str(seed), "--staleness", str(staleness)]
    settings = settings_of(parser.parse_args([*flags, "--train", train]))
    prepared = prepare(settings, organizer="0" * 64, nonce="0" * 32)
    report = run_reference(prepared.manifest, prepared.corpus, prepared.heldout, prepared.folder)
    return statistics.mean(step["loss"] for step in report["steps"][-5:]), report["heldout"]["after"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", choices=("lora", "full"), default="full")
    options = parser.parse_args()
    print("| seed | last 5 steps, staleness 0 | 1 | held-out, staleness 0 | 1 | ratio of held-out |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for seed in range(options.seeds):
        train0, held0 = final_losses(0, seed, options.steps, options.train)
        train1, held1 = final_losses(1, seed, options.steps, options.train)
        ratios.append(held1 / held0)
        print(f"| {seed} | {train0:.4f} | {train1:.4f} | {held0:.4f} | {held1:.4f} | {held1 / held0:.4f} |", flush=True)
    print(f"\nmean ratio {statistics.mean(ratios):.4f}")


if __name__ == "__main__":
    main()
