"""Watches for stages whose state nobody has any more: says so, and what it takes to go on.

A replica that returns goes on where it was. Otherwise, when a newcomer has the stage loaded and `patience` is over, the
run goes back to its last checkpoint. Or it is given up after a while, if that is wanted.

Errors: `GoingBackError`, `StoppedError`.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ..errors import GoingBackError, StoppedError
from . import events
from .conditions import Signal
from .roster import Roster


async def watch_stages(
    roster: Roster,
    signal: Signal,
    leads: Callable[[], bool],
    emit: Callable[[events.Event], None],
    give_up: float | None,
    patience: float,
    lost: Callable[[], int | None],
    is_lost: Callable[[int], bool],
    restorable: Callable[[], int],
) -> None:
    """Never returns. `leads`: whether the term has begun and is not over: whoever concludes a run needs no state any
    more; `give_up`: seconds, None to wait for ever; `lost`: the first stage whose state nobody has; `is_lost`: whether
    that is so of a stage; `restorable`: the step that a checkpoint to go back to would begin with."""
    loop = asyncio.get_running_loop()
    while True:
        await signal.wait_for(lambda: leads() and lost() is not None)
        stage = lost()
        assert stage is not None
        empty_since = loop.time()
        emit(events.Waiting(stage, restorable()))
        while is_lost(stage) and leads():
            try:
                async with asyncio.timeout_at(None if give_up is None else empty_since + give_up):
                    await signal.wait_for(partial(lambda at: not is_lost(at) or _is_loaded(roster, at), stage))
            except TimeoutError as error:
                raise StoppedError(
                    f"stage {stage} has had no replica for {give_up:.0f} s; start the run again with more replicas"
                ) from error
            with suppress(TimeoutError):
                async with asyncio.timeout_at(empty_since + patience):
                    await signal.wait_for(partial(lambda at: not is_lost(at), stage))
            # Whoever had it loaded may have gone again: then the next one need not be waited for as long.
            if is_lost(stage) and _is_loaded(roster, stage) and leads():
                raise GoingBackError(f"nobody has the state of stage {stage} any more")


def _is_loaded(roster: Roster, stage: int) -> bool:
    return any(member.loaded or member.version >= 0 for member in roster.live(stage))
