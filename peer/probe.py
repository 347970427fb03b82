"""What this machine has to offer: memory, cores, disk, the pace of its devices, its link. Measures; decides nothing.

Free memory is the least of what the kernel says is available and what the control groups above this process leave;
cores are those it may run on, within the groups' quota. The pace of a device is that of one real block of the model in
the run's base format, forward and backward, for a few tokens; of a model whose block is too large for that, that of its
largest linear layer, cut. The link is what samples of real transfers say (`link_of`); before there are any, a
volunteer's word or a guess.

Errors: none for what cannot be found out: the next best answer is given instead.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..compression.linear import quantized
from ..swarm.initial import base_tensor
from ..swarm.link import Sample
from ..swarm.machine import Device, Link, Machine, Overrides, Ticks, overridden
from ..swarm.manifest import LlamaShape
from ..swarm.model.block import Parameters, block, linear, rotary_tables
from ..swarm.model.names import base_shapes, block_linears, lora_shapes

LEAST_TOKENS, ROUND_OPERATIONS = 64, 1e9
"""A round is as many tokens as make so much work, and at least so many: of a small model few would show the overhead of
calls only, of a large one many would take too long."""

SECONDS = 2.0
"""All rounds of one device together; a round that has begun is finished."""

MOST_ELEMENTS = 1 << 24
"""Weights that a measurement makes: 64 MiB in fp32."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_UNLIMITED = 1 << 60


def probe(shape: LlamaShape, base: str, dtype: str, *, disk: Path, threads: int = 0) -> Machine:
    """This machine, for a model of this shape. `base`, `dtype`: the formats of linear layers and of computing."""
    cores = threads or usable_cores()
    torch.set_num_threads(cores)
    devices = [
        Device(name, torch.cuda.mem_get_info(name)[0], measured_flops(shape, base, dtype, name))
        for name in _cuda_devices()
    ]
    devices.append(Device("cpu", None, measured_flops(shape, base, dtype, "cpu")))
    return Machine(free_memory(), tuple(devices), Link(), cores, free_disk(disk))


def standing(device: str, disk: Path, threads: int = 0) -> Machine:
    """This machine with one device and without measuring how fast it is (`flops` 1): enough to say what fits."""
    memory = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else None
    return Machine(free_memory(), (Device(device, memory, 1.0),), Link(), threads or usable_cores(), free_disk(disk))


def _cuda_devices() -> list[str]:
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def devices_of(said: str | None) -> tuple[str, ...]:
    """The names of the devices that a peer computes on: those that its owner means, else all of CUDA's, else the CPU.
    Raises `UsageError`."""
    cuda = _cuda_devices()
    if said is None:
        return tuple(cuda) or ("cpu",)
    machine = Machine(0, tuple(Device(name, None, 1.0) for name in (*cuda, "cpu")))
    return tuple(device.name for device in overridden(machine, Overrides(device=said)).devices)


# ---- memory, cores, disk


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of RAM that this process can have, with what it has already: a budget counts the process itself. `root` is
    where the system's files are looked for."""
    groups = [limit - used for limit, used in _group_memory(root)]
    return max(0, min([_said(root, "MemAvailable") or _all_pages(), *groups])) + held_memory(root)


def held_memory(root: Path = Path("/")) -> int:
    """Bytes of RAM that this process has."""
    pages = _read(root / "proc/self/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0


def all_memory(root: Path = Path("/")) -> int:
    """Bytes of RAM that there are, within the control groups above this process."""
    return min([_said(root, "MemTotal") or _all_pages(), *(limit for limit, _ in _group_memory(root))])


def _said(root: Path, wanted: str) -> int:
    """Bytes of a line of the kernel's; 0 where it does not say."""
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == wanted:
            return int(rest.split()[0]) * 1024
    return 0


def _all_pages() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _group_memory(root: Path) -> Iterator[tuple[int, int]]:
    """Of each control group above this process that has a limit: the limit, and what it uses that cannot be dropped."""
    for folder in _group_folders(root, "memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            said, used = _read(folder / limit).strip(), _read(folder / usage).strip()
            if said.isdigit() and used.isdigit():
                statistic = dict(line.split()[:2] for line in _read(folder / "memory.stat").splitlines() if " " in line)
                droppable = int(statistic.get("inactive_file", statistic.get("total_inactive_file", "0")))
                if int(said) < _UNLIMITED:
                    yield int(said), max(0, int(used) - droppable)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may run on, within the quota of its control groups; at least 1."""
    try:
        cores = float(len(os.sched_getaffinity(0)))
    except AttributeError:
        cores = float(os.cpu_count() or 1)
    for folder in _group_folders(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if not period:
            quota = _read(folder / "cpu.cfs_quota_us").strip()
            period = _read(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, int(quota) / int(period))
    return max(1, int(cores))


def ticks(root: Path = Path("/"), process: int = 0) -> Ticks | None:
    """Processor time of this machine and of a process (this one) with all below it; None where nobody says."""
    # cpu user nice system idle iowait irq softirq steal; what a guest's cores ran is in user already, and what the
    # machine below took (steal) nobody ran here.
    found = _read(root / "proc/stat").partition("\n")[0].split()
    if len(found) < 9 or found[0] != "cpu":
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, found[1:9])
    ran = user + nice + system + irq + softirq
    return Ticks(ran + idle + iowait + steal, ran, _own_ticks(root, process or os.getpid()))


def _own_ticks(root: Path, process: int) -> int:
    """Of the process and of all that it and its children have started, those included that have ended."""
    spent: dict[int, int] = {}
    below: dict[int, list[int]] = {}
    for folder in (root / "proc").iterdir():
        if folder.name.isdecimal():
            # A name in brackets comes first, which may hold anything.
            fields = _read(folder / "stat").rpartition(")")[2].split()
            if len(fields) > 14:
                spent[int(folder.name)] = sum(map(int, fields[11:15]))
                below.setdefault(int(fields[1]), []).append(int(folder.name))
    total, family = 0, [process]
    while family:
        member = family.pop()
        total += spent.get(member, 0)
        family += below.pop(member, [])
    return total


def _group_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and those above it, of version 2 and of version 1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("" if number == "0" else controllers)
        if not top.is_dir():
            top = root / "sys/fs/cgroup" / controller
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for length in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:length])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def free_disk(folder: Path) -> int:
    """Bytes that can still be written where `folder` is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


# ---- devices


def measured_flops(shape: LlamaShape, base: str, dtype: str, device: str, *, seconds: float = SECONDS) -> float:
    """Useful operations a second (`work.py`) of forward and backward on `device`: the best of some rounds, since
    what else runs here meanwhile is not the device's doing."""
    where, kind = torch.device(device), _DTYPES[dtype]
    weights = sum(rows * columns for rows, columns in block_linears(shape, 0).values())
    if weights <= MOST_ELEMENTS:
        tokens = max(LEAST_TOKENS, min(shape.max_position_embeddings, int(ROUND_OPERATIONS / (4 * weights))))
        work, operations = _block_work(shape, base, kind, where, tokens), 4.0 * tokens * weights
    else:
        work, operations = _linear_work(shape, base, kind, where)
    work()
    rounds: list[float] = []
    ends = time.perf_counter() + seconds
    while not rounds or time.perf_counter() < ends:
        began = time.perf_counter()
        work()
        rounds.append(time.perf_counter() - began)
    return operations / min(rounds)


def _block_work(
    shape: LlamaShape, base: str, kind: torch.dtype, device: torch.device, tokens: int
) -> Callable[[], None]:
    linears = {f"{name}.weight" for name in block_linears(shape, 0)}
    parameters: dict[str, object] = {}
    for name, size in base_shapes(shape, range(1), is_first=False, is_last=False).items():
        parameters[name] = _held(base_tensor(0, name, size, 0.02), base if name in linears else "auto", kind, device)
    for name, size in lora_shapes(shape, range(1), 8).items():
        parameters[name] = base_tensor(0, name, size, 0.02).to(device).requires_grad_()
    hidden = torch.ones(1, tokens, shape.hidden_size, dtype=kind, device=device)
    tables = rotary_tables(shape, tokens, hidden)
    return _both_ways(lambda inputs: block(parameters, 0, shape, inputs, tables, 1.0), hidden)


def _linear_work(
    shape: LlamaShape, base: str, kind: torch.dtype, device: torch.device
) -> tuple[Callable[[], None], float]:
    """Forward and backward through the largest linear layer, of which so many rows are made as may be; its work."""
    rows, columns = max(block_linears(shape, 0).values(), key=lambda size: size[0] * size[1])
    rows = max(1, min(rows, MOST_ELEMENTS // columns))
    weight = base_tensor(0, "probe", (rows, columns), 0.02)
    parameters: Parameters = {"probe.weight": _held(weight, base, kind, device)}
    hidden = torch.ones(1, LEAST_TOKENS, columns, dtype=kind, device=device)
    return _both_ways(
        lambda inputs: linear(parameters, "probe", inputs, 1.0), hidden
    ), 4.0 * LEAST_TOKENS * rows * columns


def _held(weight: Tensor, form: str, kind: torch.dtype, device: torch.device) -> object:
    """A weight as a backend holds it in a base format."""
    if form in ("nf4", "int8"):
        return quantized(form, weight.to(device))
    return weight.to(device, _DTYPES.get(form, kind))


def _both_ways(run: Callable[[Tensor], Tensor], hidden: Tensor) -> Callable[[], None]:
    def work() -> None:
        inputs = hidden.detach().requires_grad_()
        outputs = run(inputs)
        (gradient,) = torch.autograd.grad(outputs, inputs, torch.ones_like(outputs))
        gradient[0, 0, 0].item()  # waits for the device

    return work


# ---- the link


def link_of(up: Sequence[Sample], down: Sequence[Sample], round_trips: Sequence[float], otherwise: Link) -> Link:
    """The link that samples of real transfers show; where there are none, what is known `otherwise`.

    Of each direction the upper quartile: a transfer that waited for the other side says nothing about this one. Of
    round trips the median. Who calls this with what a peer has moved is the peer's business.
    """
    return Link(
        _rate(up) or otherwise.up,
        _rate(down) or otherwise.down,
        statistics.median(round_trips) if round_trips else otherwise.round_trip,
    )


def _rate(samples: Sequence[Sample]) -> float:
    rates = sorted(8 * moved / seconds for moved, seconds in samples if moved > 0 and seconds > 0)
    return rates[3 * len(rates) // 4] if rates else 0.0
