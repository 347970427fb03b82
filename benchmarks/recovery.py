"""How fast a swarm of real processes gets over SIGKILLs and freezes, and what they cost: `tiny`, 3 stages, 3 replicas.

    python benchmarks/recovery.py [--faults 100] [--swarms 4] [--period 10] [--quiet 60] [--seed 0]

Each swarm first trains for `--quiet` seconds unharmed, then with a fault every `--period` seconds: three SIGKILLs (the
peer is started again 3 s later), then one freeze (SIGSTOP for 8 s), at seeded random moments, never the last up-to-date
replica of a stage. Start-up is excluded.

Recovery: from the signal to the trainer's Done of the first microbatch that the victim had in hand or was credited
with, what had to be computed again included (some milliseconds on `tiny`). Work lost: stage-visits begun beyond the
first. Throughput: label tokens committed a second with faults, over the same swarm's without. Needs the texts:
`swarm-peer fetch shakespeare hamlet`.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarm_peer.peer.local_swarm import LocalSwarm
from swarm_peer.peer.watching import Watching
from swarm_peer.swarm.shared_folder import SharedFolder

STAGES, REPLICAS = 3, 3
BACK_SECONDS = 3.0
FREEZE_SECONDS = 8.0
SILENCE_SECONDS = 3.0
MANIFEST = f"""
[model]
name = "tiny"
stages = {STAGES}
[train]
mode = "full"
steps = 1000000
batch = 32
[data]
sequence_length = 64
[pipeline]
min_replicas = {REPLICAS}
silence = {SILENCE_SECONDS}
"""

PARTS = ("quiet", "faults")


@dataclass
class Blow:
    """One fault and what came of it. `member`: the victim's number, from when the trainer knows of it on: a peer that
    comes again has another."""

    kind: str
    peer: str
    at: float
    member: int | None = None
    lost_at: float | None = None
    recovered_at: float | None = None


@dataclass
class Bench:
    """One swarm: what it did unharmed, and under faults."""

    faults: int
    period: float
    quiet: float
    draw: random.Random
    blows: list[Blow] = field(default_factory=list)
    tokens: dict[str, float] = field(default_factory=lambda: {"quiet": 0.0, "faults": 0.0})
    seconds: dict[str, float] = field(default_factory=lambda: {"quiet": 0.0, "faults": 0.0})
    reissued: dict[str, int] = field(default_factory=lambda: {"quiet": 0, "faults": 0})

    def __post_init__(self) -> None:
        self._watching = Watching()
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._down: set[str] = set()
        self._part = ""
        self._part_began = 0.0
        self._over = False
        self._run: dict[str, Any] = {}
        self.swarm: LocalSwarm

    def run(self) -> None:
        folder = SharedFolder.temporary()
        self.swarm = LocalSwarm("tiny", folder, {"SWARM_PEER_STATE": str(folder.path / "state")})
        try:
            self.swarm.start_coordinator(MANIFEST)
            for event in self.swarm.events(self._act, pause=0.05):
                self._see(event)
                if self._over:
                    return
            raise RuntimeError(f"the coordinator ended:\n{self.swarm.last_words()}")
        finally:
            self.swarm.close()
            folder.leave()

    # ---- time

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + seconds, call))

    def _act(self) -> None:
        now = time.monotonic()
        for entry in [entry for entry in self._due if entry[0] <= now]:
            self._due.remove(entry)
            entry[1]()

    def _begin(self, part: str) -> None:
        """What is committed from now on counts for this part of the run."""
        now = time.monotonic()
        if self._part:
            self.seconds[self._part] += now - self._part_began
        self._part, self._part_began = part, now

    # ---- events

    def _see(self, event: dict[str, Any]) -> None:
        self._watching.see(event)
        kind = event["event"]
        if kind == "listening":
            self._run = event
            self.swarm.start_peers(STAGES * REPLICAS, event["run_id"], event["addresses"])
        elif kind == "stepped":
            if event["step"] == 2:
                self._begin("quiet")
                self._later(self.quiet, self._begin_faults)
            elif self._part:
                self.tokens[self._part] += event["tokens"]
                self.reissued[self._part] += event["reissued"]
        elif kind == "lost":
            for blow in self.blows:
                if blow.peer == event["peer"] and blow.member is None and blow.at <= event["at"]:
                    blow.member, blow.lost_at = event["member"], event["at"]
        elif kind == "rerouted":
            for blow in self.blows:
                if blow.member == event["member"] and blow.recovered_at is None:
                    blow.recovered_at = event["at"]

    # ---- faults

    def _begin_faults(self) -> None:
        self._begin("faults")
        for number in range(self.faults):
            kind = "freeze" if number % 4 == 3 else "kill"
            self._later((number + self.draw.uniform(0.1, 0.9)) * self.period, lambda kind=kind: self._strike(kind))
        self._later(self.faults * self.period + FREEZE_SECONDS, self._finish)

    def _finish(self) -> None:
        self._begin("")
        self._over = True

    def _strike(self, kind: str) -> None:
        peers = self._watching.may_fail(self._down)
        if not peers:
            self._later(0.5, lambda: self._strike(kind))
            return
        peer = self.draw.choice(peers)
        child = self.swarm.child_of(peer)
        at = self.swarm.kill(child) if kind == "kill" else self.swarm.freeze(child)
        self.blows.append(Blow(kind, peer, at))
        self._down.add(peer)

        def back() -> None:
            self._down.discard(peer)
            if kind == "kill":
                number = int(child.name.removeprefix("peer-"))
                self.swarm.start_peer(number, self._run["run_id"], self._run["addresses"])
            else:
                self.swarm.thaw(child)

        self._later(BACK_SECONDS if kind == "kill" else FREEZE_SECONDS, back)


def _row(name: str, seconds: Sequence[float], target: str) -> str:
    if not seconds:
        return f"| {name} | 0 | | | | {target} |"
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"| {name} | {len(ordered)} | {statistics.median(ordered):.2f} | {p99:.2f} | {ordered[-1]:.2f} | {target} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--swarms", type=int, default=4)
    parser.add_argument("--period", type=float, default=10.0)
    parser.add_argument("--quiet", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    benches = []
    for number in range(options.swarms):
        count = options.faults * (number + 1) // options.swarms - options.faults * number // options.swarms
        draw = random.Random(f"recovery {options.seed}/{number}")
        bench = Bench(count, options.period, options.quiet, draw)
        bench.run()
        benches.append(bench)
        print(f"swarm {number}: {len(bench.blows)} faults", file=sys.stderr, flush=True)
    blows = [blow for bench in benches for blow in bench.blows]
    healed = [blow for blow in blows if blow.recovered_at is not None]
    kills = [blow.recovered_at - blow.at for blow in healed if blow.kind == "kill" and blow.recovered_at]
    freezes = [blow.recovered_at - blow.at for blow in healed if blow.kind == "freeze" and blow.recovered_at]
    idle = len(blows) - len(healed)
    print("| seconds from the signal to the next useful Done | faults | p50 | p99 | longest | target |")
    print("|---|---|---|---|---|---|")
    print(_row("SIGKILL", kills, "p50 < 0.5, p99 < 3"))
    print(_row("SIGKILL, until the trainer knows", _found(blows, "kill"), ""))
    print(_row("freeze", freezes, f"p50 < {2 * SILENCE_SECONDS:.0f}"))
    print(_row("freeze, until the trainer knows", _found(blows, "freeze"), ""))
    rates = {part: sum(b.tokens[part] for b in benches) / sum(b.seconds[part] for b in benches) for part in PARTS}
    extra = {part: sum(bench.reissued[part] for bench in benches) for part in PARTS}
    print(f"\nOf {len(blows)} faults {idle} hit a peer that had nothing in hand.", end=" ")
    print(f"Work lost: {extra['faults'] / len(blows):.1f} microbatch-stages a fault", end=" ")
    print(f"({extra['quiet']} in all without faults).")
    print(f"Tokens a second: {rates['quiet']:.0f} without faults, {rates['faults']:.0f} with one every", end=" ")
    print(f"{options.period:g} s, starts of the killed included: {rates['faults'] / rates['quiet']:.2f} kept.")


def _found(blows: Sequence[Blow], kind: str) -> list[float]:
    return [blow.lost_at - blow.at for blow in blows if blow.kind == kind and blow.lost_at is not None]


if __name__ == "__main__":
    main()
