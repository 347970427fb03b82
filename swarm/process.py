"""What every long-lived process of a run needs: a loop that ends cleanly, a node of the network, and no orphans.

`run_process` runs a coroutine on uvloop until it ends, a signal comes, or the parent (whose pipe is our standard input)
is gone. While it runs, memory that was freed is given back to the system now and then.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from .dht_directory import DHTDirectory
from .freed_memory import keep_giving_back
from .keys import Identity
from .p2p_transport import P2PTransport

T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818
    """The process was told to end, by a signal or by losing its parent."""


def run_process(
    main: Coroutine[Any, Any, T], *, watch_parent: bool = False, asked: Callable[[], bool] = lambda: False
) -> T:
    """Runs `main` to its end. Raises what it raises, or `Interrupted` after it has been cancelled.

    `asked` is called at a signal: if it says that it sees to the end of `main` itself, nothing else is done.
    """
    return uvloop.run(_run(main, watch_parent, asked))


async def _run(main: Coroutine[Any, Any, T], watch_parent: bool, asked: Callable[[], bool]) -> T:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    def signalled() -> None:
        if not asked():
            stop()

    def parent_spoke() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    if watch_parent:
        loop.add_reader(sys.stdin.fileno(), parent_spoke)
    housekeeping = asyncio.ensure_future(keep_giving_back())
    try:
        return await task
    except asyncio.CancelledError:
        if stopped:
            raise Interrupted from None
        raise
    finally:
        housekeeping.cancel()


def process_age() -> float | None:
    """Seconds since this process was started, imports included; None where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None


@asynccontextmanager
async def network_node(
    identity: Identity,
    folder: Path,
    listen: Sequence[str],
    initial_peers: Sequence[str],
    announce: Sequence[str] = (),
    *,
    relays: bool = False,
    reached: bool = True,
) -> AsyncIterator[tuple[P2PTransport, DHTDirectory]]:
    """A libp2p node and its part of the directory, closed at the end of the block.

    `announce`: the addresses that others are told, if they are not those it listens on. Without, it asks the initial
    peers whether they reach it, and if they do not, is reached through those that relay. `relays`: whether it does, for
    others; `reached`: whether it is to be reached at all. Raises `UnreachableError`, `UsageError`.
    """
    create = partial(
        P2PTransport.create,
        identity,
        socket_folder=folder,
        listen=listen,
        announce=announce,
        initial_peers=initial_peers,
    )
    transport = await create(relays=relays)
    if reached and not announce and await transport.is_reached(initial_peers) is False:
        try:
            through = await transport.relays_among(initial_peers)
        finally:
            await transport.close()
        transport = await create(through=through)
    try:
        directory = await DHTDirectory.create(transport, identity, initial_peers=initial_peers)
        try:
            yield transport, directory
        finally:
            await directory.close()
    finally:
        await transport.close()
