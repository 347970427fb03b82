"""Llama-65B in its real shape: what one layer takes to be fetched, quantized and computed by a peer on this machine.

    python benchmarks/llama65b.py [--tokens 128] [--steps 2] [--batch 2] [--base nf4] [--json FILE]

Makes a checkpoint of three true-size layers (809.5 M parameters, 1.62 GB each in bf16) with embedding and head, of
repeated random bytes, and serves it over HTTP. A coordinator and three peers, each a process that hosts one layer, run
on it from its URL. Printed of each peer: the bytes that it was sent, the most memory that it took while it loaded and
in all, what a visit takes, and what 80 such layers need. Takes 8 GB of disk, 8 GB of memory and some minutes.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from swarm_peer.swarm import sizes
from swarm_peer.swarm.events import MemberPulse
from swarm_peer.swarm.manifest import LlamaShape, parse_settings
from swarm_peer.swarm.model.folder import model_config
from swarm_peer.swarm.model.names import base_shapes, stage_base_shapes
from swarm_peer.swarm.model.table import MODELS
from swarm_peer.swarm.plan_command import sketched
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.processes import Home, home
from tests.range_server import RangeServer

LAYERS = 3
SHAPE = MODELS["llama-65b"].shape.model_copy(update={"num_hidden_layers": LAYERS})
INDEX = "model.safetensors.index.json"
LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0")
WORDS = ("the", "peer", "hosts", "a", "stage", "of", "model", "and")


@dataclass
class Peer:
    """What was measured of one. Bytes; `forward` and `backward` in seconds, as it says itself."""

    stage: int
    served: int
    due: int
    loaded: int
    most: int
    held: int
    forward: float = 0.0
    backward: float = 0.0


def write_checkpoint(folder: Path, shape: LlamaShape = SHAPE) -> None:
    """A bf16 checkpoint of this shape in files of a layer each, of repeated random bytes, and a tokenizer of words."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model_config(shape, "bf16")))
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    everything = base_shapes(shape, range(shape.num_hidden_layers), is_first=True, is_last=True)
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, size in everything.items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        files.setdefault(f"model-{layer[1] if layer else 'ends'}.safetensors", {})[name] = size
    for file, tensors in files.items():
        made = {name: _filled(noise, size) for name, size in tensors.items()}
        save_file(made, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def _filled(noise: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    elements = size[0] * size[1]
    return noise.repeat(-(-elements // len(noise)))[:elements].view(size)


def settings_of(url: str, texts: Path, tokens: int, steps: int, batch: int, base: str) -> str:
    return f"""
        [model]
        name = "{url}"
        stages = {LAYERS}
        base = "{base}"
        [train]
        steps = {steps}
        batch = {batch}
        microbatch = 1
        [data]
        texts = ["{texts / "train.txt"}"]
        heldout = ["{texts / "heldout.txt"}"]
        heldout_tokens = {tokens}
        sequence_length = {tokens}
        [pipeline]
        silence = 30.0
        heartbeat = 1.0
        [limits]
        payload_bytes = 536870912
        """


def memory_of(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def served(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as server:
        yield server


def measure(
    place: Home, server: RangeServer, *, tokens: int, steps: int, batch: int, base: str
) -> tuple[list[Peer], dict[str, Any]]:
    """A whole run: what each peer took, and the report."""
    texts = place.folder
    (texts / "train.txt").write_text(" ".join(WORDS * (2 * tokens * batch * steps // len(WORDS) + 2)))
    (texts / "heldout.txt").write_text(" ".join(WORDS[::-1] * (2 * tokens // len(WORDS) + 2)))
    url = f"{server.url}llama"
    text = settings_of(url, texts, tokens, steps, batch, base)
    manifest = sketched(parse_settings(text.replace('"auto"', '"fp32"'), "run"), SHAPE)
    (texts / "run.toml").write_text(text)
    coordinator = place.start("swarm-coordinator", "start", str(texts / "run.toml"), "--json", *LISTEN)
    assert coordinator.stdout is not None
    events = (json.loads(line) for line in coordinator.stdout if line.startswith("{"))
    listening = next(event for event in events if event["event"] == "listening")
    address = ("--run", listening["run_id"], "--initial-peers", *listening["addresses"])
    processes, peers = [], []
    for stage in range(LAYERS):
        before = server.bytes_served
        key = str(texts / f"{stage}.key")
        flags = ("--stage", str(stage), "--stages", "1", "--identity", key, *LISTEN)
        process = place.start("swarm-peer", "join", "--model", url, *address, *flags)
        processes.append(process)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("ready"):
                break
        else:
            raise RuntimeError("".join(said))
        due = sum(2 * torch.Size(size).numel() for size in stage_base_shapes(manifest, stage).values())
        peers.append(
            Peer(stage, server.bytes_served - before, due, memory_of(process.pid), 0, sizes.base_bytes(manifest, stage))
        )
    report = _follow(events, peers, processes)
    for process in (*processes, coordinator):
        process.communicate(timeout=600)
    return peers, report


def _follow(
    events: Iterator[dict[str, Any]], peers: list[Peer], processes: list["subprocess.Popen[str]"]
) -> dict[str, Any]:
    """Reads the run's events to its end: the report. Keeps the least of each peer's smoothed times."""
    stages: dict[int, int] = {}
    for event in events:
        if event["event"] == "joined":
            stages[event["member"]] = event["stage"]
        elif event["event"] == "pulse":
            for pulse in (MemberPulse(*fields) for fields in event["members"]):
                peer = peers[stages[pulse.member]]
                peer.forward = min(peer.forward or pulse.forward, pulse.forward or peer.forward)
                peer.backward = min(peer.backward or pulse.backward, pulse.backward or peer.backward)
        elif event["event"] == "stepped":
            for peer, process in zip(peers, processes, strict=True):
                peer.most = max(peer.most, memory_of(process.pid))
        elif event["event"] == "ended":
            report: dict[str, Any] = event["report"]
            break
    return report


def show(peers: list[Peer], manifest_tokens: int, base: str) -> None:
    print(f"{LAYERS} layers of llama-65b in {base}, one a peer, {manifest_tokens} tokens a microbatch\n")
    print("| stage | sent, GB | due, GB | memory loading, GB | in all | base held | forward, s | backward, s |")
    print("|---|---|---|---|---|---|---|---|")
    for peer in peers:
        numbers = (peer.served, peer.due, peer.loaded, peer.most, peer.held)
        cells = " | ".join(f"{number / 1e9:.2f}" for number in numbers)
        print(f"| {peer.stage} | {cells} | {peer.forward:.1f} | {peer.backward:.1f} |")
    middle = peers[1]
    print(f"\n80 layers: {80 * middle.due / 1e9:.0f} GB to be read, {80 * middle.held / 1e9:.1f} GB held")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--base", default="nf4", choices=("nf4", "int8", "bf16"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="llama65b-"))
    try:
        write_checkpoint(folder / "llama")
        with served(folder) as server, home() as place:
            how = {"tokens": options.tokens, "steps": options.steps, "batch": options.batch, "base": options.base}
            peers, report = measure(place, server, **how)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(peers, options.tokens, options.base)
    print(f"loss {[round(step['loss'], 3) for step in report['steps']]}, ledger {report['ledger']}")
    if options.json:
        options.json.write_text(json.dumps({"peers": [asdict(peer) for peer in peers], "report": report}, indent=2))


if __name__ == "__main__":
    main()
