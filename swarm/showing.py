"""Where a coordinator shows its run: the dashboard's HTTP port, the API's. Opens and closes them; owns neither."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from .chronicle import Chronicle


@dataclass(frozen=True, slots=True)
class Places:
    """Where to listen, as HOST:PORT; None: nowhere. Port 0 takes one that is free."""

    http: str | None = None
    api: str | None = None


NOWHERE = Places()


@dataclass(frozen=True, slots=True)
class Shown:
    """Where it can be seen: the dashboard's URL, the API's HOST:PORT; empty: nowhere."""

    dashboard: str = ""
    api: str = ""


@asynccontextmanager
async def shown(chronicle: Chronicle, places: Places) -> AsyncIterator[Shown]:
    """Shows the run of a chronicle for as long as the block lasts. Raises `UnreachableError` if it cannot listen."""
    async with AsyncExitStack() as stack:
        dashboard = ""
        if places.http is not None:
            # Imported here: whoever shows nothing needs no server.
            from .dashboard.server import serve_live

            dashboard = await stack.enter_async_context(serve_live(chronicle, places.http))
        yield Shown(dashboard)
