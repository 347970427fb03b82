"""One frozen layer of llama-65b's shape with LoRA on a GPU: nf4 and int8 beside bitsandbytes' Linear4bit and bfloat16.

    python benchmarks/gpu.py [--tokens 2048] [--rounds 10] [--json FILE]

Forward and backward of one decoder block (hidden 8192, inner 22016, 64 heads) in bfloat16 with adapters of rank 8 at
its seven linear layers, gradients of the adapters and of the input. All contenders run the same block of ours; only the
product with the frozen weight is another. They take turns, medians, the device waited for at both ends. Memory is the
peak of one forward and backward, the contender's own weights included and the others' not.

The JSON: `{"card", "capability", "torch", "cuda", "bitsandbytes", "tokens", "shape", "rows": [{"item", "forward_s",
"both_s", "tokens_per_s", "weights_bytes", "peak_bytes", "error"}, ...]}`; `error` is the output's distance from that of
bfloat16, relative. bitsandbytes: `pip install -e '.[bench]'`. Where there is no CUDA device it says so and measures
nothing; `--device cpu --hidden 256 --inner 512 --heads 4 --tokens 64` tries the script itself out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from swarm_peer.compression.linear import QuantizedLinear, quantized
from swarm_peer.swarm.manifest import LlamaShape
from swarm_peer.swarm.model.block import block, rotary_tables
from swarm_peer.swarm.model.names import block_linears, block_prefix
from torch import Tensor

RANK = 8
DENSE = "bf16"


class Theirs(QuantizedLinear):
    """bitsandbytes' Linear4bit in the place of a quantized layer of ours."""

    def __init__(self, weight: Tensor) -> None:
        from bitsandbytes.nn import LinearNF4, Params4bit

        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, None)
        layer: Any = LinearNF4(inputs, outputs, bias=False, compute_dtype=torch.bfloat16)
        # In bfloat16: it is decoded to the type that it had. Quantized when it comes to its device.
        layer.weight = Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4", module=layer)
        self.layer = layer.to(weight.device)
        assert self.layer.weight.quant_state.dtype == torch.bfloat16

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs


def contenders() -> dict[str, Callable[[Tensor], Any]]:
    """What becomes of a frozen bfloat16 weight [out, in], by name."""
    found: dict[str, Callable[[Tensor], Any]] = {
        DENSE: lambda weight: weight,
        "nf4": lambda weight: quantized("nf4", weight.cpu()).to(weight.device),  # as the torch backend does
        "int8": lambda weight: quantized("int8", weight.cpu()).to(weight.device),
    }
    if bitsandbytes_version() is not None:
        found["bitsandbytes nf4"] = Theirs
    return found


def bitsandbytes_version() -> str | None:
    try:
        import bitsandbytes
    except ImportError:
        return None
    version: str = bitsandbytes.__version__
    return version


class Layer:
    """A block whose linear layers are of one kind, and its adapters."""

    def __init__(self, shape: LlamaShape, make: Callable[[Tensor], Any], device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(rows: int, columns: int) -> Tensor:
            drawn = torch.randn(rows, columns, generator=generator, device=device, dtype=torch.bfloat16)
            return drawn / columns**0.5

        self.shape, self.frozen, self.trained = shape, dict[str, Any](), dict[str, Tensor]()
        for norm in ("input_layernorm", "post_attention_layernorm"):
            self.frozen[f"{block_prefix(0)}{norm}.weight"] = torch.ones(shape.hidden_size, device=device)
        for name, (rows, columns) in block_linears(shape, 0).items():
            self.frozen[f"{name}.weight"] = make(normal(rows, columns))
            for adapter, size in (("lora_A", (RANK, columns)), ("lora_B", (rows, RANK))):
                self.trained[f"{name}.{adapter}"] = normal(*size).float().requires_grad_()

    def forward(self, hidden: Tensor) -> Tensor:
        tables = rotary_tables(self.shape, hidden.shape[1], hidden)
        return block({**self.frozen, **self.trained}, 0, self.shape, hidden, tables, lora_scale=2.0)

    def both(self, hidden: Tensor, gradient: Tensor) -> None:
        torch.autograd.grad(self.forward(hidden), [*self.trained.values(), hidden], gradient)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_of(work: Callable[[], object], device: torch.device) -> int:
    """The most that is allocated while `work` runs, in bytes; 0 on the CPU, where nobody counts."""
    if device.type != "cuda":
        work()
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    work()
    wait(device)
    return torch.cuda.max_memory_allocated(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def shape_of(options: argparse.Namespace) -> LlamaShape:
    return LlamaShape(
        hidden_size=options.hidden,
        intermediate_size=options.inner,
        num_hidden_layers=1,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        head_dim=options.hidden // options.heads,
        vocab_size=32000,
        max_position_embeddings=options.tokens,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    )


def measured(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """The rows."""
    shape, size = shape_of(options), (1, options.tokens, options.hidden)
    generator = torch.Generator(device).manual_seed(1)
    hidden, gradient = (torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(2))
    hidden.requires_grad_()
    layers: dict[str, Layer] = {}
    rows: dict[str, dict[str, Any]] = {}
    wanted = torch.empty(0)
    for name, make in contenders().items():
        before = allocated(device)
        layer = layers[name] = Layer(shape, make, device)
        work = partial(layer.both, hidden, gradient)
        work()  # what is made at the first call stays
        weights = allocated(device) - before
        peak = max(0, peak_of(work, device) - before)
        with torch.no_grad():
            output = layer.forward(hidden).float().cpu()
        wanted = output if name == DENSE else wanted
        error = ((output - wanted).norm() / wanted.norm()).item()
        rows[name] = {"item": name, "weights_bytes": weights, "peak_bytes": peak, "error": error}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in layers}
    for _ in range(options.rounds):
        for name, layer in layers.items():
            forward = seconds(partial(layer.forward, hidden), device)
            turns[name].append((forward, seconds(partial(layer.both, hidden, gradient), device)))
    for name, times in turns.items():
        forward, both = (statistics.median(part) for part in zip(*times, strict=True))
        rows[name] |= {"forward_s": forward, "both_s": both, "tokens_per_s": options.tokens / both}
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--inner", type=int, default=22016)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    on_cuda = device.type == "cuda"
    if on_cuda and not torch.cuda.is_available():
        print("benchmarks/gpu.py: no CUDA device here, nothing is measured")
        return
    about = {
        "card": torch.cuda.get_device_name(device) if on_cuda else "none (on the CPU)",
        "capability": list(torch.cuda.get_device_capability(device)) if on_cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "bitsandbytes": bitsandbytes_version(),
        "tokens": options.tokens,
        "shape": {"hidden": options.hidden, "inner": options.inner, "heads": options.heads},
    }
    rows = measured(options, device)
    versions = f"torch {about['torch']}, CUDA {about['cuda']}, bitsandbytes {about['bitsandbytes']}"
    print(f"{about['card']}; {versions}; {options.tokens} tokens, hidden {options.hidden}, inner {options.inner}\n")
    print("| layer | forward, ms | and backward, ms | tokens/s | weights, MB | peak, MB | error of the output, % |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        times = f"{1e3 * row['forward_s']:.2f} | {1e3 * row['both_s']:.2f} | {row['tokens_per_s']:.0f}"
        memory = f"{row['weights_bytes'] / 1e6:.0f} | {row['peak_bytes'] / 1e6:.0f}"
        print(f"| {row['item']} | {times} | {memory} | {100 * row['error']:.2f} |")
    if options.json is not None:
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
