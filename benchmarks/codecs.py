"""How fast tensors become bytes and come back, beside bitsandbytes, hivemind, plain torch and the memory itself.

    python benchmarks/codecs.py [--mib 4] [--rounds 15] [--json FILE] [--plot FILE]

All contenders take turns in one process; medians, and ratios of medians: gigabytes a second differ from machine to
machine, ratios less. One thread, two threads, and one thread beside a busy process. bitsandbytes and hivemind,
which rests on it, are compared with if it is installed (`pip install -e '.[bench]'`).

The JSON: `{"elements": n, "rows": [{"setting", "item", "ratio_to", "ratio", "bound"}, ...], "codecs": [{"codec",
"block", "bits", "rmse", "encode", "decode"}, ...]}`; `setting` is `1 thread`, `2 threads` or `busy neighbour`, `ratio`
how many times as fast `item` is as `ratio_to`, `bound` what it is to reach, or null; `bits` an element, `rmse` in per
cent of N(0, 1), `encode` and `decode` to and from wire bytes in GB/s of the fp32 side. The plot shows `codecs`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
    codes, scales = np.empty(elements, np.uint8), np.empty(len(largest), np.uint16)
    parts = {name: parts_of(data, elements, width) for (name, data), width in zip(coded.items(), (2, 4), strict=True)}
    out = torch.empty(elements).numpy()  # aligned, as every tensor is
    work: dict[str, Work] = {
        "memcpy": lambda: np.copyto(copy, array),
        "absmax pass": lambda: module.absmax(array, largest, elements, BLOCK),
        "write-only fill": lambda: filled.fill_(1.0),
        "int8 encode": lambda: module.quantize("linear", array, codes, scales, elements, BLOCK, threads),
        "int8 decode": lambda: module.dequantize("linear", *parts["int8"], out, elements, BLOCK, threads),
        "dynamic8 encode": lambda: module.quantize("dynamic", array, codes, largest, elements, BLOCK, threads),
        "dynamic8 decode": lambda: module.dequantize("dynamic", *parts["dynamic8"], out, elements, BLOCK, threads),
        "int8 encode, to wire bytes": lambda: encode(values, int8, threads=threads),
        "int8 decode, from wire bytes": lambda: decode(coded["int8"], spec=int8, threads=threads),
        "dynamic8 encode, to wire bytes": lambda: encode(values, dynamic8, threads=threads),
        "torch int8 encode": lambda: plain_torch(values),
    }
    return {**work, **hivemind_contenders(values), **bitsandbytes_contenders(values)}


def parts_of(coded: bytes, elements: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scales) of a message whose scales have `width` bytes."""
    payload = np.frombuffer(coded, np.uint8)[len(coded) - elements - width * -(-elements // BLOCK) :]
    return payload[-elements:].copy(), payload[:-elements].copy()


def nf4_contenders(threads: int) -> dict[str, Work]:
    """A weight of 4096 x 4096 in blocks of 64, as QLoRA has it. Prints how many codes differ from bitsandbytes'."""
    module, elements = engine.native(), 4096 * 4096
    assert module is not None
    values = torch.from_numpy(np.random.default_rng(1).standard_normal((4096, 4096), dtype=np.float32))
    array, out = values.numpy().reshape(-1), np.empty(elements, np.float32)
    codes, scales = np.empty(elements // 2, np.uint8), np.empty(elements // 64, np.float32)
    module.quantize("nf4", array, codes, scales, elements, 64, threads)
    work: dict[str, Work] = {
        "nf4 quantize": lambda: module.quantize("nf4", array, codes, scales, elements, 64, threads),
        "nf4 dequantize": lambda: module.dequantize("nf4", codes, scales, out, elements, 64, threads),
    }
    try:
        from bitsandbytes import functional
    except ImportError:
        return work
    theirs, state = functional.quantize_4bit(values, quant_type="nf4", blocksize=64)
    differing = int((theirs.view(-1).numpy() != codes).sum())
    print(f"\nnf4, 4096 x 4096: {differing} bytes of codes differ from bitsandbytes'")
    return {
        **work,
        "bitsandbytes nf4 quantize": lambda: functional.quantize_4bit(values, quant_type="nf4", blocksize=64),
        "bitsandbytes nf4 dequantize": lambda: functional.dequantize_4bit(theirs, state),
    }


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
    ("nf4 quantize", "bitsandbytes nf4 quantize", 25.0),
    ("nf4 dequantize", "bitsandbytes nf4 dequantize", 2.5),
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


CODECS = (
    ("fp32", 256),
    ("bf16", 256),
    ("int8", 64),
    ("int8", 256),
    ("int8", 4096),
    ("int8+columns", 256),
    ("int8+entropy", 256),
    ("dynamic8", 256),
    ("dynamic8+entropy", 256),
    ("int4", 64),
    ("int4+rotation", 64),
    ("nf4", 64),
    ("nf4+entropy", 64),
)


def codec_rows(values: torch.Tensor, rounds: int) -> list[dict[str, object]]:
    """Bits, error and speed of whole codecs, one thread. `values`: fp32 [n]."""
    rows: list[dict[str, object]] = []
    matrix = values.view(-1, 1024)
    for text, block in CODECS:
        spec = CodecSpec.parse(text, block)
        coded = encode(matrix, spec)
        error = ((decode(coded) - matrix).norm() / matrix.norm()).item()
        work = {"encode": partial(encode, matrix, spec), "decode": partial(decode, coded)}
        speeds = {name: 4 * values.numel() / took / 1e9 for name, took in measure(work, rounds).items()}
        bits = 8 * len(coded) / values.numel()
        rows.append({"codec": text, "block": block, "bits": bits, "rmse": 100 * error, **speeds})
    return rows


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """Error and throughput against bits an element."""
    from matplotlib import pyplot

    figure, (errors, speeds) = pyplot.subplots(1, 2, figsize=(13, 6))
    wrong, fast = [], []
    for row in rows:
        name = f"{row['codec']}, {row['block']}" if row["codec"] not in ("fp32", "bf16") else str(row["codec"])
        if row["rmse"]:
            (marker,) = errors.plot(row["bits"], row["rmse"], "o")
            wrong.append((name, row["bits"], row["rmse"], marker.get_color()))
        speeds.plot(row["bits"], row["encode"], "^", color="tab:blue")
        speeds.plot(row["bits"], row["decode"], "v", color="tab:orange")
        fast.append((name, row["bits"], row["encode"], "black"))
    errors.set(xlabel="bits an element", ylabel="relative RMSE of N(0, 1), %", yscale="log")
    speeds.set(xlabel="bits an element", ylabel="GB/s of the fp32 side (up: encode, down: decode)", yscale="log")
    errors.margins(0.2)
    figure.tight_layout()
    label(errors, wrong)
    label(speeds, fast)
    figure.savefig(path, dpi=120)


def label(axes: Any, points: list[tuple[str, Any, Any, str]]) -> None:
    """Names of points (name, x, y, color), each at the nearest place that no marker and no other name takes."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    axes.figure.canvas.draw()
    window, room = axes.get_window_extent(), 5
    taken = [
        Bbox.from_bounds(x - room, y - room, 2 * room, 2 * room)
        for line in axes.lines
        for x, y in axes.transData.transform(line.get_xydata())
    ]
    places = [(side, 8 * step) for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6) for side in (7, -7)]
    for name, x, y, color in sorted(points, key=lambda point: -point[2]):
        for right, up in places:
            text = axes.annotate(
                name,
                (x, y),
                xytext=(right, up),
                textcoords="offset points",
                ha="left" if right > 0 else "right",
                va="center",
                fontsize=8,
                color=color,
                arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6} if up else None,
            )
            text.update_positions(axes.figure.canvas.get_renderer())
            box = Text.get_window_extent(text)  # an annotation's own takes the line in
            if window.contains(box.x0, box.y0) and window.contains(box.x1, box.y1) and not box.count_overlaps(taken):
                break
            if (right, up) != places[-1]:
                text.remove()
        taken.append(box)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=4.0, help="of fp32 values (default: 4)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="needs matplotlib")
    options = parser.parse_args()
    elements = int(options.mib * (1 << 20) / 4)
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(elements, dtype=np.float32)).clone()
    rows = []
    print(f"{engine.name()}; {elements} elements, blocks of {BLOCK}")
    for setting, threads in (("1 thread", 1), ("2 threads", 2), ("busy neighbour", 1)):
        torch.set_num_threads(threads)
        neighbour = (
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) if setting == "busy neighbour" else None
        )
        try:
            took = measure(contenders(values, threads), options.rounds)
            took |= measure(nf4_contenders(threads), min(options.rounds, 5))
        finally:
            if neighbour is not None:
                neighbour.kill()
                neighbour.wait()
        print(f"\n## {setting}\n\n| contender | GB/s of the fp32 side |\n|---|---|")
        for name, seconds in took.items():
            count = 4096 * 4096 if "nf4" in name else elements
            print(f"| {name} | {4 * count / seconds / 1e9:.2f} |")
        print("\n| item | compared with | times as fast | to be |\n|---|---|---|---|")
        for item, other, bound in RATIOS:
            if other in took:
                ratio = took[other] / took[item]
                rows.append({"setting": setting, "item": item, "ratio_to": other, "ratio": ratio, "bound": bound})
                print(f"| {item} | {other} | {ratio:.2f} | {'' if bound is None else bound} |")
    torch.set_num_threads(1)
    codecs = codec_rows(values, min(options.rounds, 5))
    print(
        "\n## Codecs, 1 thread, wire bytes\n\n| codec | block | bits | relative RMSE, % | encode, GB/s | decode, GB/s |"
    )
    print("|---|---|---|---|---|---|")
    for row in codecs:
        numbers = f"{row['bits']:.3f} | {row['rmse']:.3f} | {row['encode']:.2f} | {row['decode']:.2f}"
        print(f"| {row['codec']} | {row['block']} | {numbers} |")
    if options.json is not None:
        found = {"elements": elements, "rows": rows, "codecs": codecs}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot(codecs, options.plot)


if __name__ == "__main__":
    main()
