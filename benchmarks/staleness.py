"""What the one-step delay costs in loss: staleness 0 against 1 on `tiny`, paired seeds, same data and steps.

    python benchmarks/staleness.py [--steps N] [--seeds K] [--train lora|full] [--rates R...]

Uses the single-process reference, whose numbers the swarm reproduces (tests/test_agreement.py). Needs the texts:
`swarm-peer fetch shakespeare hamlet`.
"""

import argparse
import statistics

from swarm_peer.peer.reference import run_reference
from swarm_peer.peer.settings import add_run_flags, settings_of
from swarm_peer.swarm.freezing import prepare


def final_losses(staleness: int, seed: int, steps: int, train: str, rate: float) -> tuple[float, float]:
    """(mean training loss of the last 5 steps, held-out loss after), nats per token."""
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    flags = ["--model", "tiny", "--steps", str(steps), "--seed", str(seed), "--staleness", str(staleness)]
    settings = settings_of(parser.parse_args([*flags, "--train", train]))
    optimizer = settings.optimizer.model_copy(update={"learning_rate": rate})
    prepared = prepare(settings.model_copy(update={"optimizer": optimizer}), organizer="0" * 64, nonce="0" * 32)
    report = run_reference(prepared.manifest, prepared.corpus, prepared.heldout, prepared.folder)
    return statistics.mean(step["loss"] for step in report["steps"][-5:]), report["heldout"]["after"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", choices=("lora", "full"), default="full")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 3e-4])
    options = parser.parse_args()
    print("| learning rate | seed | last 5 steps, staleness 0 | 1 | held-out, staleness 0 | 1 | ratio of held-out |")
    print("|---|---|---|---|---|---|---|")
    for rate in options.rates:
        ratios = []
        for seed in range(options.seeds):
            train0, held0 = final_losses(0, seed, options.steps, options.train, rate)
            train1, held1 = final_losses(1, seed, options.steps, options.train, rate)
            ratios.append(held1 / held0)
            row = f"{train0:.3f} | {train1:.3f} | {held0:.3f} | {held1:.3f} | {held1 / held0:.3f}"
            print(f"| {rate:g} | {seed} | {row} |", flush=True)
        print(f"| {rate:g} | mean | | | | | {statistics.mean(ratios):.3f} |", flush=True)


if __name__ == "__main__":
    main()
