"""What thousands of viewers cost the coordinator: listeners of the dashboard's live feed, on loopback.

    python benchmarks/dashboard.py [--listeners 2000] [--peers 200] [--seconds 20] [--json FILE]

A server of its own process shows a run of so many peers, with a pulse of all of them and a step a second; the
listeners are raw sockets of another process, which note when each patch comes. Printed: the server's share of one core
and its resident memory without and with listeners, how late the last listener had a patch (from the moment that the
first one had it), and that one who does not read is dropped. Needs as many file descriptors as listeners.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import uvloop
from swarm_peer.swarm import events
from swarm_peer.swarm.chronicle import Chronicle
from swarm_peer.swarm.dashboard.server import serve_live

STAGES = 8


def story_of(peers: int) -> list[events.Event]:
    """A run with so many peers that are ready."""
    opened = events.Opened(
        run_id="ab" * 32,
        model="llama-65b",
        mode="lora",
        base="nf4",
        stages=STAGES,
        steps=10**6,
        microbatches=64,
        step_tokens=131072,
        staleness=1,
        min_replicas=2,
        slots=8,
        activations="int8",
        gradients="dynamic8",
        activation_bytes=16_900_000,
        gradient_bytes=16_900_000,
        plain_bytes=67_000_000,
        layers=tuple((10 * stage, 10 * stage + 9) for stage in range(STAGES)),
        costs=(1.0,) * STAGES,
        memory=(5 * 10**9,) * STAGES,
    )
    joined = [events.Joined(n, f"12D3KooWpeer{n:08}", n % STAGES, name=f"box {n}") for n in range(1, peers + 1)]
    ready = [events.Ready(event.member, event.peer, event.stage) for event in joined]
    return [events.Leads(1), opened, *joined, *ready]


def pulse_of(peers: int, second: int) -> events.Pulse:
    """Of all peers, with something new of each."""
    members = tuple(
        events.MemberPulse(
            n, second, 4 + second % 3, 2, f"12D3KooWpeer{n:08}", 0.7, 1.3, 0.1 * second, 10**6 * second, 10**6 * second,
            10**5 * second, second % 7, (),
        )
        for n in range(1, peers + 1)
    )  # fmt: skip
    return events.Pulse(members, (), second, 12, 51, 10**5 * second)


def serve(pipe: Connection, peers: int) -> None:
    """The server's process: says its port, then shows the run until it is killed."""

    async def main() -> None:
        chronicle = Chronicle(None, time.time, lambda event: None)
        for event in story_of(peers):
            chronicle.emit(event)
        async with serve_live(chronicle, "127.0.0.1:0") as url:
            pipe.send(int(url.rstrip("/").rpartition(":")[2]))
            second = 0
            while True:
                await asyncio.sleep(1.0)
                second += 1
                chronicle.emit(pulse_of(peers, second))
                chronicle.emit(events.Stepped(second, 2.0, 0.1, 131072, 1.0, second, (2,) * STAGES, 0, peers))
                chronicle.emit(events.Settled(second, (), 64, 0, 0, 0, 0))

    uvloop.run(main())


class Listener(asyncio.Protocol):
    """Notes when each tick comes, by its number."""

    def __init__(self, came: dict[bytes, list[float]]) -> None:
        self._came = came

    def connection_made(self, transport: Any) -> None:
        transport.write(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        place = data.find(b"event: patch\nid: ")
        if place >= 0:
            tick = data[place + 17 : place + 40].partition(b"\n")[0]
            now = time.monotonic()
            self._came.setdefault(tick, [now, now, 0.0])
            self._came[tick][1] = now
            self._came[tick][2] += 1


async def listen(port: int, listeners: int, seconds: float, server: psutil.Process) -> dict[str, Any]:
    """Connects them all, and measures for so many seconds."""
    loop = asyncio.get_running_loop()
    came: dict[bytes, list[float]] = {}
    lone: dict[bytes, list[float]] = {}
    first, _ = await loop.create_connection(lambda: Listener(lone), "127.0.0.1", port)
    await asyncio.sleep(3.0)
    began, memory = sum(server.cpu_times()[:2]), server.memory_info().rss
    await asyncio.sleep(seconds)
    alone = (sum(server.cpu_times()[:2]) - began) / seconds
    transports = []
    for _ in range(listeners):
        transport, _ = await loop.create_connection(lambda: Listener(came), "127.0.0.1", port)
        transports.append(transport)
    await asyncio.sleep(3.0)
    came.clear()
    began = sum(server.cpu_times()[:2])
    await asyncio.sleep(seconds)
    share = (sum(server.cpu_times()[:2]) - began) / seconds
    grown = server.memory_info().rss
    heard = [times for times in list(came.values())[:-1] if times[2] > listeners / 2]
    for transport in (first, *transports):
        transport.close()
    return {
        "cpu_alone": alone,
        "cpu": share,
        "memory_alone": memory,
        "memory": grown,
        "latest_s": max(last - began for began, last, _ in heard),
        "heard": min(count for _, _, count in heard) / listeners,
        "ticks": len(heard),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listeners", type=int, default=2000)
    parser.add_argument("--peers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 2 * options.listeners + 1000), most))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, options.peers), daemon=True)
    process.start()
    port = ours.recv()
    found = uvloop.run(listen(port, options.listeners, options.seconds, psutil.Process(process.pid)))
    process.kill()
    megabytes = (found["memory"] - found["memory_alone"]) / 1e6
    print(f"{options.listeners} listeners, {options.peers} peers, a pulse of all and a step a second\n")
    print("| | one listener | all | bound |")
    print("|---|---|---|---|")
    print(f"| share of one core | {100 * found['cpu_alone']:.1f} % | {100 * found['cpu']:.1f} % | 20 % |")
    print(f"| memory more, MB | | {megabytes:.1f} | 50 |")
    print(f"| the last has a patch after the first, s | | {found['latest_s']:.2f} | 2 |")
    print(f"| listeners that had every patch | | {100 * found['heard']:.1f} % | 100 % |")
    if options.json is not None:
        options.json.write_text(json.dumps({**vars(options), "json": None, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
