"""The processes of a swarm on this machine: coordinators and peers, started, killed, frozen and started again.

Owns the children and the threads that read what the coordinators say. Children end when their standard input closes, so
nothing outlives this process, however it ends. Knows nothing of why a process is killed: `demo` does, and chaos.

Errors: none of its own; a child's last words are in its log.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ..swarm.flags import without_flags
from ..swarm.keys import Identity
from ..swarm.shared_folder import SharedFolder
from .zygote import ForkedProcess, Zygote

FAREWELL_SECONDS = 8.0
LISTEN = "/ip4/127.0.0.1/tcp/0"

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""glibc gives large blocks back to the system at once, and taking them again for every visit costs page faults: keeping
them takes two thirds off the kernel's share of SmolLM2's forward and backward."""


@dataclass
class Child:
    """One process of the swarm, or its last incarnation. `peer`: its peer id, empty for a coordinator."""

    name: str
    command: list[str]
    process: "subprocess.Popen[str] | ForkedProcess"
    log: Path
    peer: str = ""
    threads: int = 1

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@dataclass
class LocalSwarm:
    """The children, and the lines that the coordinators say. `environment` is added to every child's; with a `zygote`
    they are forked from it, else each is started by itself."""

    model: str
    folder: SharedFolder
    environment: Mapping[str, str] = field(default_factory=dict)
    zygote: Zygote | None = None
    children: dict[str, Child] = field(default_factory=dict)
    _lines: "SimpleQueue[tuple[str, str | None]]" = field(default_factory=SimpleQueue)
    _readers: list[threading.Thread] = field(default_factory=list)
    _speaking: int = 0

    # ---- starting

    def start_coordinator(self, manifest: str, *flags: str, name: str = "coordinator") -> Child:
        """Starts the trainer of a new run; `manifest` is TOML."""
        path = self.folder.path / "manifest.toml"
        path.write_text(manifest, encoding="utf-8")
        return self._spawn(name, self._coordinator(str(path), *flags))

    def resume_coordinator(self, checkpoint: Path, *flags: str, name: str = "coordinator") -> Child:
        """Starts the trainer of a run that goes on from a checkpoint."""
        return self._spawn(name, self._coordinator("--resume", str(checkpoint), *flags))

    def start_standby(self, run_id: str, addresses: Sequence[str], *flags: str, name: str = "standby") -> Child:
        """Starts a coordinator that stands by; or the killed one of this name again, which does so too."""
        command = self._coordinator("--standby", "--run", run_id, "--initial-peers", *addresses, *flags)
        return self._spawn(name, command)

    def _coordinator(self, *arguments: str) -> list[str]:
        key = self.folder.path / "organizer.key"
        kept = ["--checkpoints", str(self.folder.path / "checkpoints")]
        start = ["swarm_peer.swarm.coordinator_cli", "start", *kept, *arguments, "--json", "--organizer-key", str(key)]
        return start if "--listen" in arguments else [*start, "--listen", LISTEN]

    def start_peers(self, count: int, run_id: str, addresses: Sequence[str]) -> None:
        """Starts `count` peers, which share the machine's cores."""
        threads = max(1, (os.cpu_count() or 1) // count)
        for number in range(count):
            self.start_peer(number, run_id, addresses, threads=threads)

    def start_peer(self, number: int, run_id: str, addresses: Sequence[str], *flags: str, threads: int = 1) -> Child:
        """Starts peer `number`; one that was killed comes again under its identity."""
        key = self.folder.path / f"peer-{number}.key"
        identity = Identity.load_or_create(key)
        command = ["swarm_peer.peer.cli", "join", "--model", self.model, "--run", run_id, "--initial-peers", *addresses]
        command += ["--identity", str(key), "--threads", str(threads), *flags]
        command += [] if "--stages" in flags else ["--stages", "1"]
        command += [] if "--listen" in flags else ["--listen", LISTEN]
        return self._spawn(f"peer-{number}", command, peer=identity.peer_id, threads=threads)

    def _spawn(self, name: str, command: list[str], *, peer: str = "", threads: int = 1) -> Child:
        log = self.folder.path / f"{name}.log"
        command = [*command, "--folder", str(self.folder.path), "--watch-parent"]
        environment = {**child_environment(), "OMP_NUM_THREADS": str(threads), **self.environment}
        process: subprocess.Popen[str] | ForkedProcess
        with log.open("ab") as file:
            said = file if peer else None
            if self.zygote:
                process = self.zygote.start(name, command, stdout=said, stderr=file, env=environment)
            else:
                process = subprocess.Popen(
                    [sys.executable, "-m", *command],
                    stdin=subprocess.PIPE,
                    stdout=said or subprocess.PIPE,
                    stderr=file,
                    text=True,
                    # Ctrl-C is ours alone: the children end because we close their pipes.
                    start_new_session=True,
                    env=environment,
                )
        earlier = self.children.get(name)
        if earlier is not None:
            _hang_up(earlier)
            _farewell(earlier, 0.0)
        child = self.children[name] = Child(name, command, process, log, peer, threads)
        if not peer:
            self._speaking += 1
            reader = threading.Thread(target=self._read, args=(name, process), daemon=True)
            self._readers.append(reader)
            reader.start()
        return child

    def _read(self, name: str, process: "subprocess.Popen[str] | ForkedProcess") -> None:
        assert process.stdout is not None
        with process.stdout as said:
            for line in said:
                self._lines.put((name, line))
        self._lines.put((name, None))

    # ---- what is done to them

    def child_of(self, peer: str) -> Child:
        """The process of a peer id."""
        return next(child for child in self.children.values() if peer in self.peers_of(child))

    def peers_of(self, child: Child) -> set[str]:
        """The peer ids of a machine: of a coordinator none, of a peer its own, and those of members that have come when
        it moved to another stage."""
        keys = self.folder.path.glob(f"{child.name}-*.key") if child.peer else ()
        return {child.peer, *(Identity.load_or_create(key).peer_id for key in keys)} - {""}

    def kill(self, child: Child) -> float:
        """SIGKILL; the monotonic time at which it was sent."""
        at = time.monotonic()
        child.process.send_signal(signal.SIGKILL)
        return at

    def ask_to_leave(self, child: Child) -> None:
        """SIGTERM: a peer finishes what is open, then it goes."""
        child.process.send_signal(signal.SIGTERM)

    def freeze(self, child: Child) -> float:
        """SIGSTOP to the process and to its network daemon, as when a machine stops; the monotonic time."""
        at = time.monotonic()
        os.killpg(child.process.pid, signal.SIGSTOP)
        return at

    def thaw(self, child: Child) -> None:
        """SIGCONT."""
        os.killpg(child.process.pid, signal.SIGCONT)

    # ---- what they say

    def events(self, watch: Callable[[], None], pause: float = 0.5) -> Iterator[dict[str, Any]]:
        """The coordinators' events, each with the name of its coordinator (`by`); ends when the last coordinator does.

        `watch` is called before each, and every `pause` seconds at least.
        """
        while self._speaking:
            watch()
            try:
                name, line = self._lines.get(timeout=pause)
            except Empty:
                continue
            if line is None:
                self._speaking -= 1
            else:
                yield {**json.loads(line), "by": name}

    def last_words(self, name: str = "coordinator") -> str:
        """The end of a child's log, for an error message."""
        return self.children[name].log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]

    def close(self) -> None:
        """Ends every process: by closing its pipe, then by force."""
        for child in self.children.values():
            _hang_up(child)
        deadline = time.monotonic() + FAREWELL_SECONDS
        for child in self.children.values():
            _farewell(child, max(0.1, deadline - time.monotonic()))
        for reader in self._readers:
            reader.join(FAREWELL_SECONDS)


def child_environment() -> dict[str, str]:
    """What is in the environment of every child, and of a zygote."""
    return {**without_flags(os.environ), **KEEP_MEMORY, "HIVEMIND_LOGLEVEL": "ERROR"}


def _hang_up(child: Child) -> None:
    assert child.process.stdin is not None
    child.process.stdin.close()


def _farewell(child: Child, seconds: float) -> None:
    try:
        child.process.wait(seconds)
    except subprocess.TimeoutExpired:
        # The whole group: the daemon of a frozen process does not see that its parent is gone.
        os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
