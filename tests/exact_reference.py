"""The exact run as one loop: no host, no trainer, no transport; its own arithmetic. What the swarm must equal to the
bit."""

import hashlib
import struct
from dataclasses import dataclass

P = 2**61 - 1
D = 5
RATE = 12345678901


def words(*name: object) -> list[int]:
    raw = hashlib.shake_256(repr(name).encode()).digest(8 * D)
    return [int.from_bytes(raw[8 * k : 8 * k + 8], "little") % P for k in range(D)]


def tokens(step: int, index: int) -> bytes:
    return hashlib.sha256(f"{step}/{index}".encode()).digest()[:8]


@dataclass
class Reference:
    losses: list[int]
    norms: list[int]
    digests: list[str]
    before: int
    after: int


def microbatch(weights: list[list[int]], seed: int, step: int, index: int, data: bytes) -> tuple[int, list[list[int]]]:
    """Loss and the gradient of every stage's weights."""
    x = words(seed, "input", data)
    inputs = []
    for stage, w in enumerate(weights):
        inputs.append(x)
        c = words(seed, "constant", stage, step, index)
        x = [(x[k] + w[k] * x[(k + 1) % D] * x[(k + 1) % D] + c[k]) % P for k in range(D)]
    loss = sum(pow(value, 3, P) for value in x) % P
    back = [3 * value * value % P for value in x]
    gradients: list[list[int]] = []
    for w, at in zip(reversed(weights), reversed(inputs), strict=True):
        gradients.insert(0, [back[k] * at[(k + 1) % D] ** 2 % P for k in range(D)])
        through = [2 * back[k - 1] * w[k - 1] * at[k] for k in range(D)]
        back = [(back[k] + through[k]) % P for k in range(D)]
    return loss, gradients


def reference(*, stages: int, steps: int, batch: int, staleness: int, seed: int = 0) -> Reference:
    versions = [[words(seed, "weights", stage) for stage in range(stages)]]
    losses, norms = [], []
    for step in range(steps):
        at = versions[max(0, step - staleness)]
        results = [microbatch(at, seed, step, index, tokens(step, index)) for index in range(batch)]
        losses.append(sum(loss for loss, _ in results) % P)
        total = [[sum(g[s][k] for _, g in results) % P for k in range(D)] for s in range(stages)]
        norms.append(sum(value * value for row in total for value in row) % P)
        latest = versions[-1]
        versions.append([[(latest[s][k] - RATE * total[s][k]) % P for k in range(D)] for s in range(stages)])
    held = [microbatch(versions[v], seed, v, 0, tokens(-1, 0))[0] for v in (0, steps)]
    digests = [hashlib.sha256(struct.pack(f"<{D}Q", *row)).hexdigest() for row in versions[-1]]
    return Reference(losses, norms, digests, held[0], held[1])
