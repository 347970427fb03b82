"""Each rule of the protocol, broken, is noticed by some seeded schedule; the tables are in the README of `tests`."""

import re
from pathlib import Path

import pytest
from swarm_peer.errors import StuckError

from tests.chaos.__main__ import problem_of
from tests.chaos.elastic_mutants import ELASTIC_MUTANTS
from tests.chaos.mutants import MUTANTS
from tests.chaos.on_torch import problem_on_torch
from tests.chaos.virtual import VIRTUAL_SECONDS

EVERY = MUTANTS | ELASTIC_MUTANTS

SEEDS = 400
"""How many schedules a mutant may survive."""

DEARER = 1.15
"""How many times as much a run must cost without a rule that saves something."""

TABLE = re.compile(r"^\| `([\w-]+)` \| (.+?) \| (?:.+ \| )?(\d+) \|$", re.MULTILINE)
ROWS = {
    name: (rule, int(seed)) for name, rule, seed in TABLE.findall(Path("tests/README.md").read_text(encoding="utf-8"))
}


def is_noticed(name: str, seed: int) -> bool:
    """Whether a schedule breaks a promise without the rule, or costs more than with it."""
    mutant = EVERY[name]
    schedule = mutant.draw(seed)
    with mutant.broken():
        problem, broken = problem_on_torch(schedule) if mutant.on_torch else problem_of(schedule, mutant.limit)
    if isinstance(problem, StuckError) and mutant.limit < VIRTUAL_SECONDS:
        return problem_of(schedule, mutant.limit)[0] is None  # with the rule it must not take as long
    if problem is not None or mutant.costs is None:
        return problem is not None
    problem, whole = problem_of(schedule, mutant.limit)
    return problem is None and mutant.costs(broken) >= DEARER * mutant.costs(whole)


def test_the_tables_name_every_mutant_and_its_rule() -> None:
    assert {name: rule for name, (rule, _) in ROWS.items()} == {name: mutant.rule for name, mutant in EVERY.items()}


@pytest.mark.parametrize("name", EVERY)
def test_a_broken_rule_is_noticed(name: str) -> None:
    """The seed that the table names is tried first; it may have moved with a change elsewhere."""
    assert any(is_noticed(name, seed) for seed in (ROWS[name][1], *range(SEEDS)))
