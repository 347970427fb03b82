"""Whoever does not read what a program shows holds up nothing of it."""

import fcntl
import os
import subprocess
import sys
import threading
from functools import partial

from swarm_peer.swarm.apart import Apart

LIMIT_SECONDS = 60.0

PROGRAM = """
import sys
from functools import partial
from swarm_peer.swarm import apart
apart.LAST_SECONDS = float(sys.argv[1])
output = apart.standard_output()
with apart.Apart() as showing:
    for number in range(10000):
        showing.call(partial(print, number, file=output))
    print("worked on", file=sys.stderr)
"""


def start(last_seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(last_seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    return process


def test_a_pipe_that_nobody_reads_holds_up_nothing() -> None:
    process = start(0.2)
    assert process.wait(LIMIT_SECONDS) == 0
    assert process.stderr is not None
    assert process.stderr.read() == "worked on\n"
    process.communicate()


def test_who_reads_gets_everything_in_its_order() -> None:
    output, errors = start(LIMIT_SECONDS).communicate(timeout=LIMIT_SECONDS)
    assert output.splitlines() == [str(number) for number in range(10000)]
    assert errors == "worked on\n"


def test_calls_that_fail_are_passed_over_and_those_beyond_the_limit_dropped() -> None:
    done: list[int] = []
    go_on = threading.Event()

    def fails() -> None:
        go_on.wait(LIMIT_SECONDS)
        os.close(-1)

    with Apart(most=3) as apart:
        apart.call(fails)
        while apart.waiting:
            pass
        for number in range(5):
            apart.call(partial(done.append, number))
        go_on.set()
    assert done == [0, 1, 2]
