"""What a quantized base costs in loss, and 8-bit Adam: LoRA trained on SmolLM2-135M in each format, paired seeds.

    python benchmarks/bases.py [--steps 20] [--seeds 3] [--results bases.json] [--only NAME...] [--model tiny]
        [--device cuda] [--fitted FOLDER]

The run's own torch backends, three stages chained in one process, fp32 between them, staleness 0. Everything but the
one thing (seed, data, order) is that of the fp32 run it is compared with. Printed: held-out loss before and after, its
difference from fp32 in per cent with the 95 % interval of the paired difference over the seeds (Student's t), and the
bytes that the linear layers of the base take. What has been run stands in the results file and is not run again.

SmolLM2's published weights are bfloat16: a bf16 base is the fp32 one exactly, and shows that a run repeats itself.
`--fitted`: the same model as `swarm-coordinator quantize` has made it, of any text but `hamlet`, on which all are
measured; by the folder's name it is known in the results. `--model tiny` is a quick look: on its random base there is
nothing that a coarser one could spoil, and its adapters are so small that their moments stay in 32 bits. Needs the
texts and the model: `swarm-peer fetch shakespeare hamlet smollm2-135m`.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from swarm_peer.compression.linear import QuantizedLinear
from swarm_peer.peer.settings import add_run_flags, settings_of
from swarm_peer.swarm.arithmetic import RealArithmetic
from swarm_peer.swarm.backend import StageInput
from swarm_peer.swarm.driving import Microbatch
from swarm_peer.swarm.freezing import Prepared, prepare
from swarm_peer.swarm.manifest import CodecSettings
from swarm_peer.swarm.model.names import block_linears
from swarm_peer.swarm.model.opening import open_checkpoint
from swarm_peer.swarm.model.weights import stage_base
from swarm_peer.swarm.torch_backend import TorchBackend

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.quality import T_95, Results, interval

LENGTH, BATCH = 64, 4
"""Tokens a sample, samples a step."""

HELDOUT_TOKENS = 16384
"""In 2,048 tokens the difference of two bases is off by 0.3 % from that in all of the text."""


@dataclass(frozen=True)
class Item:
    """`base`: what the frozen linear layers are held in; `state`: what the moments are kept in; `fitted`: whether the
    model is that of `--fitted`."""

    name: str
    base: str = "fp32"
    state: str = "fp32"
    clip: bool = False
    fitted: bool = False


WHOLE = Item("fp32")
FITTED = Item("nf4, fitted", base="nf4", fitted=True)
ITEMS = (
    WHOLE,
    Item("bf16", base="bf16"),
    Item("int8", base="int8"),
    Item("nf4", base="nf4"),
    FITTED,
    Item("AdamW, clipped", clip=True),
    Item("8-bit AdamW", state="8bit"),
    Item("8-bit AdamW, clipped", state="8bit", clip=True),
)


class Chain:
    """The stages of a run in one process: each gets what it would be sent."""

    def __init__(self, prepared: Prepared, device: str) -> None:
        self.manifest = prepared.manifest
        self.scalars = RealArithmetic(self.manifest)
        with nullcontext() if prepared.folder is None else open_checkpoint(str(prepared.folder)) as checkpoint:
            self.stages = [
                TorchBackend(self.manifest, stage, stage_base(self.manifest, stage, checkpoint), device)
                for stage in range(self.manifest.stages)
            ]
        self.states = [stage.initial_state() for stage in self.stages]

    def forward(self, step: int, index: int, batch: Microbatch, *, train: bool) -> tuple[float, list[Any]]:
        """(token-summed loss, the context of each stage)."""
        data, contexts, loss = batch.tokens, [], 0.0
        for stage, state in zip(self.stages, self.states, strict=True):
            result = stage.forward(state, StageInput(step, index, batch.samples, data, batch.labels), train=train)
            data, loss = result.output or b"", result.loss or 0.0
            contexts.append(result.context)
        return loss, contexts

    def step(self, step: int, batches: Sequence[Microbatch]) -> float:
        """One update of every stage; the training loss, in nats a token."""
        loss, summed = 0.0, list[Any]([None] * len(self.stages))
        for index, batch in enumerate(batches):
            came, contexts = self.forward(step, index, batch, train=True)
            loss, coded = loss + came, None
            for number in reversed(range(len(self.stages))):
                back = self.stages[number].backward(self.states[number], contexts[number], coded)
                coded, before = back.input_gradient, summed[number]
                both = [back.gradient] if before is None else [before, back.gradient]
                summed[number] = self.stages[number].add(both)
        parts, squared = [], 0.0
        for stage, gradient in zip(self.stages, summed, strict=True):
            length = stage.lengths["stage"]
            reduced, norm = stage.reduce("stage", [stage.slice(gradient, "stage", 0, length)], length)
            parts.append({"stage": [reduced]})
            squared += norm
        tokens = sum(batch.label_tokens for batch in batches)
        update = self.scalars.update(step, squared, tokens)
        self.states = [
            stage.apply(state, part, update) for stage, state, part in zip(self.stages, self.states, parts, strict=True)
        ]
        return loss / tokens

    def heldout(self, batches: Sequence[Microbatch]) -> float:
        """Nats a token."""
        losses = [self.forward(0, index, batch, train=False)[0] for index, batch in enumerate(batches)]
        return sum(losses) / sum(batch.label_tokens for batch in batches)

    def linear_bytes(self) -> int:
        """What the frozen linear layers take."""
        manifest, total = self.manifest, 0
        for number, stage in enumerate(self.stages):
            for layer in manifest.layers(number):
                for name in block_linears(manifest.shape, layer):
                    weight = stage._base[f"{name}.weight"]
                    held = weight.buffers() if isinstance(weight, QuantizedLinear) else [weight]
                    total += sum(tensor.numel() * tensor.element_size() for tensor in held)
        return total


def trained(item: Item, model: str, seed: int, steps: int, device: str) -> dict[str, Any]:
    """Held-out losses `before` and `after` and `last`, the mean training loss of the last 5 steps, in nats a token; the
    `bytes` of the linear layers."""
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    flags = ["--model", model, "--base", item.base, "--train", "lora", "--steps", str(steps), "--seed", str(seed)]
    settings = settings_of(parser.parse_args([*flags, "--staleness", "0"]))
    optimizer = {"schedule": "cosine", "state": item.state, "clip_updates": item.clip}
    settings = settings.model_copy(
        update={
            "codecs": CodecSettings(activations="fp32", gradients="fp32"),
            "data": settings.data.model_copy(update={"sequence_length": LENGTH, "heldout_tokens": HELDOUT_TOKENS}),
            "optimizer": settings.optimizer.model_copy(update=optimizer),
            "train": settings.train.model_copy(update={"batch": BATCH, "microbatch": BATCH}),
        }
    )
    prepared = prepare(settings, organizer="0" * 64, nonce="0" * 32)
    samples, chain = prepared.samples(), Chain(prepared, device)
    before = chain.heldout(samples.heldout())
    indices = range(prepared.manifest.microbatches)
    losses = [chain.step(step, [samples.microbatch(step, index) for index in indices]) for step in range(steps)]
    after = chain.heldout(samples.heldout())
    last = statistics.mean(losses[-5:])
    return {"before": before, "after": after, "last": last, "bytes": chain.linear_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m (default), tiny, or a folder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3, choices=(1, *sorted(T_95)))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=Path("bases.json"))
    parser.add_argument("--fitted", metavar="FOLDER", help="the same model, made by `swarm-coordinator quantize`")
    parser.add_argument("--only", nargs="+", choices=[item.name for item in ITEMS])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Results(options.results)

    def run_of(item: Item, seed: int) -> dict[str, Any]:
        model = options.fitted if item.fitted else options.model
        run = f"{item.name}, {model}, seed {seed}, {options.steps} steps, {HELDOUT_TOKENS} tokens"
        found: dict[str, Any] = results.get(run, partial(trained, item, model, seed, options.steps, options.device))
        return found

    rows = []
    for item in ITEMS:
        if (options.only is not None and item.name not in options.only) or (item.fitted and not options.fitted):
            continue
        pairs = [(run_of(item, seed), run_of(WHOLE, seed)) for seed in range(options.seeds)]
        rows.append((item, pairs))
    print(f"\n{options.model}, {options.steps} steps of {BATCH} x {LENGTH} tokens, seeds: {options.seeds}\n")
    print("| run | linear layers, MB | held-out loss before | after | against fp32, % | 95 % interval |")
    print("|---|---|---|---|---|---|")
    for item, pairs in rows:
        before, after = (statistics.mean(run[when] for run, _ in pairs) for when in ("before", "after"))
        differences = [100 * (run["after"] / whole["after"] - 1) for run, whole in pairs]
        told = "| |"
        if item is not WHOLE:
            ends = ""
            if len(differences) > 1:
                mean, half = interval(differences)
                ends = f"{mean - half:+.2f} to {mean + half:+.2f}"
            told = f"{statistics.mean(differences):+.2f} | {ends} |"
        print(f"| {item.name} | {pairs[0][0]['bytes'] / 1e6:.1f} | {before:.4f} | {after:.4f} | {told}")


if __name__ == "__main__":
    main()
