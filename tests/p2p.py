"""What tests on real p2pd processes share: either event loop, a folder for sockets, two transports."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from swarm_peer.swarm.keys import Identity
from swarm_peer.swarm.p2p_transport import P2PTransport
from swarm_peer.swarm.transport import Stream

LIMIT = 60.0
"""Seconds for one test's body: only reached by a hang."""

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    runner = asyncio.run if request.param == "asyncio" else uvloop.run

    async def limited(body: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(LIMIT):
            await body

    return lambda body: runner(limited(body))


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: a socket's path has about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="sp-") as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[P2PTransport, P2PTransport]]:
    async with contextlib.AsyncExitStack() as stack:
        pair = []
        for _ in range(2):
            transport = await P2PTransport.create(Identity.generate(), socket_folder=folder)
            stack.push_async_callback(transport.close)
            pair.append(transport)
        yield pair[0], pair[1]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())
