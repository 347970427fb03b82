"""What wire codecs cost in loss: `tiny`, cut into three stages in one process, activations and gradients apart.

    python benchmarks/quality.py [--steps 300] [--seeds 3] [--results quality.json] [--only NAME...]

Each codec is used in one direction, fp32 in the other; everything else (seed, data, order) is that of the fp32 run it
is compared with. Printed: held-out loss after training, its difference from fp32 in per cent, with the 95 % interval of
the paired difference over the seeds (Student's t), and the bits an element. What has been run stands in the results
file and is not run again; a run takes less than 90 s. 2 bit and 1 bit are no codecs of ours: they show where it ends.
The learning rate is a third of tiny's own and falls to nothing: else two runs that differ in a rounding end 1 % apart.

Uses the single-process reference, whose numbers the swarm reproduces (tests/test_agreement.py). Needs the texts:
`swarm-peer fetch shakespeare hamlet`.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from swarm_peer.compression import CodecSpec, encode
from swarm_peer.peer import reference
from swarm_peer.peer.settings import add_run_flags, settings_of
from swarm_peer.swarm.freezing import prepare
from swarm_peer.swarm.manifest import CodecSettings
from torch import Tensor

DIRECTIONS = ("activations", "gradients")
STAND_IN = "bf16"
"""The manifest names this codec where a crude one takes its place."""

RATE = 1e-3

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""By number of pairs: the 97.5 % quantile of Student's t with one degree of freedom less."""

BOUND = 1.0
"""Per cent of held-out loss that a codec may cost."""


@dataclass(frozen=True)
class Item:
    """`text`: the codec, as a manifest names it; `crude`: bits of a blockwise code that is no codec of ours."""

    name: str
    text: str
    block: int
    crude: int = 0

    def bits(self, elements: int) -> float:
        if self.crude:
            return self.crude + 16 / self.block
        values = torch.randn(elements // 64, 64, generator=torch.Generator().manual_seed(0))
        return 8 * len(encode(values, CodecSpec.parse(self.text, self.block))) / elements


ITEMS = (
    Item("bf16", "bf16", 256),
    Item("int8", "int8", 256),
    Item("int8+columns", "int8+columns", 256),
    Item("dynamic8", "dynamic8", 256),
    Item("int4", "int4", 64),
    Item("int4+rotation", "int4+rotation", 64),
    Item("int4+columns", "int4+columns", 64),
    Item("nf4", "nf4", 64),
    Item("2 bit", STAND_IN, 64, crude=2),
    Item("1 bit", STAND_IN, 64, crude=1),
)


def crudely(tensor: Tensor, bits: int, block: int) -> Tensor:
    """Blockwise: -1, 0 or 1 times the largest magnitude with 2 bits, the sign times the mean magnitude with 1."""
    rows = tensor.reshape(-1, block)
    if bits == 1:
        return (torch.where(rows < 0, -1.0, 1.0) * rows.abs().mean(1, keepdim=True)).view_as(tensor)
    largest = rows.abs().amax(1, keepdim=True)
    steps = torch.round(rows / torch.where(largest == 0, torch.ones_like(largest), largest))
    return (steps * largest).view_as(tensor)


def heldout_loss(item: Item | None, direction: str, seed: int, steps: int, train: str) -> float:
    """Nats a token after training; None: fp32 both ways."""
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    flags = ["--model", "tiny", "--steps", str(steps), "--seed", str(seed), "--staleness", "0", "--train", train]
    codecs: dict[str, Any] = dict.fromkeys(DIRECTIONS, "fp32")
    if item is not None:
        codecs.update({direction: item.text, "block": item.block})
    settings = settings_of(parser.parse_args(flags))
    optimizer = settings.optimizer.model_copy(update={"learning_rate": RATE, "schedule": "cosine"})
    settings = settings.model_copy(update={"codecs": CodecSettings(**codecs), "optimizer": optimizer})
    prepared = prepare(settings, organizer="0" * 64, nonce="0" * 32)

    def coded(tensor: Tensor, spec: CodecSpec) -> Tensor:
        if item is not None and item.crude and spec.name == STAND_IN:
            return crudely(tensor.detach(), item.crude, item.block)
        return whole(tensor, spec)

    whole = reference._coded
    with patch.object(reference, "_coded", coded):
        report = reference.run_reference(prepared.manifest, prepared.corpus, prepared.heldout, prepared.folder)
    return float(report["heldout"]["after"])


class Results:
    """What runs came to, by their names, in a JSON file: a run that stands there is not made again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, run: str, work: Callable[[], Any]) -> Any:
        if run not in self.found:
            began = time.perf_counter()
            self.found[run] = work()
            self.path.write_text(json.dumps(self.found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            print(f"{run}: {json.dumps(self.found[run])} ({time.perf_counter() - began:.0f} s)", flush=True)
        return self.found[run]


def interval(differences: list[float]) -> tuple[float, float]:
    """(mean, half the 95 % interval) of paired differences."""
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), T_95[len(differences)] * spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T_95))
    parser.add_argument("--train", choices=("lora", "full"), default="full")
    parser.add_argument("--results", type=Path, default=Path("quality.json"))
    parser.add_argument("--only", nargs="+", choices=[item.name for item in ITEMS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.results)

    def loss_of(item: Item | None, direction: str, seed: int) -> float:
        name = "fp32" if item is None else f"{item.name} of block {item.block}, {direction}"
        run = f"{name}, seed {seed}, {options.steps} steps, {options.train}"
        loss: float = results.get(run, partial(heldout_loss, item, direction, seed, options.steps, options.train))
        return loss

    rows = []
    for item in ITEMS:
        if options.only is not None and item.name not in options.only:
            continue
        for direction in DIRECTIONS:
            pairs = [(loss_of(item, direction, seed), loss_of(None, direction, seed)) for seed in range(options.seeds)]
            mean, half = interval([100 * (loss / whole - 1) for loss, whole in pairs])
            rows.append((direction, item, statistics.mean(loss for loss, _ in pairs), mean, half))
    for direction in DIRECTIONS:
        print(
            f"\n## {direction}\n\n| codec | block | bits an element | held-out loss | against fp32, % | 95 % interval |"
        )
        print("|---|---|---|---|---|---|")
        for way, item, loss, mean, half in rows:
            if way == direction:
                ends = f"{mean - half:+.2f} to {mean + half:+.2f}"
                print(f"| {item.name} | {item.block} | {item.bits(1 << 16):.2f} | {loss:.4f} | {mean:+.2f} | {ends} |")
        good = [row for row in rows if row[0] == direction and not row[1].crude and row[3] + row[4] < BOUND]
        if good:
            least = min(good, key=lambda row: row[1].bits(1 << 16))
            print(f"\nThe smallest whose interval stays below {BOUND:g} %: {least[1].name}, block {least[1].block}")


if __name__ == "__main__":
    main()
