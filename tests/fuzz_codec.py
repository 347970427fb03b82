"""Mutated messages by the million: what `decode` makes of them is a tensor within the limits, or a `CodecError`.

    python -m tests.fuzz_codec [--count 1000000] [--seed 0] [--sanitize]

Half of the mutants get the checksum that belongs to them, or none would come further than that. `--sanitize` builds the
native kernels with AddressSanitizer and UndefinedBehaviorSanitizer, has Python take every buffer from malloc, and runs
the same in a process of its own: a read or write beyond a buffer ends it.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path

import torch
from swarm_peer.compression import CodecSpec, decode, encode
from swarm_peer.compression.format import CHECKSUM_AT
from swarm_peer.errors import CodecError
from swarm_peer.kernels import engine

MAX_ELEMENTS = 1 << 14
GROWTH_BYTES = 64 << 20
"""What the process may grow by, however much the messages say that they hold."""

SPECS = ("fp32", "fp16", "bf16", "int8", "dynamic8", "nf4", "int4", "int8+columns", "int4+rotation+stochastic")
SPECS += ("dynamic8+entropy", "nf4+columns+entropy", "int8+columns+rotation+stochastic+entropy")
SHAPES = ((), (0,), (1,), (3, 50), (130,), (2, 3, 64), (40, 64))


def originals() -> list[bytes]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for text in SPECS:
        for shape in SHAPES:
            values = torch.randn(shape, generator=generator)
            if values.ndim == 2:
                values[:, 5] *= 50
            made.append(encode(values, CodecSpec.parse(text, 64)))
    return made


def mutate(coded: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """One to four changes: bits, bytes, fields at their bounds, pieces moved, cut off or from another message."""
    mutant = bytearray(coded)
    for _ in range(draw.randint(1, 4)):
        size = len(mutant)
        match draw.randrange(7):
            case 0 if size:
                mutant[draw.randrange(size)] ^= 1 << draw.randrange(8)
            case 1 if size:
                mutant[draw.randrange(size)] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
            case 2 if size >= 4:
                at = draw.randrange(min(size, 60) - 3)
                at -= at % 4 * draw.randrange(2)
                word = draw.choice((0, 1, (1 << 31) - 1, (1 << 32) - 1, draw.getrandbits(32)))
                mutant[at : at + 4] = word.to_bytes(4, "little")
            case 3:
                del mutant[draw.randint(0, size) :]
            case 4:
                mutant += draw.randbytes(draw.randint(1, 40))
            case 5:
                at, other = draw.randint(0, size), draw.choice(others)
                mutant[at:] = other[at:]
            case _:
                at, length = draw.randint(0, size), draw.randint(0, 16)
                mutant[at : at + length] = draw.randbytes(length)
    if len(mutant) >= CHECKSUM_AT + 4 and draw.random() < 0.5:
        size = len(mutant) - 32 - 4 * mutant[6]
        if size >= 0 and draw.random() < 0.8:
            mutant[20:28] = size.to_bytes(8, "little")
        mutant[CHECKSUM_AT : CHECKSUM_AT + 4] = bytes(4)
        mutant[CHECKSUM_AT : CHECKSUM_AT + 4] = engine.crc32(mutant).to_bytes(4, "little")
    return bytes(mutant)


def fuzz(count: int, seed: int) -> Counter[str]:
    """What became of `count` mutants. Raises `AssertionError` for what must not be."""
    draw, made = random.Random(seed), originals()
    for message in made:
        decode(message)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        mutant = mutate(draw.choice(made), draw, made)
        try:
            tensor = decode(mutant, max_elements=MAX_ELEMENTS)
        except CodecError as error:
            outcomes[type(error).__name__] += 1
        else:
            outcomes["decoded"] += 1
            assert tensor.numel() <= MAX_ELEMENTS
            assert bool(torch.isfinite(tensor).all()), mutant.hex()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown <= GROWTH_BYTES, f"the process grew by {grown} bytes"
    return outcomes


def sanitized(count: int, seed: int) -> str:
    """The same with sanitizers, in a process of its own: what it printed. Raises `AssertionError`."""
    source = Path(__file__).parent.parent / "kernels" / "native" / "native.cpp"
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "_native.abi3.so"
        flags = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-shared", "-fPIC", "-fno-omit-frame-pointer"]
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        include = f"-I{sysconfig.get_paths()['include']}"
        subprocess.run(["g++", *flags, *checks, include, str(source), "-o", str(module)], check=True)
        asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        environment = {
            **os.environ,
            "LD_PRELOAD": asan.stdout.strip(),
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:quarantine_size_mb=8",
            "FUZZED_MODULE": str(module),
        }
        command = [sys.executable, "-m", "tests.fuzz_codec", "--count", str(count), "--seed", str(seed)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr[-4000:]}"
        return done.stdout


def _take_fuzzed_module() -> None:
    """Has the engine use the module that was built for this process."""
    path = os.environ.get("FUZZED_MODULE")
    if path is None:
        return
    import importlib.util

    name = "swarm_peer.kernels._native"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    sys.modules["swarm_peer.kernels"]._native = module  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sanitize", action="store_true")
    options = parser.parse_args()
    if options.sanitize:
        print(sanitized(options.count, options.seed), end="")
        return
    _take_fuzzed_module()
    torch.set_num_threads(1)
    outcomes = fuzz(options.count, options.seed)
    module = engine.native()
    where = "" if module is None else f", {module.__file__}"
    print(f"{engine.name()}{where}: {sum(outcomes.values())} mutants, {dict(outcomes)}")


if __name__ == "__main__":
    main()
