"""What of a machine its owner lends to a run, and when: the flags of `join` and `probe`, and what they mean.

Errors: `UsageError`.
"""

import argparse

from ..errors import UsageError
from ..swarm.machine import Overrides, parse_bandwidth, parse_memory
from .hours import Hours
from .owner import BUSY_PERCENT, Wishes, parse_busy
from .traffic import Cap


def add_lending_flags(parser: argparse.ArgumentParser) -> None:
    """What of this machine a volunteer lends; shared by `probe` and `join`."""
    parser.add_argument("--threads", type=int, help="compute threads (default: all cores)")
    parser.add_argument("--device", help="cpu, cuda, or such as cuda:0,cuda:2 (default: all of CUDA's, else cpu)")
    parser.add_argument("--stages", type=int, metavar="N", help="host so many stages (default: what fits)")
    parser.add_argument("--memory", help="lend so much of it, such as 8GB or 80%% (default: what is free)")
    parser.add_argument("--bandwidth", metavar="MBIT/S", help="of your link, such as 100, or 20/500 up and down")


def said_by(options: argparse.Namespace) -> Overrides:
    """The flags as they are meant. Raises `UsageError`."""
    for name in ("stages", "threads"):
        if (count := getattr(options, name)) is not None and count < 1:
            raise UsageError(f"--{name} is {count}; wanted at least 1")
    if options.memory is not None:
        parse_memory(options.memory, 1 << 60)
    bandwidth = None if options.bandwidth is None else parse_bandwidth(options.bandwidth)
    return Overrides(options.stages, options.memory, options.device, options.threads, bandwidth)


def add_owner_flags(parser: argparse.ArgumentParser) -> None:
    """When a volunteer lends the machine: it leaves politely, and comes again."""
    parser.add_argument("--hours", help="only then, by the local time, such as 22-7 or 22:30-07:00,12-13")
    parser.add_argument(
        "--pause-when-busy",
        nargs="?",
        const=f"{BUSY_PERCENT:.0f}%",
        metavar="SHARE",
        help=f"not while other programs use more of the cores than that (default: {BUSY_PERCENT:.0f}%%)",
    )
    parser.add_argument(
        "--data-cap", metavar="SIZE", help="move no more data than 50GB in this run, or 2GB/day, 50GB/month in all"
    )


def wishes_of(options: argparse.Namespace) -> Wishes:
    """The flags as they are meant. Raises `UsageError`."""
    return Wishes(
        None if options.hours is None else Hours.parse(options.hours),
        None if options.pause_when_busy is None else parse_busy(options.pause_when_busy),
        None if options.data_cap is None else Cap.parse(options.data_cap),
    )
