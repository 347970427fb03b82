"""Memory that this process does not need any more, given back to the system.

glibc gives back the end of each of its heaps by itself. Pages between blocks that are still in use stay with the
process: tens of megabytes after a stage was moved, loaded or gone back on, which their owner misses. Where the C
library is another one, nothing is done.
"""

import asyncio
import ctypes
import gc

SECONDS = 15.0
"""How often: it takes some 15 ms, in which other threads may wait for a block. At once a minute, what a busy minute had
needed stayed: up to 40 MB of a peer's 290."""


def give_back() -> bool:
    """Whether anything was given back (`malloc_trim(3)`)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    return bool(trim(0))


def collect_and_give_back() -> None:
    """When something large has come to its end: what it took is given back now, not when the collector comes by."""
    gc.collect()
    give_back()


async def keep_giving_back() -> None:
    """Does so again and again until it is cancelled.

    The collector comes by itself when a quarter as many objects are new as there are old ones: with all that was
    imported, minutes of cycles. The first pass, by which everything is loaded, lets it look at that no more; the others
    take some milliseconds.
    """
    await asyncio.sleep(SECONDS)
    gc.collect()
    gc.freeze()
    while True:
        await asyncio.to_thread(give_back)
        await asyncio.sleep(SECONDS)
        gc.collect()
