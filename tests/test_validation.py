"""The simulator against closed forms; and what its page says."""

from dataclasses import replace
from pathlib import Path

import pytest
from swarm_peer.simulations.study import Study
from swarm_peer.simulations.validation import (
    Case,
    Compared,
    Form,
    bubble,
    cases,
    equal_peers,
    little,
    queue,
    slow_uplink,
)
from swarm_peer.simulations.validation_page import write_page


@pytest.mark.parametrize(("stages", "batch"), [(2, 4), (4, 8), (4, 16), (6, 8)])
def test_without_staleness_a_step_takes_its_bubble(stages: int, batch: int) -> None:
    """(M + S - 1) visits, as GPipe's and 1F1B's schedules do (Huang et al. 2019, section 2.3)."""
    assert abs(bubble(stages, batch).off) < 0.01


def test_one_slow_uplink_is_the_bound() -> None:
    """Its stage sends an activation and a gradient a visit; computing hides behind that."""
    assert abs(slow_uplink(50.0).off) < 0.02


@pytest.mark.parametrize("slots", [1, 4, 8])
def test_one_stage_is_a_closed_queue(slots: int) -> None:
    assert abs(queue(slots).off) < 0.01


def test_what_is_open_is_what_comes_times_how_long_it_stays() -> None:
    forms = list(little())
    assert len(forms) == 4
    assert all(abs(form.off) < 0.03 for form in forms)


def test_every_case_can_begin() -> None:
    found = cases()
    assert len(found) >= 8
    assert sum(not case.fitted for case in found) >= len(found) / 2
    for case in found:
        short = case.scenario.run.train.model_copy(update={"steps": 2})
        run = case.scenario.run.model_copy(update={"train": short})
        assert Study(case.scenario.model_copy(update={"run": run})).run().finished, case.name


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    outcome = Study(equal_peers("run.train.steps=3")).run()
    slower = replace(outcome, tokens_per_second=outcome.tokens_per_second / 2, recoveries=(3.0,), router=0.31)
    case = Case("a case", True, equal_peers())
    again = Compared(replace(case, name="another", fitted=False), (replace(outcome, recoveries=(3.3,)),), (outcome,))
    page = tmp_path / "PAGE.md"
    form = Form("a form", "f(x)", 2.0, 2.1, "s")
    write_page(page, [form], [Compared(case, (replace(outcome, recoveries=(3.3,)),), (slower,)), again])
    text = page.read_text()
    assert "| a form | f(x) | 2.000 s | 2.100 s | +5.0% |" in text
    assert "| +100.0% | 3.30 s | 3.00 s | +10% | 31% |" in text
    assert "Tokens a second: 1 of 2 within 10 %. Recovery: 1 of 1 within 20 %." in text
    assert (tmp_path / "validation-figures" / "emulation.svg").read_text().startswith("<?xml")
