"""What a person sees of a demo: a live panel on a terminal, plain lines elsewhere, and a summary at the end."""

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from ..swarm.manifest import Settings

OTHER_LINES = 13  # of the panel: the heading, the dashboard, the stages, the table's head, notes and the bar


class Progress:
    """Follows a run's events. A context manager; `see` takes events as they come, `tick` keeps the clock moving."""

    def __init__(self, settings: Settings, replicas: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stepped: float | None = None
        self._settings = settings
        self._expected = settings.model.stages * replicas
        self._console = Console()
        self._peers: dict[str, int] = {}
        self._ready: set[str] = set()
        self._steps: deque[dict[str, Any]] = deque(maxlen=max(3, Console().height - OTHER_LINES))
        self._notes: deque[str] = deque(maxlen=4)
        self._run = "swarm-peer"
        self._status = "starting the coordinator"
        self._dashboard = ""
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("steps", total=settings.train.steps)
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(self._panel(), console=self._console, refresh_per_second=8)

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            if kind is None:
                self._status = "done"
            self._live.update(self._panel())
            self._live.stop()

    def tick(self) -> None:
        if self._live:
            self._live.update(self._panel())

    def see(self, event: dict[str, Any]) -> None:
        """Takes one event."""
        line = self._line(event)
        if line and self._live is None:
            print(line, file=sys.stdout, flush=True)
        elif line and event["event"] not in ("listening", "stepped", "joined", "ready"):
            self._notes.append(line)
        self.tick()

    def _line(self, event: dict[str, Any]) -> str:
        kind = event["event"]
        if kind == "listening":
            self._run = f"run {event['run_id'][:12]}"
            self._status = f"starting {self._expected} peers"
            if event["dashboard"]:
                self._dashboard = f"dashboard: {event['dashboard']}"
            return "\n".join(filter(None, (f"{self._run}: {self._status}", self._dashboard)))
        if kind == "joined":
            self._peers[event["peer"]] = event["stage"]
        if kind == "ready":
            self._ready.add(event["peer"])
            self._status = f"{len(self._ready)} of {self._expected} peers are ready"
            return f"peer {_short(event['peer'])} hosts stage {event['stage']}"
        if kind == "evaluated":
            self._status = "training"
            return f"held-out loss at version {event['version']}: {event['loss']:.4f}"
        if kind == "stepped":
            now = self._clock()
            # Since the step before was done, as steps overlap.
            seconds = event["seconds"] if self._stepped is None else now - self._stepped
            rate = event["tokens"] / seconds if seconds > 0 else 0.0
            self._stepped = now
            self._steps.append({**event, "rate": rate})
            self._bar.update(self._task, completed=event["step"] + 1)
            return (
                f"step {event['step']:3d}  loss {event['loss']:.4f}  {rate:6.0f} tokens/s  "
                f"peers {' '.join(str(count) for count in event['replicas'])}"
            )
        if kind == "lost":
            self._peers.pop(event["peer"], None)
            return f"peer {_short(event['peer'])} of stage {event['stage']} is gone at step {event['at_step']}"
        if kind == "rerouted":
            return f"microbatch {event['index']} of step {event['step']} is done without {_short(event['peer'])}"
        if kind == "waiting":
            self._status = f"waiting for stage {event['stage']}: it has no replica"
            return self._status
        return ""

    def _panel(self) -> Group:
        table = Table(box=None, padding=(0, 2))
        for name in ("step", "loss", "gradient norm", "tokens/s", "seconds"):
            table.add_column(name, justify="right")
        for step in self._steps:
            table.add_row(
                str(step["step"]),
                f"{step['loss']:.4f}",
                f"{step['grad_norm']:.3f}",
                f"{step['rate']:.0f}",
                f"{step['seconds']:.1f}",
            )
        stages = range(self._settings.model.stages)
        held = [sum(at == stage for at in self._peers.values()) for stage in stages]
        lanes = "   ".join(f"stage {stage} {'●' * count or '–'}" for stage, count in enumerate(held))
        notes = [f"[yellow]{note}[/yellow]" for note in self._notes]
        head = [f"[bold]{self._run}: {self._status}[/bold]", *([self._dashboard] if self._dashboard else [])]
        return Group(*head, lanes, table, *notes, self._bar)


def summary(report: dict[str, Any], settings: Settings) -> None:
    """Prints what came of a run."""
    console = Console()
    steps, ledger, wire, heldout = report["steps"], report["ledger"], report["wire"], report["heldout"]
    table = Table(show_header=False, box=None, padding=(0, 2))
    if steps:
        table.add_row("loss", f"{steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f} over {len(steps)} steps")
    if heldout["before"] is not None and heldout["after"] is not None:
        table.add_row("held-out loss", f"{heldout['before']:.4f} -> {heldout['after']:.4f}")
    table.add_row(
        "ledger",
        f"{ledger['microbatches']} microbatches: lost {ledger['lost']}, duplicated {ledger['duplicated']}; "
        f"stage-visits run again {ledger['reissued']}, taken back {ledger['taken_back']}",
    )
    for fault in report["faults"]:
        seconds = fault["rerouted_s"]
        took = "nothing to run again" if seconds is None else f"{seconds:.2f} s to the next useful microbatch"
        what = "killed" if fault["kind"] == "kill" else "lost"
        table.add_row("fault", f"peer of stage {fault['stage']} {what} at step {fault['at_step']}: {took}")
    same = all(len(set(replica["digests"].values())) <= 1 for replica in report["replicas"])
    table.add_row("replicas", "equal digests at every stage" if same else "[red]digests differ[/red]")
    megabytes = {name.removesuffix("_bytes"): wire[name] / 1e6 for name in wire if name != "tokens"}
    sizes = ", ".join(f"{name} {size:.1f}" for name, size in megabytes.items())
    table.add_row("wire, MB", sizes)
    codecs = report["codecs"]
    by = ", ".join(codecs["kernels"]) or "nobody"
    table.add_row(
        "codecs",
        f"{settings.codecs.activations} down, {settings.codecs.gradients} back: {codecs['seconds']:.2f} s of all peers "
        f"together, by {by}",
    )
    console.print(table)


def _short(peer: str) -> str:
    return peer[-6:]
