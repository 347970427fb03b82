"""What a machine offers: memory, devices that compute, the link. Values only; `peer/probe.py` measures them.

Also how people write sizes and rates: `8GB`, `80%`, `100` or `20/500` Mbit/s. Errors: `UsageError`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import UsageError

GB = 10**9
MBIT = 10**6

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(%|(?:[kmgt]i?)?b?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


@dataclass(frozen=True, slots=True)
class Device:
    """Something that computes. `memory` in bytes, None if it is the machine's own (a CPU); `flops`: useful operations a
    second (`work.py`) in the base format of the model that was asked about."""

    name: str
    memory: int | None
    flops: float

    @property
    def kind(self) -> str:
        """`cuda` of `cuda:1`."""
        return self.name.split(":")[0]


@dataclass(frozen=True, slots=True)
class Link:
    """The way to the others, shared by all devices of a machine: bits a second and seconds there and back."""

    up: float = 100.0 * MBIT
    down: float = 100.0 * MBIT
    round_trip: float = 0.1


@dataclass(frozen=True, slots=True)
class Machine:
    """`ram` and `disk`: free bytes. `devices`: the fastest first, as a probe lists them."""

    ram: int
    devices: tuple[Device, ...]
    link: Link = Link()
    cores: int = 1
    disk: int = 0


@dataclass(frozen=True, slots=True)
class Ticks:
    """Processor time of all cores together, in the kernel's ticks since it began: `every` one, those in which something
    ran, and of these the `own` of this process and those below it."""

    every: int
    ran: int
    own: int


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a volunteer has said; None is for the probe to find out. `memory`: as `parse_memory` reads it, of each
    device that has its own. `device`: `cpu`, `cuda` (all of them), `cuda:0,cuda:2`. `bandwidth`: bits a second up and
    down. `stages`: exactly so many."""

    stages: int | None = None
    memory: str | None = None
    device: str | None = None
    threads: int | None = None
    bandwidth: tuple[float, float] | None = None


AS_IT_IS = Overrides()


def overridden(machine: Machine, said: Overrides) -> Machine:
    """The machine as its owner lends it. Raises `UsageError` for a device that it has not."""
    devices = machine.devices
    if said.device is not None:
        devices = _meant(machine.devices, said.device)
    ram = machine.ram
    if said.memory is not None:
        ram = parse_memory(said.memory, machine.ram)
        devices = tuple(
            device if device.memory is None else replace(device, memory=parse_memory(said.memory, device.memory))
            for device in devices
        )
        # What is lent of a GPU machine is meant of the GPU; its RAM need not shrink with it.
        ram = machine.ram if any(device.memory is not None for device in devices) else ram
    link = machine.link
    if said.bandwidth is not None:
        link = replace(link, up=said.bandwidth[0], down=said.bandwidth[1])
    cores = machine.cores if said.threads is None else said.threads
    return replace(machine, ram=ram, devices=devices, link=link, cores=cores)


def _meant(devices: Sequence[Device], said: str) -> tuple[Device, ...]:
    """Those of `cuda:0,cuda:2`, or of `cuda` all of that kind. Raises `UsageError`."""
    wanted = [one.strip() for one in said.split(",")]
    for one in wanted:
        if not any(one in (device.name, device.kind) for device in devices):
            here = ", ".join(device.name for device in devices)
            raise UsageError(f"--device is {said}; this machine has {here}")
    return tuple(device for device in devices if device.name in wanted or device.kind in wanted)


def parse_memory(text: str, available: int) -> int:
    """Bytes: `8GB` and `8` (decimal gigabytes), `512MB`, `8GiB`, or `80%` of what is available. Raises `UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"memory is {text!r}; wanted such as 8GB, 512MB, 8GiB or 80%")
    if match[2] != "%":
        return parse_size(text, "memory")
    found = available * parse_percent(text, "memory") / 100
    if found < 1:
        raise UsageError(f"memory is {text!r}; wanted more than nothing")
    return int(found)


def parse_size(text: str, what: str) -> int:
    """Bytes: `8GB` and `8` (decimal gigabytes), `512MB`, `8GiB`. Raises `UsageError`, which says of `what`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] == "%":
        raise UsageError(f"{what} is {text!r}; wanted such as 8GB, 512MB or 8GiB")
    found = float(match[1]) * (GB if match[2] == "" else {**_UNITS, **_BINARY}[match[2].lower().removesuffix("b")])
    if found < 1:
        raise UsageError(f"{what} is {text!r}; wanted more than nothing")
    return int(found)


def parse_percent(text: str, what: str) -> float:
    """`80%` and `80`. Raises `UsageError`, which says of `what`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] not in ("%", ""):
        raise UsageError(f"{what} is {text!r}; wanted a percentage, such as 25%")
    if float(match[1]) > 100:
        raise UsageError(f"{what} is {text!r}; wanted at most 100%")
    return float(match[1])


def parse_bandwidth(text: str) -> tuple[float, float]:
    """Bits a second (up, down) of `100` or `20/500`, in Mbit/s. Raises `UsageError`."""
    try:
        rates = [float(part) * MBIT for part in text.split("/")]
    except ValueError:
        rates = []
    if len(rates) not in (1, 2) or not all(0 < rate < float("inf") for rate in rates):
        raise UsageError(f"bandwidth is {text!r}; wanted Mbit/s, such as 100, or up/down, such as 20/500")
    return rates[0], rates[-1]


def bytes_text(count: float) -> str:
    """`3.4 GB`, `17 MB`: decimal, two digits at least."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.{2 if count < 10 * unit else 1 if count < 100 * unit else 0}f} {name}"
    return f"{count:.0f} B"
