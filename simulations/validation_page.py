"""`VALIDATION.md`: what `validation.py` found, with its figures beside it. Errors: `StorageError`, `UsageError` where
the figures need matplotlib and there is none."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import StorageError
from .namespace import TCP
from .plots import plot_agreement, plot_utilization
from .publications import ADDED_LATENCIES, Flushed, Rebalanced, Utilization
from .replayed_loss import STEPS, Replayed
from .report import write_text
from .validation import Compared, Form

T = TypeVar("T")

FIGURES = "validation-figures"
RATE_BOUND, RECOVERY_BOUND = 0.10, 0.20

HEAD = """# Is the simulator right?

Made by `swarm-sim validate --out simulations/VALIDATION.md`, which runs all of it again. What closed forms say is
checked in `make test` as well (`tests/test_validation.py`).
"""

FORMS = """
## Closed forms

Equal peers, nothing drawn, nothing lost: v is what a visit keeps a device (0.3 s), M the microbatches of a step, S the
stages, k the microbatches in flight, t the round trip. The trainer, peers, routing and protocol are those of a real
run; that they add next to nothing to the formula is a result, too.

| | formula | gives | simulated | off by |
|---|---|---|---|---|
"""

EMULATED = """
## Against real processes over an emulated internet

The same scenario (`validation.toml`) simulated, and run by real processes: libp2p, the directory, TCP and every byte
are real; the links are emulated packet by packet (`router.py`), the devices are durations in both; connections find
their rate by {tcp}. Nothing was adjusted to a case of the second group before it was measured. `router`: its busiest
seconds, as a share of a core; above 70 % a run is void.

Wanted: tokens a second within 10 %, recovery within 20 %.

| | tokens/s simulated | emulated | off by | recovery simulated | emulated | off by | router |
|---|---|---|---|---|---|---|---|
"""


PUBLISHED = """
## Beside publications

Shapes, not numbers: their models, devices and schedules are not ours (`publications.py`).
"""

UTILIZED = f"""
How much of the time devices are used, one layer a stage, at 500 Mbit/s, by the width of a hidden state and the
latency that is added. The published rows are SWARM's (Ryabinin et al. 2023), of V100s. Both fall with latency, and the
wider a layer is, the less.

| width | whose | {" | ".join(f"+{latency} ms" for latency in ADDED_LATENCIES)} |
|---|---|{"---|" * len(ADDED_LATENCIES)}
"""

FLUSHED = """
A step of a pipeline that is flushed after each, GPT-3 XL's width: GPipe on 12 V100 (DT-FM, Yuan et al. 2022), and the
flushed schedule here on devices that take in a data centre what those took.

| link | published | kept | simulated | kept |
|---|---|---|---|---|
"""

REBALANCED = """
What is kept of the machines that are there while they come and go, without rebalancing and with a move every 300 s
(SWARM: 400 machines, 32 stages, a preemption log that is not public; here 24 machines, four stages, an hour; the
study itself, on rates, is `benchmarks/rebalancing.py`).

| moves | published, of the best | simulated, of all devices |
|---|---|---|
"""

LOST = f"""
## Against loss

A simulation computes no loss. It knows which version each step's gradients were computed at: with that a tiny model is
trained on real text, {STEPS} steps, beside the same steps with updates that never or always are one version late
(`replayed_loss.py`). Machines come and go in the simulated run, and every replica of a stage is lost at once. Losses
are held-out ones, in nats a token.

| seed | peers lost | steps done twice | late updates | loss before | after, as simulated | never late | always late |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Findings:
    """What there is to show; a part without anything is left out."""

    forms: Sequence[Form] = ()
    compared: Sequence[Compared] = ()
    utilized: Sequence[Utilization] = ()
    flushed: Sequence[Flushed] = ()
    rebalanced: Sequence[Rebalanced] = ()
    replayed: Sequence[Replayed] = ()
    tcp: str = TCP


def figures_beside(file: Path) -> Path:
    """The folder of a page's figures, which is made if need be."""
    figures = file.parent / FIGURES
    try:
        figures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{figures} cannot be made: {error}") from error
    return figures


def write_page(file: Path, found: Findings) -> None:
    """The page, and the figures that it shows in a folder beside it."""
    figures = figures_beside(file)
    parts = [HEAD, *_section(FORMS, _form_line, found.forms)]
    if found.compared:
        plot_agreement(found.compared, figures / "emulation.svg")
        parts += [
            EMULATED.format(tcp=found.tcp),
            *_compared_lines(found.compared),
            _figure("simulated over emulated", "emulation"),
        ]
    if found.utilized or found.flushed or found.rebalanced:
        parts.append(PUBLISHED)
    parts += _section(UTILIZED, _utilized_line, found.utilized)
    if found.utilized:
        plot_utilization(found.utilized, figures / "utilization.svg")
        parts.append(_figure("device utilization over latency", "utilization"))
    first = found.flushed[0] if found.flushed else None
    parts += _section(FLUSHED, lambda each: _flushed_line(each, first or each), found.flushed)
    parts += _section(REBALANCED, _rebalanced_line, found.rebalanced)
    parts += _section(LOST, _replayed_line, found.replayed)
    write_text(file, "".join(parts))


def _section(head: str, line: Callable[[T], str], rows: Sequence[T]) -> Iterator[str]:
    if rows:
        yield head
        yield from map(line, rows)


def _figure(what: str, name: str) -> str:
    return f"\n![{what}]({FIGURES}/{name}.svg)\n"


def _utilized_line(each: Utilization) -> str:
    whose = "SWARM" if each.published else "simulated"
    return f"| {each.width} | {whose} | {' | '.join(f'{share:.1%}' for share in each.shares)} |\n"


def _flushed_line(each: Flushed, first: Flushed) -> str:
    link = f"{each.latency:g} ms, {each.rate / 1000:g} Gbit/s" if each.rate else "data centre"
    published = f"{each.published:.2f} s | {first.published / each.published:.0%}"
    return f"| {link} | {published} | {each.simulated:.2f} s | {first.simulated / each.simulated:.0%} |\n"


def _rebalanced_line(each: Rebalanced) -> str:
    moves = f"every {each.period:g} s" if each.period else "none"
    return f"| {moves} | {each.published:.1%} | {each.simulated:.1%} |\n"


def _replayed_line(each: Replayed) -> str:
    losses = " | ".join(f"{loss:.4f}" for loss in (each.before, each.simulated, each.none, each.all))
    return f"| {each.seed} | {each.lost} | {each.undone} | {each.late} of {STEPS} | {losses} |\n"


def _form_line(form: Form) -> str:
    due, found = f"{form.due:.3f} {form.unit}", f"{form.simulated:.3f} {form.unit}"
    return f"| {form.what} | {form.formula} | {due} | {found} | {form.off:+.1%} |\n"


def _compared_lines(compared: Sequence[Compared]) -> list[str]:
    lines = [_compared_line(each) for each in compared if each.case.fitted]
    others = [_compared_line(each) for each in compared if not each.case.fitted]
    if others:
        lines += ["| **not used for fitting** | | | | | | | |\n", *others]
    good = sum(abs(off) <= RATE_BOUND for off in (_off(*each.rates) for each in compared))
    recovered = [each.recoveries for each in compared if each.recoveries is not None]
    well = sum(abs(_off(*pair)) <= RECOVERY_BOUND for pair in recovered)
    summary = (
        f"\nTokens a second: {good} of {len(compared)} within 10 %. Recovery: {well} of {len(recovered)} within 20 %.\n"
    )
    return [*lines, summary]


def _compared_line(each: Compared) -> str:
    simulated, emulated = each.rates
    pair = each.recoveries
    recovery = "| - | - | - |" if pair is None else f"| {pair[0]:.2f} s | {pair[1]:.2f} s | {_off(*pair):+.0%} |"
    router = max(outcome.router for outcome in each.emulated)
    rates = f"{simulated:,.0f} | {emulated:,.0f} | {_off(simulated, emulated):+.1%}"
    return f"| {each.case.name} | {rates} {recovery} {router:.0%} |\n"


def _off(simulated: float, emulated: float) -> float:
    return simulated / emulated - 1 if emulated else float("inf")
