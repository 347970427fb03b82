"""Memory that was freed between blocks in use goes back to the system, and what is in cycles does not stay long."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKS, BYTES = 4000, 20_000

PROGRAM = f"""
import asyncio, gc, weakref
from pathlib import Path
from swarm_peer.swarm import freed_memory

class Cycle:
    pass

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * {os.sysconf("SC_PAGE_SIZE")}

async def main():
    gc.set_threshold(0)  # it does not come by itself
    blocks = [bytearray({BYTES}) for _ in range({BLOCKS})]
    kept = blocks[::2]
    del blocks
    before = resident()
    freed_memory.SECONDS = 0.0
    keeping = asyncio.ensure_future(freed_memory.keep_giving_back())
    while resident() > before - {BLOCKS * BYTES // 4}:
        await asyncio.sleep(0.01)
    print("given back")
    cycle = Cycle()
    cycle.itself, gone = cycle, weakref.ref(cycle)
    del cycle
    while gone() is not None:
        await asyncio.sleep(0.01)
    keeping.cancel()
    print("collected", gc.get_freeze_count() > 0)

asyncio.run(main())
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="needs Linux and glibc",
)
def test_cycles_are_collected_and_pages_between_blocks_in_use_given_back() -> None:
    """In a process of its own: another test's garbage would be given back too."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("given back\ncollected True\n", 0), done.stderr
