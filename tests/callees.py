"""What callees in tests do besides answering."""

import asyncio

from swarm_peer.swarm.serving import Incoming


async def pause(incoming: Incoming, seconds: float) -> None:
    """Waits for a while, unless the caller goes away first; raises as `Incoming.race` does."""
    event = asyncio.Event()
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await incoming.race(event)
    finally:
        timer.cancel()
