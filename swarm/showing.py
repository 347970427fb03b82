"""Where a coordinator shows its run: the dashboard's HTTP port, the API's. Opens and closes them; owns neither."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .chronicle import Chronicle

if TYPE_CHECKING:
    from .api.coordinator_service import Helm


@dataclass(frozen=True, slots=True)
class Places:
    """Where to listen, as HOST:PORT; None: nowhere. Port 0 takes one that is free. `tls`: certificate and key of the
    API, PEM; without it the API is plain text, and best kept on this machine."""

    http: str | None = None
    api: str | None = None
    tls: tuple[Path, Path] | None = None


NOWHERE = Places()


@dataclass(frozen=True, slots=True)
class Shown:
    """Where it can be seen: the dashboard's URL, the API's HOST:PORT; empty: nowhere."""

    dashboard: str = ""
    api: str = ""


@asynccontextmanager
async def shown(chronicle: Chronicle, places: Places, helm: "Helm") -> AsyncIterator[Shown]:
    """Shows the run of a chronicle for as long as the block lasts. Raises `UnreachableError` if it cannot listen."""
    async with AsyncExitStack() as stack:
        dashboard = api = ""
        # Imported here: whoever shows nothing needs no servers.
        if places.http is not None:
            from .dashboard.server import serve_live

            dashboard = await stack.enter_async_context(serve_live(chronicle, places.http))
        if places.api is not None:
            from .api.coordinator_service import serve_api

            api = await stack.enter_async_context(serve_api(chronicle, helm, places.api, places.tls))
        yield Shown(dashboard, api)
