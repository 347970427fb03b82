"""Watches the device of one stage: one that hangs while its peer beats on can be told from a slow one by nobody else.

Errors: `DeviceError`, which ends the peer, so that others take its work as of one that was killed.
"""

import asyncio

from ..errors import DeviceError
from .host import StageHost

LOOK_SECONDS = 2.0
HANG_SECONDS, HANG_TIMES = 120.0, 30.0
"""A device that is at one visit for so long, and so many times as long as it takes for one, hangs."""

FIRST_HANG_SECONDS = 300.0
"""The same before it has done any."""


async def watch_device(host: StageHost) -> None:
    """Never returns. Raises `DeviceError`."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        own = host.workload.pace.forward + host.workload.pace.backward
        limit = max(HANG_SECONDS, HANG_TIMES * own) if own else FIRST_HANG_SECONDS
        began, now = host.queue.began, asyncio.get_running_loop().time()
        if began is not None and now - began > limit:
            raise DeviceError(
                f"the device has been at one visit for {now - began:.0f} s, where {own:.1f} s are the rule: it hangs; "
                "start this peer again when it works"
            )
