"""The memory of hosting stages, line by line: what each part takes, and whether a machine has it.

Owns the list of what a peer holds, and when; the sizes are `sizes.py`'s. Two places: the device (base, states,
gradients, graphs) and the host (coded tensors, the process), which on a CPU are the same memory. Two times: loading,
and running; the larger counts. What a limit of the manifest bounds is counted at its bound, or at all that can come
about, whichever is less. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .machine import Device, Machine, bytes_text
from .manifest import Manifest
from .sizes import (
    Traffic,
    base_bytes,
    context_bytes,
    gradient_bytes,
    graph_bytes,
    input_bytes,
    loading_bytes,
    peak_bytes,
    reduced_bytes,
    state_bytes,
    traffic,
)

PROCESS_BYTES = 365 * 10**6
"""Measured with torch 2.13 (CPU), hivemind 1.1.12, Python 3.11 on x86-64: VmRSS of a process that has imported
`peer/join.py`, multiplied a matrix and opened its node (302 MB), and of its libp2p daemon (62 MB)."""

CUDA_BYTES = 600 * 10**6
"""A CUDA context and its libraries, on the device; an estimate, not measured here."""

SPARE = 0.05
"""Of everything else: what allocators lose between blocks."""

HEAP_LOSS = 0.9
"""On a CPU, of what visits take: blocks that come and go between those of graphs that stay leave holes, which glibc
neither fills nor gives back. Measured (`benchmarks/memory.py`): up to 1.9 times the tensors; with
`MALLOC_MMAP_THRESHOLD_=131072`, which is slower, 1.03 to 1.06."""

COMPUTING, WAITING = "the visit that computes", "visits that wait below"

Place = Literal["device", "host"]
Time = Literal["always", "loading", "running"]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that takes memory."""

    name: str
    bytes: int
    place: Place
    time: Time = "running"


@dataclass(frozen=True, slots=True)
class Budget:
    """What hosting `stages` takes with so many slots each, keeping graphs or computing them again."""

    stages: range
    slots: int
    recompute: bool
    lines: tuple[Line, ...]

    @property
    def total(self) -> int:
        """Bytes where device and host are one memory."""
        return self._most(self.lines)

    def on(self, place: Place) -> int:
        """Bytes in one place."""
        return self._most([line for line in self.lines if line.place == place])

    def line(self, name: str) -> int:
        """Bytes of the line of this name. Raises `KeyError`."""
        return {line.name: line.bytes for line in self.lines}[name]

    @staticmethod
    def _most(lines: Sequence[Line]) -> int:
        at = {time: sum(line.bytes for line in lines if line.time == time) for time in ("always", "loading", "running")}
        return int((at["always"] + max(at["loading"], at["running"])) * (1 + SPARE))

    def lost(self, device: Device) -> int:
        """Bytes that the allocator of a device loses beside `SPARE`."""
        return int(HEAP_LOSS * (self.line(COMPUTING) + self.line(WAITING))) if device.kind == "cpu" else 0

    def ram(self, device: Device) -> int:
        """Bytes of the machine's own memory."""
        return self.total + self.lost(device) if device.memory is None else self.on("host")

    def fits(self, machine: Machine, device: Device) -> bool:
        return all(needed <= there for _, needed, there in self.against(machine, device))

    def against(self, machine: Machine, device: Device) -> list[tuple[str, int, int]]:
        """(memory, bytes needed, bytes there) of each memory that is used."""
        if device.memory is None:
            return [("RAM", self.ram(device), machine.ram)]
        return [
            (device.name, self.on("device") + CUDA_BYTES, device.memory),
            ("RAM", self.ram(device), machine.ram),
        ]


def open_steps(manifest: Manifest) -> int:
    """Steps that may be open on a peer at once: being computed, and one that others have not closed yet. As many
    versions of the trained state are live."""
    return manifest.settings.pipeline.staleness + 2


_Kind = tuple[bool, bool, int]


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of one stage; `graph` is all that a visit keeps between its passes."""

    base: int
    state: int
    gradient: int
    reduced: int
    loading: int
    graph: int
    input: int
    peak: int
    traffic: Traffic


def _kinds(manifest: Manifest, stages: range) -> list[tuple[int, _Kind]]:
    """The stages, and what makes one as large as another."""
    last = manifest.stages - 1
    return [(stage, (stage == 0, stage == last, len(manifest.layers(stage)))) for stage in stages]


def _sizes(manifest: Manifest, stage: int) -> _Sizes:
    return _Sizes(
        base=base_bytes(manifest, stage),
        state=state_bytes(manifest, stage),
        gradient=gradient_bytes(manifest, stage),
        reduced=reduced_bytes(manifest, stage),
        loading=loading_bytes(manifest, stage),
        graph=graph_bytes(manifest, stage) + context_bytes(manifest, stage),
        input=input_bytes(manifest, stage),
        peak=peak_bytes(manifest, stage),
        traffic=traffic(manifest, range(stage, stage + 1)),
    )


def budget(manifest: Manifest, stages: range, *, slots: int, recompute: bool) -> Budget:
    """Of a contiguous span of stages in one process. One visit computes at a time, on whichever stage."""
    steps, microbatches = open_steps(manifest), manifest.microbatches
    limits = manifest.settings.limits
    sizes: dict[_Kind, _Sizes] = {}
    held = [
        sizes.get(kind) or sizes.setdefault(kind, _sizes(manifest, stage)) for stage, kind in _kinds(manifest, stages)
    ]
    apart = kept = in_flight = 0
    for stage in held:
        # Beyond the limit there is one sum a step, and one being added to it.
        least = min(steps * microbatches, steps + 1) * stage.gradient
        apart += max(least, min(limits.gradient_bytes, steps * microbatches * stage.gradient))
        kept += min(limits.visit_bytes, steps * microbatches * stage.traffic.sent)
        in_flight += slots * (stage.traffic.sent + stage.traffic.received)
    waiting = (slots - 1) * sum(stage.input if recompute else stage.graph for stage in held)
    states = sum(stage.state for stage in held)
    lines = (
        Line("process (torch, hivemind, libp2p)", PROCESS_BYTES, "host", "always"),
        Line("base weights", sum(stage.base for stage in held), "device", "always"),
        Line(f"trained state, {steps} versions", steps * states, "device", "always"),
        Line("loading one tensor", max(stage.loading for stage in held), "device", "loading"),
        Line(COMPUTING, max(stage.peak for stage in held), "device"),
        Line(WAITING, waiting, "device"),
        Line("gradients kept apart", apart, "device"),
        Line("making an update", 2 * sum(stage.gradient for stage in held), "device"),
        Line("coded tensors of open visits", in_flight, "host"),
        Line("coded tensors kept for others", kept, "host"),
        Line("coded gradients of the all-reduce", 3 * sum(stage.reduced for stage in held), "host"),
        Line("a newcomer's snapshot", 2 * states, "host"),
    )
    return Budget(stages, slots, recompute, lines)


def stages_text(stages: range) -> str:
    return f"stage {stages.start}" if len(stages) == 1 else f"stages {stages.start} to {stages.stop - 1}"


def budget_lines(found: Budget, machine: Machine, device: Device, advice: Sequence[str] = ()) -> list[str]:
    """The budget for people: one line a part, what there is, whether it fits, and what would if it does not."""
    how = "graphs computed again" if found.recompute else "graphs kept"
    lines = [f"memory of {stages_text(found.stages)} on {device.name} ({found.slots} slots, {how}):"]
    when = {"always": "", "loading": " (while loading)", "running": ""}
    for line in found.lines:
        where = "" if device.memory is None else ("  GPU" if line.place == "device" else "  RAM")
        lines.append(f"  {line.name + when[line.time]:<42}{bytes_text(line.bytes):>10}{where}")
    if found.lost(device):
        lines.append(f"  {'lost between blocks':<42}{bytes_text(found.lost(device)):>10}")
    for name, needed, there in found.against(machine, device):
        verdict = "fits" if needed <= there else f"too much by {bytes_text(needed - there)}"
        lines.append(f"  {'needed of ' + name + ', with room to spare':<42}{bytes_text(needed):>10}")
        lines.append(f"  {'there is':<42}{bytes_text(there):>10}  {verdict}")
    return lines + [f"  {line}" for line in advice]
