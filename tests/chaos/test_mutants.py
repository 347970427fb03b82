"""Each rule of the protocol, broken, is noticed by some seeded schedule; the table is in the README of `tests`."""

import re
from pathlib import Path

import pytest

from tests.chaos.__main__ import problem_of
from tests.chaos.mutants import MUTANTS
from tests.chaos.schedules import draw_schedule

SEEDS = 400
"""How many schedules a mutant may survive."""

TABLE = re.compile(r"^\| `([\w-]+)` \| (.+?) \| (\d+) \|", re.MULTILINE)
ROWS = {
    name: (rule, int(seed)) for name, rule, seed in TABLE.findall(Path("tests/README.md").read_text(encoding="utf-8"))
}


def test_the_table_names_every_mutant_and_its_rule() -> None:
    assert {name: rule for name, (rule, _) in ROWS.items()} == {name: mutant.rule for name, mutant in MUTANTS.items()}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(name: str) -> None:
    """The seed that the table names is tried first; it may have moved with a change elsewhere."""
    known = ROWS[name][1]
    with MUTANTS[name].broken():
        assert any(problem_of(draw_schedule(seed))[0] is not None for seed in (known, *range(SEEDS)))
