"""A run as a terminal shows it: `swarm-coordinator status`, and `top` that fits it to the window. Pure.

Made of the document that every view shows (`run_view.py`). What comes from peers is text, never markup.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Document = Mapping[str, Any]
Row = tuple[str | Text, ...]

TONES = {"ready": "green", "loading": "yellow", "draining": "yellow", "training": "green", "finished": "green"}
FAULTS, MIN_ROWS = 3, 3
TABLE_LINES = 2
"""A blank line, and the head."""


def screen(document: Document, height: int | None = None) -> Group:
    """The run strip, what it needs, its faults, stages and members; with a height no more lines than that, each cut
    where the window ends."""
    strip, needs, faults = _strip(document), _needs(document), _faults(document)
    stages, members = _stage_rows(document), _member_rows(document)
    for_stages = for_members = None
    if height is not None:
        lines = len(strip) + 2 * TABLE_LINES
        if height - lines - len(needs) - len(faults) < 2 * MIN_ROWS:
            faults = []
        if height - lines - len(needs) < 2 * MIN_ROWS:
            needs = []
        room = max(2, height - lines - len(needs) - len(faults))
        for_stages = min(len(stages), max(room // 2, room - len(members)))
        for_members = room - for_stages
    told = [*strip, *needs, *faults]
    for line in told if height is not None else ():
        line.no_wrap, line.overflow = True, "ellipsis"
    parts: list[RenderableType] = [*told]
    if stages:
        parts += [Text(), *_table(("stage", "replicas", "visits/s", "queue", ""), stages, for_stages)]
    if members:
        parts += [Text(), *_table(("peer", "stage", "state", "counted", "credit", "waits"), members, for_members)]
    return Group(*parts)


def _strip(document: Document) -> list[Text]:
    progress, ledger, phase = document["progress"], document["ledger"], document["phase"]
    head = Text.assemble((f" {phase} ", f"reverse {TONES.get(phase, 'yellow')}"), f" {document['sentence']}")
    rate, ideal = progress.get("tokens_per_second") or 0.0, progress.get("ideal_tokens_per_second") or 0.0
    loss, heldout, left = (progress.get(name) for name in ("loss", "heldout", "seconds_left"))
    facts = [
        "no loss yet" if loss is None else f"loss {_number(loss)}",
        *([] if heldout is None else [f"held out {_number(heldout)}"]),
        f"{rate:,.0f} tokens/s" + (f", {100 * rate / ideal:.0f} % of ideal links" if rate and ideal >= rate else ""),
    ]
    counts = [
        *([] if left is None else [f"{duration(left)} left"]),
        f"{count(ledger['microbatches'], 'microbatch', 'microbatches')}: "
        f"lost {ledger['lost']}, duplicated {ledger['duplicated']}",
        *([f"{ledger['reissued']:,} run again"] if ledger["reissued"] else []),
        count(ledger["faults"], "fault", "faults"),
    ]
    return [head, Text(" · ".join(facts)), Text(" · ".join(counts))]


def _needs(document: Document) -> list[Text]:
    needs = document.get("needs")
    if not needs:
        return []
    what = [f"{needs['memory'] / 1e9:.1f} GB"] if needs["memory"] else []
    what += [f"{needs['bandwidth'] / 1e6:.1f} Mbit/s each way"] if needs.get("bandwidth") else []
    gain = needs.get("speed_up") or 1.0
    faster = f", {100 * (gain - 1):.0f} % faster with it" if gain >= 1.01 else ""
    machine = f" ({', '.join(what)})" if what else ""
    return [Text.assemble(("needs ", "bold"), f"a machine for stage {needs['stage']}{machine}: {needs['why']}{faster}")]


def _faults(document: Document) -> list[Text]:
    faults = sorted(document["faults"].values(), key=lambda fault: -fault["at"])
    return [Text.assemble(("fault ", "bold red"), _fault(fault)) for fault in faults[:FAULTS]]


def _fault(fault: Document) -> str:
    facts = [fault["why"]]
    facts += [f"found after {fault['silent']:.1f} s of silence"] if fault["silent"] else []
    facts += [f"{count(fault['rerun'], 'microbatch', 'microbatches')} run again"] if fault["rerun"] else []
    rerouted = fault.get("rerouted")
    facts += [f"rerouted in {rerouted:.1f} s"] if rerouted is not None else []
    return f"{fault['name']} of stage {fault['stage']} at step {fault['at_step']}: {', '.join(facts)}"


def _stage_rows(document: Document) -> list[Row]:
    rows: list[Row] = []
    for key, stage in sorted(document["stages"].items(), key=lambda entry: int(entry[0])):
        mark = Text()
        if not stage["replicas"]:
            mark = Text("no replica", "red")
        elif stage["is_slowest"]:
            mark = Text("bottleneck", "yellow")
        rate = f"{stage['rate']:.2f}" if stage["rate"] else "?"
        rows.append((key, str(stage["replicas"]), rate, str(stage["queue"]), mark))
    return rows


def _member_rows(document: Document) -> list[Row]:
    rows: list[Row] = []
    peers = document["peers"]
    members = document["members"].values()
    for member in sorted(members, key=lambda member: (member["stage"], -peers[member["peer"]]["credit"])):
        peer = peers[member["peer"]]
        state = Text(member["state"], TONES.get(member["state"], "red"))
        counted, credit = str(member["counted"]), f"{peer['credit']:.1f}"
        rows.append((peer["name"], str(member["stage"]), state, counted, credit, member["waits"]))
    return rows


def _table(names: tuple[str, ...], rows: list[Row], room: int | None) -> list[RenderableType]:
    """All rows, or as many as there is room for, those with a last word first, and how many more there are."""
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    for at, name in enumerate(names):
        last = at == len(names) - 1
        number = name in ("stage", "replicas", "visits/s", "queue", "counted", "credit")
        table.add_column(
            name,
            header_style="dim",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if last else None,
            justify="right" if number else "left",
            max_width=None if last else 24,
        )
    shown = rows
    if room is not None and len(rows) > room:
        shown = sorted(rows, key=lambda row: not str(row[-1]))[: max(0, room - 1)]
    for row in shown:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    if len(shown) == len(rows):
        return [table]
    return [table, Text(f"and {len(rows) - len(shown)} more", "dim")]


def duration(seconds: float) -> str:
    """In the largest unit that leaves a number above one."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def count(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else str(value)
