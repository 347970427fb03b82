"""Quantized linear layers of 4096 x 4096 beside a dense one in float32 and bitsandbytes' layers: time, error, size.

    python benchmarks/linear.py [--rounds 7] [--threads 1] [--json FILE]

All contenders take turns in one process; medians. Inputs are N(0, 1), for LLM.int8() with 0.1 % of the features twenty
times as large. The JSON: `{"rows": [{"item", "rows", "ratio", "bound"}, ...]}`, `ratio` the time of the dense layer
over that of `item`, `bound` what it is to reach at the least, or null. bitsandbytes: `pip install -e '.[bench]'`.

bitsandbytes' layers compute differently on a CPU when they are in evaluation mode, so both modes are rows. Training (a
frozen layer under adapters is in this mode): nf4 and int8 alike decode the weight and multiply float32 by float32; the
int8 layer does not quantize its inputs (`MatMul8bitFp`). Evaluation: int8 is LLM.int8() (`MatMul8bitLt`: inputs to int8
through float16), nf4 multiplies in bfloat16 where the processor can. Ours have one mode: what they do in evaluation
they do in training.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from swarm_peer.compression.linear import Int8Linear, Nf4Linear
from swarm_peer.kernels import engine
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.codecs import measure

SIZE = 4096

BOUNDS = {("nf4", 1): 1 / 0.6, ("nf4", 128): 1 / 1.3, ("int8, outliers", 128): 2.0}


def theirs(weight: Tensor) -> dict[str, nn.Module]:
    """bitsandbytes' layers of this weight, if it is installed."""
    try:
        import bitsandbytes
    except ImportError:
        return {}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of its cast to float16 at every call
    layers: dict[str, nn.Module] = {}
    for mode, training in (("training", True), ("evaluation", False)):
        four: Any = bitsandbytes.nn.LinearNF4(SIZE, SIZE, bias=False, compute_dtype=torch.float32)
        eight: Any = bitsandbytes.nn.Linear8bitLt(SIZE, SIZE, bias=False, has_fp16_weights=False, threshold=6.0)
        for name, layer in (("nf4", four), ("int8", eight)):
            layer.load_state_dict({"weight": weight})
            layers[f"bitsandbytes {name}, {mode}"] = layer.to("cpu").train(training)
    return layers


def apply(layer: Callable[[Tensor], Tensor], inputs: Tensor) -> Callable[[], Tensor]:
    return lambda: layer(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    weight = torch.randn(SIZE, SIZE) / SIZE**0.5
    dense = nn.Linear(SIZE, SIZE, bias=False)
    dense.weight.data = weight
    nf4, int8 = Nf4Linear.quantize(weight), Int8Linear.quantize(weight)
    others = theirs(weight)
    found = []
    print(f"{engine.name()}; {SIZE} x {SIZE}, {options.threads} threads")
    for name, layer in (("nf4", nf4), ("int8", int8)):
        size = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
        print(f"{name}: {8 * size / weight.numel():.3f} bits a weight")
    print(
        "\n| layer | rows | ms | times as fast as dense | to be | error of the output, % |\n|---|---|---|---|---|---|"
    )
    for rows in (1, 8, 128):
        plain = torch.randn(rows, SIZE)
        outlying = plain.clone()
        outlying[:, :: SIZE // 4] *= 20
        cases: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
            "dense": (dense, plain),
            "nf4": (nf4, plain),
            "int8": (int8, plain),
            "int8, outliers": (int8, outlying),
        }
        cases |= {name: (layer, outlying if "int8" in name else plain) for name, layer in others.items()}
        with torch.no_grad():
            took = measure({name: apply(*case) for name, case in cases.items()}, options.rounds)
            errors = {
                name: ((layer(inputs) - dense(inputs)).norm() / dense(inputs).norm()).item()
                for name, (layer, inputs) in cases.items()
            }
        for name in cases:
            ratio, bound = took["dense"] / took[name], BOUNDS.get((name, rows))
            found.append({"item": name, "rows": rows, "ratio": ratio, "bound": bound})
            to_be = "" if bound is None else f"{bound:.2f}"
            print(f"| {name} | {rows} | {1e3 * took[name]:.2f} | {ratio:.2f} | {to_be} | {100 * errors[name]:.2f} |")
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
