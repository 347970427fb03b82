"""What a stage of SmolLM2 really takes of RAM, beside what `swarm/budget.py` reckons: visits that are open at a time.

    python benchmarks/memory.py [--base nf4] [--length 512] [--visits 4]

For each setting of glibc's allocator a process of its own: its peak over two rounds of forward passes that stay open
and their backward passes, beyond what the loaded stage takes.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from swarm_peer.compression import CodecSpec, encode
from swarm_peer.swarm import sizes
from swarm_peer.swarm.backend import StageInput
from swarm_peer.swarm.machine import bytes_text
from swarm_peer.swarm.manifest import parse_settings
from swarm_peer.swarm.model.names import stage_base_shapes
from swarm_peer.swarm.model.weights import random_base
from swarm_peer.swarm.plan_command import shape_of, sketched
from swarm_peer.swarm.torch_backend import TorchBackend

MODEL, STAGE = "smollm2-135m", 1
SETTINGS = {
    "default": {},
    "blocks from 128 KiB on mapped": {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)},
    "all kept (as `demo` does)": {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)},
}


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(base: str, length: int, visits: int) -> None:
    torch.set_num_threads(1)
    text = f'[model]\nname = "{MODEL}"\nbase = "{base}"\n[data]\nsequence_length = {length}\n'
    run = sketched(parse_settings(text), shape_of(MODEL))
    backend = TorchBackend(run, STAGE, random_base(0, run.shape, stage_base_shapes(run, STAGE)))
    state, codecs = backend.initial_state(), run.settings.codecs
    hidden = torch.randn(1, length, run.shape.hidden_size)
    data = encode(hidden, CodecSpec.parse(codecs.activations, codecs.block))
    gradient = encode(hidden, CodecSpec.parse(codecs.gradients, codecs.block))
    before = peak_bytes()
    for _ in range(2):
        held = [backend.forward(state, StageInput(0, n, 1, data, None), train=True) for n in range(visits)]
        while held:
            backend.backward(state, held.pop(0).context, gradient)
    waiting = sizes.graph_bytes(run, STAGE) + sizes.context_bytes(run, STAGE)
    reckoned, real = (visits - 1) * waiting + sizes.peak_bytes(run, STAGE), peak_bytes() - before
    print(f"tensors {bytes_text(reckoned)}, RAM {bytes_text(real)}: {real / reckoned:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", default="nf4")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--visits", type=int, default=4)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options.base, options.length, options.visits)
        return
    for name, environment in SETTINGS.items():
        print(f"{name:<32}", end="", flush=True)
        subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--here"], check=True, env={**os.environ, **environment}
        )


if __name__ == "__main__":
    main()
