"""The panel of `swarm-peer join`: a peer's status on a few lines. Pure.

What comes from other machines is text, never markup.
"""

from collections import deque
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..protos import api_pb2 as pb
from ..swarm.api.screen import count

WINDOW_SECONDS = 30.0
"""Over which visits and bytes a second are taken."""

LABEL_WIDTH = 8
HINT = "Ctrl-C leaves when what is open is done; again: at once"
PAUSING_HINT = "Ctrl-C ends it"
LEAVING_HINT = "Ctrl-C leaves at once"


@dataclass
class Rates:
    """Visits and bytes a second, over the last while."""

    _seen: "deque[tuple[float, int, int, int]]" = field(default_factory=deque)

    def see(self, now: float, status: pb.PeerStatus) -> None:
        """`now`: seconds of any steady clock."""
        self._seen.append((now, status.visits, status.sent, status.received))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_SECONDS:
            self._seen.popleft()

    def _of(self, which: int) -> float:
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return 0.0
        first, last = self._seen[0], self._seen[-1]
        return (last[which] - first[which]) / (last[0] - first[0])

    @property
    def visits(self) -> float:
        return self._of(1)

    @property
    def sent(self) -> float:
        return self._of(2)

    @property
    def received(self) -> float:
        return self._of(3)


def panel(status: pb.PeerStatus, rates: Rates, loading: tuple[int, int] | None = None) -> RenderableType:
    """`loading`: bytes of the weights that are read, and of all."""
    rows = Table.grid(padding=(0, 2, 0, 0), expand=True)
    rows.add_column(style="dim", justify="right", no_wrap=True, min_width=LABEL_WIDTH)
    rows.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    rows.add_row("state", _state(status))
    if loading is not None:
        bar = Table.grid(padding=(0, 1, 0, 0))
        done, total = loading
        bar.add_row(ProgressBar(total=total, completed=done, width=30), f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB")
        rows.add_row("weights", bar)
    if not status.HasField("stage") and status.waits:
        rows.add_row("waits", Text(status.waits, "yellow"))
    if status.HasField("stage"):
        rows.add_row("version", Text.assemble(_version(status), _loss(status)))
        rows.add_row("visits", _visits(status, rates))
        rows.add_row("queue", f"{status.open} of {status.slots} open, {status.below} of them at later stages")
        rows.add_row("waits", Text(status.waits or "for nobody", "yellow" if status.waits else ""))
        rows.add_row(
            "credit", f"{status.credit:,.1f} for {count(status.counted, 'microbatch', 'microbatches')} that counted"
        )
    if status.peer:
        rows.add_row("link", _link(status, rates))
    refused = ", ".join(f"{times} {reason.lower()}" for reason, times in sorted(status.refused.items()))
    if refused or status.busy:
        told = [f"busy {count(status.busy, 'time', 'times')}"] if status.busy else []
        rows.add_row("refused", Text(", ".join([*told, *([refused] if refused else [])])))
    title = Rule(_title(status), align="left", style="dim")
    if status.state == "ended":
        return Group(title, rows)
    hint = PAUSING_HINT if status.state == "pausing" else LEAVING_HINT if status.leaving else HINT
    return Group(title, rows, Text(hint, "dim"))


def _title(status: pb.PeerStatus) -> Text:
    title = Text("swarm-peer", "bold")
    if status.HasField("stage"):
        stages = list(status.hosted) or [status.stage]
        which = f"stage {stages[0]}" if len(stages) == 1 else "stages " + ", ".join(map(str, stages))
        title.append(f" · {which} of {status.stages} (counted from 0) · run {status.run[:12]} · {status.peer[-8:]}", "")
    return title


def _state(status: pb.PeerStatus) -> Text:
    state = Text(status.state, "green" if status.state == "working" else "yellow")
    if status.leaving:
        state.append(f": {status.leaving}", "")
    return state


def _version(status: pb.PeerStatus) -> str:
    return str(status.version) if status.version >= 0 else "none yet"


def _loss(status: pb.PeerStatus) -> str:
    return f" · loss {status.loss:.4f}" if status.HasField("loss") else ""


def _visits(status: pb.PeerStatus, rates: Rates) -> str:
    most = f", up to {status.visits_per_second:.2f}/s alone" if status.visits_per_second else ""
    return f"{rates.visits:.2f}/s{most}; {status.visits:,} so far"


def _link(status: pb.PeerStatus, rates: Rates) -> str:
    parts = [
        f"sent {status.sent / 1e6:,.1f} MB ({rates.sent / 1e6:.2f} MB/s)",
        f"received {status.received / 1e6:,.1f} MB ({rates.received / 1e6:.2f} MB/s)",
    ]
    if status.link_rate:
        parts.append(f"{status.link_rate / 1e6:,.0f} Mbit/s, {1000 * status.round_trip:.0f} ms to its neighbours")
    return ", ".join(parts)
