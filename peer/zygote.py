"""Processes that begin where their imports end: forked from one that has imported what the programs need.

An import of torch and hivemind takes seconds of a core, which a swarm on one machine would spend in each of its
processes. A `Zygote` spends it once and forks; what it forks has its own session, pipes and environment, and is in
nothing else unlike a process that the shell started. It forks safely because it does nothing but import and wait: no
other thread, no event loop, no device in use.

    Zygote.start  --- one message: what to run; three descriptors --->  serve() --- fork ---> main(arguments)
                  <-- [pid, null] at once, [pid, exit code] at the end ---

When whoever made it is gone, however it ended, so is the zygote; its children see to themselves (`--watch-parent`).
Needs Linux: `is_possible`.
"""

import gc
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Self

IMPORTED = ("swarm_peer.peer.join", "swarm_peer.swarm.coordinator")
"""What the programs import before they do anything."""

ALONE = {"OMP_NUM_THREADS": "1", "GRPC_ENABLE_FORK_SUPPORT": "0"}
"""What the imports of a zygote are to see: a fork takes only the thread that forks, so there is to be no other one; and
what gRPC does about forks is not for those in which it has not begun, but is chosen when it is imported."""

READY_SECONDS = 300.0
FAREWELL_SECONDS = 8.0
LOOK_SECONDS = 0.2

MESSAGE_BYTES = 1 << 18
UNKNOWN = 255
"""The exit code of a process that ended when its zygote was gone."""


def is_possible() -> bool:
    """Whether this system has what a zygote needs."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


class ForkedProcess:
    """What a zygote has forked; as much of `subprocess.Popen` as a parent needs."""

    def __init__(self, zygote: "Zygote", pid: int, stdin: IO[str], stdout: IO[str] | None) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self._zygote = zygote

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._zygote.code_of(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended. Raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        return self._zygote.wait_for(self.pid, timeout)

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Zygote:
    """The parent's end. Threads may share it; `close` ends the zygote, but none of what it has forked."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        """Starts it; `environment` is what its imports see, `log` gets what they say."""
        self._log = log
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "swarm_peer.peer.zygote", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
                env={**environment, **ALONE},
            )
        self._asking = threading.Lock()
        self._told = threading.Condition()
        self._started: list[int] = []
        self._codes: dict[int, int] = {}
        self._gone = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its own; what it forks later has its priority."""
        return self._process.pid

    def start(
        self, name: str, command: Sequence[str], *, stdout: IO[Any] | None, stderr: IO[Any], env: Mapping[str, str]
    ) -> ForkedProcess:
        """A process that calls `main(command[1:])` of the module `command[0]`. Without `stdout` that is a pipe.

        Raises `ChildProcessError` if the zygote has ended.
        """
        request = json.dumps([name, list(command), dict(env)]).encode()
        read_in, stdin = os.pipe()
        read_out, write_out = (-1, stdout.fileno()) if stdout else os.pipe()
        try:
            with self._asking:
                socket.send_fds(self._socket, [request], [read_in, write_out, stderr.fileno()])
                pid = self._next_pid()
        except OSError as error:
            os.close(stdin)
            if not stdout:
                os.close(read_out)
            if isinstance(error, BrokenPipeError):
                raise self._ended() from error
            raise
        finally:
            os.close(read_in)
            if not stdout:
                os.close(write_out)
        return ForkedProcess(self, pid, os.fdopen(stdin, "w"), None if stdout else os.fdopen(read_out))

    def _next_pid(self) -> int:
        with self._told:
            self._told.wait_for(lambda: self._started or self._gone, READY_SECONDS)
            if not self._started:
                raise self._ended()
            return self._started.pop()

    def _ended(self) -> ChildProcessError:
        said = self._log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
        return ChildProcessError(f"the process that forks the swarm's processes has ended or hangs:\n{said}")

    def code_of(self, pid: int) -> int | None:
        """The exit code of what it has forked; None while that runs."""
        with self._told:
            if self._gone and pid not in self._codes and not Path(f"/proc/{pid}").exists():
                self._codes[pid] = UNKNOWN
            return self._codes.get(pid)

    def wait_for(self, pid: int, timeout: float | None) -> int:
        """The exit code of what it has forked, once that has ended. Raises `subprocess.TimeoutExpired`."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._told:
            while (code := self.code_of(pid)) is None:
                if until is not None and time.monotonic() >= until:
                    raise subprocess.TimeoutExpired(f"process {pid}", timeout or 0.0)
                self._told.wait(LOOK_SECONDS)
            return code

    def close(self) -> None:
        """Ends the zygote."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(FAREWELL_SECONDS)
        self._socket.close()

    def _listen(self) -> None:
        while message := self._receive():
            pid, code = json.loads(message)
            with self._told:
                if code is None:
                    # The number of a process that is gone may come again.
                    self._codes.pop(pid, None)
                    self._started.append(pid)
                else:
                    self._codes[pid] = code
                self._told.notify_all()
        with self._told:
            self._gone = True
            self._told.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(MESSAGE_BYTES)
        except OSError:
            return b""


# ---- the zygote itself


def serve(requests: socket.socket) -> list[str] | None:
    """Forks what is asked for until nobody is left to ask. Returns in every child: what it is to run."""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(key.data, 0)
                    _answer(requests, key.data, os.waitstatus_to_exitcode(status))
                    continue
                message, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 3)
                if not message:
                    return None
                name, command, environment = json.loads(message)
                pid = os.fork()
                if not pid:
                    for other in selector.get_map().values():
                        if other.data is not None:
                            os.close(other.fd)
                    _begin(name, descriptors, environment)
                    return list(command)
                for descriptor in descriptors:
                    os.close(descriptor)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                _answer(requests, pid, None)


def _answer(requests: socket.socket, pid: int, code: int | None) -> None:
    # Whoever is gone needs no answer, and is seen to be gone at the next request.
    with suppress(OSError):
        requests.send(json.dumps([pid, code]).encode())


def _begin(name: str, descriptors: Sequence[int], environment: Mapping[str, str]) -> None:
    """Makes a fork what a process would be that the shell had started."""
    os.setsid()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="utf-8")
    if "OMP_NUM_THREADS" in environment:
        # The environment was read when torch was imported.
        import_module("torch").set_num_threads(int(environment["OMP_NUM_THREADS"]))


def _main() -> int:
    for module in IMPORTED:
        import_module(module)
    # What is frozen is not collected, so that the pages which hold it stay shared.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        command = serve(requests)
    if command is None:
        return 0
    sys.argv = list(command)
    return int(import_module(command[0]).main(command[1:]))


if __name__ == "__main__":
    sys.exit(_main())
