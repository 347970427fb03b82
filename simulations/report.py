"""A report of simulated runs on one page that opens offline: tables, drawings (SVG), the scenario itself; or as JSON.

Errors: `StorageError`; `UsageError` where the drawings need matplotlib and there is none.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..errors import StorageError
from .outcome import Outcome
from .plots import svg_of, svg_of_sweep
from .scenario import Scenario
from .sweep import Point
from .tables import Grid, of_comparison, of_events, of_losses, of_outcomes, of_stages, warnings_of

TEMPLATE = Path(__file__).with_name("report.html")


def write_json(file: Path, said: list[dict[str, Any]]) -> None:
    write_text(file, json.dumps(said, indent=2) + "\n")


def write_outcomes(file: Path, scenario: Scenario, outcomes: Sequence[Outcome]) -> None:
    """Of runs of one scenario, of which the first is drawn."""
    first = outcomes[0]
    tables = [of_outcomes(outcomes), of_losses(outcomes), of_stages(first)]
    if first.happened:
        tables.append(of_events(first))
    write_text(file, _page(scenario, tables, warnings_of(outcomes), [svg_of(first)]))


def write_points(file: Path, scenario: Scenario, points: Sequence[Point]) -> None:
    """Of a sweep; each setting's first run is drawn as well."""
    drawings = [svg_of_sweep(points), *(svg_of(point.outcomes[0]) for point in points)]
    warnings = [line for point in points for line in warnings_of(point.outcomes)]
    write_text(file, _page(scenario, [of_comparison(points)], warnings, drawings))


def _page(scenario: Scenario, tables: Sequence[Grid], warnings: Sequence[str], drawings: Sequence[str]) -> str:
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=scenario.title,
        about=scenario.about.strip(),
        tables=tables,
        warnings=warnings,
        drawings=[Markup(drawing) for drawing in drawings],  # drawn here, with names escaped
        scenario=scenario.model_dump_json(indent=2, exclude_defaults=True),
    )


def write_text(file: Path, text: str) -> None:
    """Raises `StorageError`."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error}") from error
