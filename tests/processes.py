"""Real processes for tests: the programs as a user runs them, in a home of their own, and what they leave behind."""

import atexit
import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from swarm_peer.peer.local_swarm import LocalSwarm, child_environment
from swarm_peer.peer.zygote import Zygote, is_possible
from swarm_peer.swarm.shared_folder import SharedFolder

from tests.tiny import HELDOUT, TEXT

MODULES = {
    "swarm-peer": "swarm_peer.peer.cli",
    "swarm-coordinator": "swarm_peer.swarm.coordinator_cli",
    "swarm-peer with two devices": "tests.two_devices",
}

LIMIT_SECONDS = 300.0
"""Longest a program may take before the test fails; no test depends on how fast it is."""

CLEAN_SECONDS = 30.0
"""How long the remains of a killed program are given to go; the promise is 5 s on a machine that is not overloaded."""


AT_LEISURE = ("--simulated-device", "0.03", "0.06")
"""For peers of a run that goes on until a test has seen enough: at full speed they only take the cores from it."""

NICENESS = 10
"""Of the processes of swarms; a dozen of them would leave the other tests a tenth of a core."""


@cache
def zygote() -> Zygote | None:
    """The one that all swarms and short commands of this test process are forked from; what a test starts and watches
    (`Home.start`) is not."""
    if not is_possible():
        return None
    folder = tempfile.mkdtemp(prefix="zygote-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Zygote(child_environment(), Path(folder, "log"))
    atexit.register(made.close)
    # What a swarm computes while a test waits for something else is not needed: whoever waits goes first.
    os.setpriority(os.PRIO_PROCESS, made.pid, NICENESS)
    return made


class Home:
    """A home with small texts; temporary folders of programs started from it lie in `temporary`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "t"
        for name in ("t", "c/texts", "s"):
            (folder / name).mkdir(parents=True)
        (folder / "c/texts/shakespeare.txt").write_text(TEXT, encoding="utf-8")
        (folder / "c/texts/hamlet.txt").write_text(HELDOUT * 2, encoding="utf-8")
        self.environment = {
            **os.environ,
            "SWARM_PEER_HOME": str(folder / "c"),
            "SWARM_PEER_STATE": str(folder / "s"),
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, program: str, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", MODULES[program], *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def swarm(self, folder: str = "") -> LocalSwarm:
        """A swarm of tiny's that has not begun, in a folder of this name below the temporary one."""
        kept = SharedFolder(self.temporary / folder) if folder else SharedFolder.temporary()
        return LocalSwarm("tiny", kept, self.environment, zygote())

    def run(self, program: str, *arguments: str) -> tuple[int, str]:
        """Runs a program to its end: (exit code, what it printed). A demo is started as a user does."""
        made = zygote()
        if made is None or arguments[:1] == ("demo",):
            process = self.start(program, *arguments)
            try:
                output, _ = process.communicate(timeout=LIMIT_SECONDS)
            finally:
                process.kill()
            return process.returncode, output
        with tempfile.TemporaryFile("w+", dir=self.folder) as said:
            forked = made.start(program, (MODULES[program], *arguments), stdout=said, stderr=said, env=self.environment)
            forked.stdin.close()
            try:
                code = forked.wait(LIMIT_SECONDS)
            finally:
                forked.send_signal(signal.SIGKILL)
            said.seek(0)
            return code, said.read()

    def report(self, command: str, *arguments: str) -> dict[str, Any]:
        """Runs `swarm-peer demo` or `reference` on tiny; its report."""
        path = self.folder / f"{command}.json"
        code, output = self.run("swarm-peer", command, "--model", "tiny", *arguments, "--report", str(path))
        assert code == 0, output
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report

    def processes(self) -> list[str]:
        """Command lines of living processes that were started from this home."""
        return list(self._processes().values())

    def _processes(self) -> dict[int, str]:
        """Those whose command, first environment or log names the temporary folder, by their numbers."""
        found, ours = {}, os.fsencode(self.temporary)
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes()
                    log = os.fsencode(os.readlink(entry / "fd/2"))
                    if command and ours in b" ".join([command, (entry / "environ").read_bytes(), log]):
                        found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        return found

    def end_processes(self) -> None:
        """SIGKILL to those that live."""
        for number in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def remains(self) -> list[str]:
        """What is left: processes, and files in the temporary folder."""
        return self.processes() + [str(path) for path in self.temporary.iterdir()]

    def wait_until_clean(self) -> list[str]:
        """The remains, once there are none or the time is up."""
        deadline = time.monotonic() + CLEAN_SECONDS
        while (left := self.remains()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


class Terminal:
    """A window with a program in it, which is read all the time, as a real one is."""

    def __init__(
        self, rows: int, columns: int, program: str, *arguments: str, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._theirs = theirs
        self.settings = termios.tcgetattr(theirs)
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULES[program], *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm"},
        )
        self.written = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self._ours, 65536):
                self.written += data.decode(errors="replace")

    def until(self, text: str) -> str:
        """All that was written, once this is in it; colours and moves of the cursor left out."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while text not in (plain := re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.written)):
            assert time.monotonic() < deadline, f"no {text!r} in:\n{plain}"
            time.sleep(0.05)
        return plain

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """What Ctrl-C does in the terminal that a program belongs to; this one belongs to none."""
        self._process.send_signal(signal.SIGINT)

    def close(self) -> tuple[int, bool]:
        """(exit code, whether the terminal is as it was)."""
        try:
            code = self._process.wait(LIMIT_SECONDS)
        finally:
            self._process.kill()
        same = termios.tcgetattr(self._theirs) == self.settings
        os.close(self._theirs)
        self._reader.join(LIMIT_SECONDS)
        os.close(self._ours)
        return code, same


@contextmanager
def home() -> Iterator[Home]:
    """A home with a short path: Unix sockets allow no long one."""
    folder = Path(tempfile.mkdtemp(prefix="h"))
    made = Home(folder)
    try:
        yield made
    finally:
        made.end_processes()
        shutil.rmtree(folder, ignore_errors=True)
