"""The soak: churn of every kind for half an hour, and whether any process's memory or descriptors grew.

Carries out a schedule of `real_faults.py` in which kills are seldom enough for most processes to live on, and one peer
is never killed. Every few seconds it looks at each process of the swarm (the programs, and the network daemon of each
member) in Linux' /proc, until the last fault; at the end it writes what it saw, draws a line for each incarnation and
judges those that lived long enough (`flatness.py`). What the run itself promised is checked too.

Fails as `RealChaos` does; what was seen until then is written all the same.
"""

import csv
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swarm_peer.peer.local_swarm import LocalSwarm

from tests.chaos.flatness import Bounds, Sample, Series, Verdict, verdicts
from tests.chaos.real import RealChaos
from tests.chaos.real_faults import Pace

PACE = Pace(kill=90.0, trainer=1800.0, leave=180.0, join=300.0, lose=600.0, trainer_from=0.1)
"""The trainer is killed early, so that the one after it is seen for most of the run."""

SPARED = "peer-0"
ROLES = ("peer", "trainer", "standby")
LEARNING_RATE = 1e-4
"""Of the steps of half an hour at the other runs' rate none of the later ones could be compared (`real.py`)."""

MODE, BATCH, STEPS_A_MINUTE = "lora", 24, 20
"""A peer holds the gradients of its microbatches until the step is closed. Of a whole stage they are 0.7 MB each, and
how many there are just then, which is load and no growth, moves its memory by more than a leak would; of LoRA's weights
they are hardly anything. The other chaos runs train whole stages."""

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17), "MALLOC_TRIM_THRESHOLD_": str(1 << 17)}
"""What is freed goes back to the system: else a process' memory is the most that it ever had."""

SECONDS_BETWEEN_SAMPLES = 1.0
"""Descriptors come and go with the streams of a second: few samples would say more of these than of growth."""

PAGE = os.sysconf("SC_PAGE_SIZE")
MB = 1e6


class Sampler:
    """Looks at the processes of a swarm: memory and descriptors of each incarnation."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seen: dict[tuple[int, int, str], Series] = {}

    @property
    def series(self) -> list[Series]:
        return list(self._seen.values())

    @property
    def seconds(self) -> float:
        """From the first sample to the last."""
        times = [sample.at for series in self.series for sample in series.samples]
        return max(times, default=0.0) - min(times, default=0.0)

    def look(self, swarm: LocalSwarm, leader: str) -> None:
        """Takes a sample of every process; `leader`: the coordinator that is the trainer now. A process that is gone
        before it has been read is left out."""
        groups = {child.process.pid: child.name for child in swarm.children.values() if child.alive}
        for pid, command, group, started in _processes():
            if group in groups:
                name, daemon = groups[group], "" if pid == group else f" {command}"
                role = "peer" if name.startswith("peer") else "trainer" if name == leader else "standby"
                series = self._seen.setdefault((pid, started, role), Series(name + daemon, pid, role + daemon))
                try:
                    series.samples.append(_sample(pid, time.monotonic() - self._began))
                except OSError:
                    continue


def _processes() -> Iterator[tuple[int, str, int, int]]:
    """(pid, command, process group, time of its start) of every process that has not ended."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                text = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            head, _, tail = text.rpartition(")")
            fields = tail.split()
            if fields[0] not in "ZX":
                yield int(entry.name), head.partition("(")[2], int(fields[2]), int(fields[19])


def _sample(pid: int, at: float) -> Sample:
    resident = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE
    return Sample(at, resident, len(os.listdir(f"/proc/{pid}/fd")))


def soak(seed: int, minutes: float, out: Path, bounds: Bounds) -> list[str]:
    """Runs it; what is wrong, in words. Leaves `samples.csv`, `soak.json`, `soak.png`, logs and events in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    sampler = Sampler()
    chaos = RealChaos(
        seed,
        minutes * 60,
        tell=lambda line: print(line, flush=True),
        pace=PACE,
        look=sampler.look,
        look_seconds=SECONDS_BETWEEN_SAMPLES,
        spared=SPARED,
        learning_rate=LEARNING_RATE,
        batch=BATCH,
        mode=MODE,
        steps_a_minute=STEPS_A_MINUTE,
        logs=out / "logs",
        environment=GIVEN_BACK,
        # Memory shared with others would be counted as theirs.
        forked=False,
    )
    problems = []
    try:
        chaos.check(chaos.run())
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
    judged = verdicts(sampler.series, sampler.seconds, bounds)
    problems += [f"{verdict.name}: {verdict.problem}" for verdict in judged if verdict.problem]
    for kind in (f"{role}{daemon}" for role in ROLES for daemon in ("", " p2pd")):
        if kind not in {verdict.name for verdict in judged}:
            problems.append(f"no {kind} lived for {bounds.least:.0f} s: it is not judged")
    _write(out, sampler, judged, {"done": chaos.done, "happened": dict(chaos.happened), "problems": problems})
    _draw(sampler.series, out / "soak.png")
    print(table(judged, sampler.seconds))
    return problems


def _write(out: Path, sampler: Sampler, judged: list[Verdict], said: dict[str, Any]) -> None:
    with (out / "samples.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["process", "pid", "kind", "seconds", "resident_bytes", "descriptors"])
        for series in sampler.series:
            for sample in series.samples:
                row = [series.name, series.pid, series.kind, f"{sample.at:.1f}", sample.resident, sample.descriptors]
                writer.writerow(row)
    whole = {"seconds": sampler.seconds, **said, "judged": [verdict._asdict() for verdict in judged]}
    (out / "soak.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def table(judged: list[Verdict], seconds: float) -> str:
    """The verdicts as Markdown."""
    lines = [
        f"| | processes | seconds | memory, MB | growth in {seconds:.0f} s, MB | descriptors | growth | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for verdict in judged:
        memory = f"{verdict.resident / MB:.0f} | {verdict.resident_growth / MB:+.1f}"
        opened = f"{verdict.descriptors:.0f} | {verdict.descriptor_growth:+.1f}"
        seen = f"{verdict.processes} | {verdict.seconds:.0f}"
        lines.append(f"| {verdict.name} | {seen} | {memory} | {opened} | {verdict.problem or 'flat'} |")
    return "\n".join(lines)


def _draw(seen: list[Series], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(14, 8), sharex=True)
    for column, daemons in enumerate((False, True)):
        memory, descriptors = axes[0][column], axes[1][column]
        for series in seen:
            if (" " in series.name) == daemons:
                minutes = [sample.at / 60 for sample in series.samples]
                color = "C0" if series.kind.startswith("peer") else "C3"
                style = {"color": color, "linewidth": 0.8, "alpha": 0.8}
                memory.plot(minutes, [sample.resident / MB for sample in series.samples], **style)
                descriptors.plot(minutes, [sample.descriptors for sample in series.samples], **style)
        memory.set(title="network daemons" if daemons else "programs", ylabel="resident memory, MB", ylim=(0, None))
        descriptors.set(xlabel="minutes", ylabel="descriptors", ylim=(0, None))
    for label, color in (("peers", "C0"), ("coordinators", "C3")):
        axes[0][0].plot([], [], color=color, label=label)
    axes[0][0].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
