"""How long a volunteer who joins a running swarm takes until it counts, and what that costs the others.

    python benchmarks/joining.py [--joins 3] [--quiet 10] [--batch 16] [--visit 0.1 0.2] [--json]

Real processes, libp2p and DHT on this machine; `tiny`, 3 stages of 2 peers, one-step delayed updates. Devices are
simulated: each visit keeps one for `--visit` seconds, forward and backward, so that what is slow here is what would be
slow at home, but for the imports, which share this machine's cores with the whole swarm. The newcomer is `swarm-peer
join` with nothing in its cache; it leaves politely `--quiet` seconds after it counted, and another one comes, which
asks for the next stage.

*Counted* is from the start of its process to the coordinator's `settled` of the first step that has its work in it;
the phases, in its own words, go on to the first Reduce that names a microbatch of it, which is a little less.
*Credited* is from the start to its first visit that the trainer heard to be done. Throughput is of the run: visits
that ended with a gradient, over the stages. *Dip*: from the start of the newcomer's process until it counted, less
than in the `--quiet` seconds before, as a share of these; *before its first visit* the same until then, when all work
is the others'; *afterwards* the same of the `--quiet` seconds after it counted, when nobody joins: what of a dip is
chance. *All joins together*: visits until they counted, less than those that the times before would have given. *CPU*
is what its own process has used when it counts: with other work on this machine, the rest of it was waiting.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from swarm_peer.peer.local_swarm import Child, LocalSwarm
from swarm_peer.swarm.milestones import PHASES
from swarm_peer.swarm.shared_folder import SharedFolder

REPLICAS = 2
SETTLED_STEPS = 4
"""Steps before the first newcomer comes: connections are there, paces are known."""

LIMIT_SECONDS = 60.0
"""How long a newcomer may take to count before this gives up on it, with its last words."""

PAUSE_SECONDS = 2.0
"""Between a newcomer's end and the next quiet time."""

MANIFEST = """
[model]
name = "tiny"
stages = {stages}
[train]
steps = 1000000
batch = {batch}
[data]
texts = ['{folder}/text.txt']
heldout = ['{folder}/heldout.txt']
heldout_tokens = 64
sequence_length = 32
[pipeline]
min_replicas = 2
slots = 8
staleness = 1
"""


@dataclass
class Join:
    """One newcomer; times are monotonic. `places`: how often it was given one: more than once if it was sent away."""

    peer: str
    began: float
    places: int = 0
    stage: int = -1
    members: set[int] = field(default_factory=set)
    ready: float = 0.0
    visited: float = 0.0
    credited: float = 0.0
    counted: float = 0.0
    cpu: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    load: float = 0.0
    """The machine's load average over a minute, as it began."""


@dataclass
class Bench:
    """One swarm and its newcomers, one after the other."""

    options: argparse.Namespace
    joins: list[Join] = field(default_factory=list)
    visits: list[float] = field(default_factory=list)
    """When each visit ended with its gradient."""

    def __post_init__(self) -> None:
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._run: dict[str, Any] = {}
        self._child: Child | None = None
        self._began = self._over = False
        self.swarm: LocalSwarm

    def run(self) -> None:
        folder = SharedFolder.temporary()
        _write_texts(folder.path)
        self._environment = {"SWARM_PEER_STATE": str(folder.path / "state"), "SWARM_PEER_HOME": str(folder.path / "c")}
        self.swarm = LocalSwarm("tiny", folder, self._environment)
        manifest = MANIFEST.format(stages=self.options.stages, batch=self.options.batch, folder=folder.path)
        try:
            self.swarm.start_coordinator(manifest, "--http", "off", "--api", "off")
            for event in self.swarm.events(self._act, pause=0.05):
                self._see(event, time.monotonic())
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
        for entry in [entry for entry in self._due if entry[0] <= time.monotonic()]:
            self._due.remove(entry)
            entry[1]()

    def _join(self) -> None:
        number = self.options.stages * REPLICAS + len(self.joins)
        self.swarm.environment = {**self._environment, "SWARM_PEER_HOME": str(self.swarm.folder.path / f"c{number}")}
        load, began = os.getloadavg()[0], time.monotonic()
        self._child = self._start(number, "--json", "--stage", str(len(self.joins) % self.options.stages))
        join = Join(self._child.peer, began, load=load)
        self.joins.append(join)
        self._later(LIMIT_SECONDS, lambda: self._give_up(join))

    def _start(self, number: int, *flags: str) -> Child:
        device = ("--simulated-device", *(str(seconds) for seconds in self.options.visit))
        return self.swarm.start_peer(number, self._run["run_id"], self._run["addresses"], *device, *flags)

    def _give_up(self, join: Join) -> None:
        if not join.counted:
            assert self._child is not None
            last_words = self.swarm.last_words(self._child.name)
            raise RuntimeError(f"a newcomer has not counted after {LIMIT_SECONDS:.0f} s: {join}\n{last_words}")

    def _leave(self) -> None:
        assert self._child is not None
        self._child.process.send_signal(signal.SIGINT)

    # ---- events

    def _see(self, event: dict[str, Any], now: float) -> None:
        kind = event["event"]
        if kind == "listening":
            self._run = event
            for number in range(self.options.stages * REPLICAS):
                self._start(number)
        elif kind == "visited" and event["phase"] == "HELD":
            self.visits.append(now)
        elif kind == "stepped" and event["step"] >= SETTLED_STEPS and not self._began:
            self._began = True
            self._later(self.options.quiet, self._join)
        if self.joins:
            self._see_newcomer(self.joins[-1], event, now)

    def _see_newcomer(self, join: Join, event: dict[str, Any], now: float) -> None:
        kind = event["event"]
        if kind == "settled" and not join.counted and join.members & {member for member, _ in event["counted"]}:
            assert self._child is not None
            join.counted, join.cpu = now, _cpu_seconds(self._child.process.pid)
            self._later(self.options.quiet, self._leave)
        if event.get("peer") != join.peer:
            return
        if kind == "joined":
            join.places += 1
            join.stage = event["stage"]
            join.members.add(event["member"])
        elif kind == "ready":
            join.ready = join.ready or now
        elif kind == "visited":
            join.visited = join.visited or now
            if event["phase"] == "HELD":
                join.credited = join.credited or now
        elif kind in ("left", "lost") and join.counted:
            self._end(join)

    def _end(self, join: Join) -> None:
        assert self._child is not None
        self._child.process.wait(30)
        told = [
            json.loads(line) for line in self._child.log.read_text(encoding="utf-8").splitlines() if line[:1] == "{"
        ]
        join.phases = next(event["phases"] for event in told if event["event"] == "counted")
        said = [event["text"] for event in told if event["event"] == "said"]
        join.refusals = [text for text in said if text.startswith("not under trainer")]
        _progress(f"{len(self.joins)} of {self.options.joins}: counted after {join.counted - join.began:.1f} s")
        if len(self.joins) < self.options.joins:
            self._later(PAUSE_SECONDS + self.options.quiet, self._join)
        else:
            self._over = True

    # ---- what it comes to

    def rate(self, first: float, last: float) -> float:
        """Microbatches a second between two times."""
        ended = bisect_left(self.visits, last) - bisect_left(self.visits, first)
        return ended / self.options.stages / (last - first)

    def row(self, join: Join) -> dict[str, Any]:
        """One newcomer, in numbers."""
        quiet = self.options.quiet
        before = self.rate(join.began - quiet, join.began)
        after = self.rate(join.counted, join.counted + quiet)
        return {
            "stage": join.stage,
            "places": join.places,
            "refusals": join.refusals,
            "load": join.load,
            "counted": join.counted - join.began,
            "credited": join.credited - join.began,
            "cpu": join.cpu,
            "ready": join.ready - join.began,
            "phases": join.phases,
            "before": before,
            "during": self.rate(join.began, join.counted),
            "after": after,
            "dip": 1 - self.rate(join.began, join.counted) / before,
            "dip_before_its_first_visit": 1 - self.rate(join.began, join.visited) / before,
            "dip_afterwards": 1 - after / before,
        }


def pooled_dip(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """The dip until they counted of all joins together, each weighing as long as it took, and the bounds that 95 of 100
    draws of as many joins with replacement are within."""

    def dip(chosen: Sequence[dict[str, Any]]) -> float:
        return 1 - sum(row["during"] * row["counted"] for row in chosen) / sum(
            row["before"] * row["counted"] for row in chosen
        )

    draw = random.Random("pooled")
    drawn = sorted(dip(draw.choices(rows, k=len(rows))) for _ in range(2000))
    return dip(rows), drawn[50], drawn[-51]


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _write_texts(folder: Path) -> None:
    draw = random.Random("joining")
    for name, words in (("text", 40_000), ("heldout", 2_000)):
        text = " ".join("".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(words))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _range(values: Iterable[float], form: str) -> str:
    ordered: Sequence[float] = sorted(values)
    return f"{statistics.median(ordered):{form}} ({ordered[0]:{form}} to {ordered[-1]:{form}})"


def _print(rows: Sequence[dict[str, Any]]) -> None:
    def told(name: str, key: str, form: str) -> None:
        print(f"| {name} | {_range((row[key] for row in rows), form)} |")

    print("| of one join | median (range) |\n|---|---|")
    told("seconds until it counted", "counted", ".1f")
    told("until its first visit was credited", "credited", ".1f")
    told("CPU seconds until it counted", "cpu", ".1f")
    for phase in PHASES:
        print(f"| - {phase} | {_range((row['phases'][phase] for row in rows), '.2f')} |")
    told("microbatches/s before", "before", ".2f")
    told("until it counted", "during", ".2f")
    told("after", "after", ".2f")
    told("dip until it counted", "dip", ".1%")
    told("dip before its first visit", "dip_before_its_first_visit", ".1%")
    told("dip afterwards", "dip_afterwards", ".1%")
    dip, low, high = pooled_dip(rows)
    print(f"| dip until it counted, all joins together (95 % of draws) | {dip:.1%} ({low:.1%} to {high:.1%}) |")
    again = sum(row["places"] - 1 for row in rows)
    print(
        f"\n{len(rows)} joined, at stages {', '.join(str(row['stage']) for row in rows)}; sent away and back: {again}."
    )
    for line in (line for row in rows for line in row["refusals"]):
        print(f"  {line}")
    loads = ", ".join(f"{row['load']:.1f}" for row in rows)
    print(f"Load of the machine over the minute before each: {loads}, on {os.cpu_count()} cores.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joins", type=int, default=3)
    parser.add_argument("--quiet", type=float, default=10.0)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--visit", type=float, nargs=2, default=(0.1, 0.2), metavar=("FORWARD", "BACKWARD"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bench = Bench(options)
    bench.run()
    rows = [bench.row(join) for join in bench.joins]
    if options.json:
        print(json.dumps({"joins": rows, "pooled_dip": pooled_dip(rows)}, indent=2))
    else:
        _print(rows)


if __name__ == "__main__":
    main()
