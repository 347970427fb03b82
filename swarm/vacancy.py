"""Watches for stages that nobody hosts: says so, and after a while gives the run up if that is wanted.

Errors: `StoppedError`.
"""

import asyncio
from collections.abc import Callable

from ..errors import StoppedError
from . import events
from .conditions import Signal
from .roster import Roster


async def watch_stages(
    roster: Roster,
    signal: Signal,
    started: Callable[[], bool],
    emit: Callable[[events.Event], None],
    give_up: float | None,
) -> None:
    """Never returns. `give_up`: seconds, None to wait for ever."""
    while True:
        await signal.wait_for(lambda: started() and roster.empty_stage() is not None)
        stage = roster.empty_stage()
        assert stage is not None
        emit(events.Waiting(stage))
        try:
            async with asyncio.timeout(give_up):
                await signal.wait_for(lambda: roster.empty_stage() is None)
        except TimeoutError as error:
            raise StoppedError(
                f"stage {stage} has had no replica for {give_up:.0f} s; start the run again with more replicas"
            ) from error
