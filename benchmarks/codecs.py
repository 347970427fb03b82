"""How fast tensors become bytes and come back, beside bitsandbytes, hivemind, plain torch and the memory itself.

    python benchmarks/codecs.py [--mib 4] [--rounds 15] [--json FILE]

All contenders take turns in one process; medians, and ratios of medians: gigabytes a second differ from machine to
machine, ratios less. One thread, two threads, and one thread beside a busy process. bitsandbytes and hivemind,
which rests on it, are compared with if it is installed (`pip install bitsandbytes`).

The JSON: `{"elements": n, "rows": [{"setting", "item", "ratio_to", "ratio", "bound"}, ...]}`; `setting` is `1 thread`,
`2 threads` or `busy neighbour`, `ratio` how many times as fast `item` is as `ratio_to`, `bound` what it is to reach, or
null.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from swarm_peer.compression import CodecSpec, decode, encode
from swarm_peer.kernels import engine

BLOCK = 256
ENOUGH_SECONDS = 0.02
"""A contender's turn of a round takes about this long."""

Work = Callable[[], object]


def contenders(values: torch.Tensor, threads: int) -> dict[str, Work]:
    """What is measured, by name. `values`: fp32 [n]."""
    module = engine.native()
    if module is None:
        raise SystemExit("the native kernels were not built; there is nothing to measure")
    elements = values.numel()
    array, copy, filled = values.numpy(), np.empty(elements, np.float32), torch.empty(elements)
    largest = np.empty(-(-elements // BLOCK), np.float32)
    int8, dynamic8 = CodecSpec("int8", BLOCK), CodecSpec("dynamic8", BLOCK)
    coded = {spec.name: encode(values, spec) for spec in (int8, dynamic8)}
    payloads = {name: memoryview(data)[28:] for name, data in coded.items()}
    codes, scales = np.empty(elements, np.uint8), np.empty(len(largest), np.uint16)
    out = np.empty(elements, np.float32)
    work: dict[str, Work] = {
        "memcpy": lambda: np.copyto(copy, array),
        "absmax pass": lambda: module.absmax(array, largest, elements, BLOCK),
        "write-only fill": lambda: filled.fill_(1.0),
        "int8 encode": lambda: module.quantize("linear", array, codes, scales, elements, BLOCK, threads),
        "int8 decode": lambda: module.unpack("linear", payloads["int8"], out, elements, BLOCK, threads),
        "dynamic8 encode": lambda: module.quantize("dynamic", array, codes, largest, elements, BLOCK, threads),
        "dynamic8 decode": lambda: module.unpack("dynamic", payloads["dynamic8"], out, elements, BLOCK, threads),
        "int8 encode, to wire bytes": lambda: encode(values, int8, threads=threads),
        "int8 decode, from wire bytes": lambda: decode(coded["int8"], int8, shape=(elements,), threads=threads),
        "dynamic8 encode, to wire bytes": lambda: encode(values, dynamic8, threads=threads),
        "torch int8 encode": lambda: plain_torch(values),
    }
    return {**work, **hivemind_contenders(values), **bitsandbytes_contenders(values)}


def plain_torch(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear int8 as one would write it."""
    blocks = values.view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / 127
    return (blocks / scales).round_().to(torch.int8), scales


def hivemind_contenders(values: torch.Tensor) -> dict[str, Work]:
    """Its 8-bit blockwise code, which rests on bitsandbytes."""
    from hivemind.compression import serialize_torch_tensor
    from hivemind.proto.runtime_pb2 import CompressionType

    def compress() -> bytes:
        message: bytes = serialize_torch_tensor(values, CompressionType.BLOCKWISE_8BIT).SerializeToString()
        return message

    try:
        compress()
    except ImportError:
        return {}
    return {"hivemind encode": compress}


def bitsandbytes_contenders(values: torch.Tensor) -> dict[str, Work]:
    try:
        from bitsandbytes import functional
    except ImportError:
        return {}
    coded, state = functional.quantize_blockwise(values, blocksize=BLOCK)
    return {
        "bitsandbytes encode": lambda: functional.quantize_blockwise(values, blocksize=BLOCK),
        "bitsandbytes decode": lambda: functional.dequantize_blockwise(coded, state),
    }


RATIOS: tuple[tuple[str, str, float | None], ...] = (
    ("int8 encode", "absmax pass", 0.6),
    ("int8 encode", "bitsandbytes encode", 20.0),
    ("int8 encode", "torch int8 encode", None),
    ("int8 decode", "write-only fill", 0.7),
    ("int8 decode", "bitsandbytes decode", 2.0),
    ("dynamic8 encode", "absmax pass", 0.3),
    ("dynamic8 encode", "bitsandbytes encode", 10.0),
    ("dynamic8 decode", "bitsandbytes decode", 1.5),
    ("int8 encode, to wire bytes", "hivemind encode", 10.0),
    ("dynamic8 encode, to wire bytes", "hivemind encode", 10.0),
    ("int8 encode, to wire bytes", "memcpy", None),
    ("int8 decode, from wire bytes", "memcpy", None),
)
"""(item, what it is compared with, how many times as fast it is to be)."""


def measure(work: dict[str, Work], rounds: int) -> dict[str, float]:
    """Median seconds of a call, every contender having its turn in every round."""
    repeats = {}
    for name, call in work.items():
        call()
        began = time.perf_counter()
        call()
        repeats[name] = max(1, int(ENOUGH_SECONDS / max(1e-9, time.perf_counter() - began)))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            began = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.perf_counter() - began) / repeats[name])
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=4.0, help="of fp32 values (default: 4)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    elements = int(options.mib * (1 << 20) / 4)
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(elements, dtype=np.float32))
    rows = []
    print(f"{engine.name()}; {elements} elements, blocks of {BLOCK}")
    for setting, threads in (("1 thread", 1), ("2 threads", 2), ("busy neighbour", 1)):
        torch.set_num_threads(threads)
        neighbour = (
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) if setting == "busy neighbour" else None
        )
        try:
            took = measure(contenders(values, threads), options.rounds)
        finally:
            if neighbour is not None:
                neighbour.kill()
                neighbour.wait()
        print(f"\n## {setting}\n\n| contender | GB/s of the fp32 side |\n|---|---|")
        for name, seconds in took.items():
            print(f"| {name} | {4 * elements / seconds / 1e9:.2f} |")
        print("\n| item | compared with | times as fast | to be |\n|---|---|---|---|")
        for item, other, bound in RATIOS:
            if other in took:
                ratio = took[other] / took[item]
                rows.append({"setting": setting, "item": item, "ratio_to": other, "ratio": ratio, "bound": bound})
                print(f"| {item} | {other} | {ratio:.2f} | {'' if bound is None else bound} |")
    if options.json is not None:
        options.json.write_text(json.dumps({"elements": elements, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
