"""The simulator against closed forms; and what its page says."""

from dataclasses import replace
from pathlib import Path

import pytest
from swarm_peer.simulations.publications import Flushed, Rebalanced, Utilization, gpipe, rebalancing, utilization
from swarm_peer.simulations.replayed_loss import Replayed, replay
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
from swarm_peer.simulations.validation_page import Findings, write_page


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
    found = Findings(
        [form],
        [Compared(case, (replace(outcome, recoveries=(3.3,)),), (slower,)), again],
        [Utilization(768, True, (0.18, 0.12, 0.05, 0.03, 0.01)), Utilization(576, False, (0.2, 0.1, 0.1, 0.1, 0.1))],
        [Flushed(0, 0, 15.16, 15.2), Flushed(10, 1000, 22.9, 19.0)],
        [Rebalanced(0, 0.827, 0.5), Rebalanced(300, 0.958, 0.75)],
        [Replayed(2, 39, 1, 4, 5.5, 3.25, 3.125, 3.25)],
    )
    write_page(page, found)
    text = page.read_text()
    assert "| 768 | SWARM | 18.0% | 12.0% | 5.0% | 3.0% | 1.0% |" in text
    assert "| 10 ms, 1 Gbit/s | 22.90 s | 66% | 19.00 s | 80% |" in text
    assert "| every 300 s | 95.8% | 75.0% |" in text
    assert "| 2 | 4 | 1 | 39 of 40 | 5.5000 | 3.2500 | 3.1250 | 3.2500 |" in text
    assert "| a form | f(x) | 2.000 s | 2.100 s | +5.0% |" in text
    assert "| +100.0% | 3.30 s | 3.00 s | +10% | 31% |" in text
    assert "Tokens a second: 1 of 2 within 10 %. Recovery: 1 of 1 within 20 %." in text
    assert (tmp_path / "validation-figures" / "emulation.svg").read_text().startswith("<?xml")
    assert (tmp_path / "validation-figures" / "utilization.svg").exists()


def test_a_page_of_closed_forms_alone_has_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "PAGE.md"
    write_page(page, Findings([Form("a form", "f(x)", 2.0, 2.1, "s")]))
    assert page.read_text().count("\n## ") == 1


@pytest.mark.slow
def test_wider_layers_and_shorter_ways_keep_more_as_is_published() -> None:
    found = [each for each in utilization() if not each.published]
    for each in found:
        assert list(each.shares) == sorted(each.shares, reverse=True), each
    for latency in range(len(found[0].shares)):
        shares = [each.shares[latency] for each in found]
        assert shares == sorted(shares), latency


@pytest.mark.slow
def test_a_flushed_pipeline_is_slower_the_longer_its_ways() -> None:
    seconds = [each.simulated for each in gpipe()]
    assert seconds[0] == pytest.approx(15.16, rel=0.02)
    assert seconds == sorted(seconds)


@pytest.mark.slow
def test_churn_does_not_change_what_updates_do_to_the_loss() -> None:
    replayed = replay(0)
    assert replayed.lost > 0
    assert replayed.simulated == replayed.all
    assert replayed.none < replayed.before


@pytest.mark.slow
def test_moves_keep_more_of_machines_that_come_and_go() -> None:
    without, moving = rebalancing()
    assert 0.4 < without.simulated < moving.simulated
