"""`VALIDATION.md`: what `validation.py` found, with its figures beside it. Errors: `StorageError`, `UsageError` where
the figures need matplotlib and there is none."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import StorageError
from .plots import plot_agreement
from .report import write_text
from .validation import Compared, Form

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
are real; the links are emulated packet by packet (`router.py`), the devices are durations in both. Nothing was adjusted
to a case of the second group before it was measured. `router`: its busiest seconds, as a share of a core; above 70 % a
run is void.

Wanted: tokens a second within 10 %, recovery within 20 %.

| | tokens/s simulated | emulated | off by | recovery simulated | emulated | off by | router |
|---|---|---|---|---|---|---|---|
"""


def write_page(file: Path, forms: Sequence[Form], compared: Sequence[Compared]) -> None:
    """The page, and the figures that it shows in a folder beside it."""
    parts = [HEAD, FORMS, *(_form_line(form) for form in forms)]
    if compared:
        figures = file.parent / FIGURES
        try:
            figures.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(f"{figures} cannot be made: {error}") from error
        plot_agreement(compared, figures / "emulation.svg")
        parts += [EMULATED, *_compared_lines(compared), f"\n![simulated over emulated]({FIGURES}/emulation.svg)\n"]
    write_text(file, "".join(parts))


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
