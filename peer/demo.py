"""`swarm-peer demo`: a whole swarm on this machine, each peer a process of its own, with kills.

Starts a coordinator and the peers, follows the coordinator's events, SIGKILLs peers as told, shows progress and
writes the report. Children end when their standard input closes, so nothing outlives this process, however it ends.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import StoppedError, UnreachableError
from ..swarm.keys import Identity
from ..swarm.process import SharedFolder
from ..swarm.sources import model_path, text_path
from .kills import KillPlan, parse_kills
from .progress import Progress, summary
from .settings import settings_of, toml_of

GIVE_UP_SECONDS = 60.0
START_SECONDS = 120.0
FAREWELL_SECONDS = 8.0

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""glibc gives large blocks back to the system at once, and taking them again for every visit costs page faults: keeping
them takes two thirds off the kernel's share of SmolLM2's forward and backward."""


@dataclass
class Child:
    """One process of the swarm. `peer`: its peer id, empty for the coordinator."""

    process: "subprocess.Popen[str]"
    log: Path
    peer: str = ""


@dataclass
class Swarm:
    """The processes of one demo and the lines that the coordinator says."""

    options: argparse.Namespace
    folder: SharedFolder
    children: list[Child] = field(default_factory=list)
    lines: "SimpleQueue[str | None]" = field(default_factory=SimpleQueue)

    def start(self) -> None:
        """Starts the coordinator; its events come through `events`."""
        manifest = self.folder.path / "manifest.toml"
        manifest.write_text(toml_of(self.options), encoding="utf-8")
        key = self.folder.path / "organizer.key"
        command = ["swarm_peer.swarm.coordinator_cli", "start", str(manifest), "--json", "--organizer-key", str(key)]
        command += ["--listen", "/ip4/127.0.0.1/tcp/0", "--give-up", str(GIVE_UP_SECONDS)]
        child = self._spawn(command, "coordinator", stdout=subprocess.PIPE)
        threading.Thread(target=self._read, args=(child.process,), daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def start_peers(self, run_id: str, addresses: list[str]) -> None:
        count = self.options.stages * self.options.replicas
        threads = max(1, (os.cpu_count() or 1) // count)
        for number in range(count):
            key = self.folder.path / f"peer-{number}.key"
            identity = Identity.load_or_create(key)
            command = ["swarm_peer.peer.cli", "join", "--model", self.options.model, "--run", run_id]
            command += ["--initial-peers", *addresses, "--identity", str(key), "--threads", str(threads)]
            command += ["--listen", "/ip4/127.0.0.1/tcp/0"]
            self._spawn(command, f"peer-{number}", peer=identity.peer_id, threads=threads)

    def _spawn(self, command: list[str], name: str, *, peer: str = "", threads: int = 1, stdout: Any = None) -> Child:
        log = self.folder.path / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--folder", str(self.folder.path), "--watch-parent"],
                stdin=subprocess.PIPE,
                stdout=stdout or file,
                stderr=file,
                text=True,
                # Ctrl-C is ours alone: the children end because we close their pipes.
                start_new_session=True,
                env={**os.environ, **KEEP_MEMORY, "OMP_NUM_THREADS": str(threads), "HIVEMIND_LOGLEVEL": "ERROR"},
            )
        child = Child(process, log, peer)
        self.children.append(child)
        return child

    def kill(self, peer: str) -> float:
        """SIGKILLs a peer; the monotonic time at which it was sent."""
        child = next(child for child in self.children if child.peer == peer)
        at = time.monotonic()
        child.process.send_signal(signal.SIGKILL)
        return at

    def events(self, watch: Callable[[], None]) -> Any:
        """The coordinator's events; `watch` is called at least twice a second. Ends when the coordinator does."""
        while True:
            watch()
            try:
                line = self.lines.get(timeout=0.5)
            except Empty:
                continue
            if line is None:
                return
            yield json.loads(line)

    def close(self) -> None:
        """Ends every process: by closing its pipe, then by force."""
        for child in self.children:
            assert child.process.stdin is not None
            child.process.stdin.close()
        deadline = time.monotonic() + FAREWELL_SECONDS
        for child in self.children:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def last_words(self) -> str:
        """The end of the coordinator's log, for an error message."""
        return self.children[0].log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]


def run_demo(options: argparse.Namespace) -> int:
    """Runs the demo; the exit code.

    Raises `UsageError`, `StoppedError` (after the report is written), `UnreachableError`.
    """
    settings = settings_of(options)
    kills = parse_kills(options.kill, settings, options.replicas)
    model_path(options.model)
    for name in (*settings.data.texts, *settings.data.heldout):
        text_path(name)
    folder = SharedFolder.temporary()
    swarm = Swarm(options, folder)
    plan = KillPlan(kills, swarm.kill)
    signal.signal(signal.SIGTERM, _interrupt)
    error, report = "", None
    try:
        swarm.start()
        with Progress(settings, options.replicas) as progress:
            for event in swarm.events(progress.tick):
                plan.see(event)
                progress.see(event)
                if event["event"] == "listening":
                    swarm.start_peers(event["run_id"], event["addresses"])
                elif event["event"] == "ended":
                    error, report = event["error"], plan.complete(event["report"])
        if report is None:
            raise UnreachableError(f"the coordinator ended without a report:\n{swarm.last_words()}")
    finally:
        swarm.close()
        folder.leave()
    if options.report:
        options.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    summary(report, settings)
    if error:
        raise StoppedError(error)
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
