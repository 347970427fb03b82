"""Many runs of a scenario, and `swarm-sim` as a person uses it."""

import json
import math
import re
from pathlib import Path

import pytest
from matplotlib.image import imread
from swarm_peer.errors import UsageError
from swarm_peer.simulations.cli import main
from swarm_peer.simulations.sweep import Interval, settings, sweep

SMALL = """
title = "Small"
minutes = 5

[run.model]
name = "tiny"
stages = 2

[run.train]
steps = 4
batch = 4

[[peers]]
name = "some"
count = 3
forward = 0.1
backward = 0.2

[[events]]
kind = "freeze"
at = 2
seconds = 1
peers = "some"
share = 0.34
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (11, 2.228), (12, 2.201), (20, 2.093), (30, 2.045)])
def test_an_interval_is_students(count: int, quantile: float) -> None:
    """Quantiles as tables of the t distribution have them."""
    values = [float(number % 2) for number in range(count)]
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    interval = Interval.of(values)
    assert interval.mean == pytest.approx(mean)
    assert interval.half == pytest.approx(quantile * deviation / math.sqrt(count), rel=1e-3)


def test_one_run_says_nothing_of_how_sure_it_is() -> None:
    assert Interval.of([3.0]).mean == 3.0
    assert math.isnan(Interval.of([3.0]).half)


def test_settings_are_every_combination() -> None:
    assert settings(["a=1,2", "b.c=[1,2],x"]) == [
        ("a=1", "b.c=[1,2]"),
        ("a=1", "b.c=x"),
        ("a=2", "b.c=[1,2]"),
        ("a=2", "b.c=x"),
    ]


@pytest.mark.parametrize("axis", ["a", "a=", "=1", "a=1,,2"])
def test_what_is_no_setting_is_refused(axis: str) -> None:
    with pytest.raises(UsageError, match="wanted key=value"):
        settings([axis])


def test_parallel_runs_give_what_runs_one_after_the_other_give(scenario: Path) -> None:
    arguments = (scenario, ("peers.0.noise=0.3",), ["run.pipeline.staleness=0,1"], (0, 1))
    counted: list[None] = []
    alone = sweep(*arguments, jobs=1, done=lambda: counted.append(None))
    assert len(counted) == 4
    assert sweep(*arguments, jobs=2) == alone
    synchronous, delayed = alone
    assert delayed.against(synchronous).mean > 1.05
    assert synchronous.against(synchronous) == Interval(1.0, 0.0)


def test_run_shows_what_came_of_it(scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    assert main(["run", str(scenario), "--seeds", "2", "--report", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "Small" in shown
    assert "freeze" in shown
    told = json.loads(report.read_text())
    assert [outcome["seed"] for outcome in told] == [0, 1]
    assert all(len(outcome["steps"]) == 4 and outcome["finished"] for outcome in told)
    assert f"{told[0]['tokens_per_second']:,.0f}" in shown


def test_compare_sets_side_by_side(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", str(scenario), "run.pipeline.staleness=0,1", "--seeds", "2", "--jobs", "1", "--json"]
    assert main(arguments) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["changes"] == ["run.pipeline.staleness=0"]
    assert first["against_the_first"] == [1.0, 0.0]
    assert second["against_the_first"][0] > 1.05
    assert main([*arguments[:-1], "--set", "peers.0.count=2"]) == 0
    assert "pipeline.staleness=1" in capsys.readouterr().out


def test_plots_are_drawn(scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, swept = tmp_path / "run.png", tmp_path / "sweep.png"
    assert main(["run", str(scenario), "--plot", str(run)]) == 0
    assert main(["sweep", str(scenario), "--over", "peers.0.count=2,3", "--jobs", "1", "--plot", str(swept)]) == 0
    for file in (run, swept):
        pixels = imread(file)
        assert 0.01 < (pixels[..., :3] < 0.9).any(axis=-1).mean() < 0.9
    assert main(["run", str(scenario), "--plot", str(tmp_path / "run.nothing")]) == 1
    assert "run.nothing cannot be written" in capsys.readouterr().err


def test_a_page_holds_everything_and_loads_nothing(scenario: Path, tmp_path: Path) -> None:
    for arguments in (["run", str(scenario)], ["sweep", str(scenario), "--over", "peers.0.count=2,3", "--jobs", "1"]):
        page = tmp_path / "page.html"
        assert main([*arguments, "--seeds", "1", "--report", str(page)]) == 0
        text = page.read_text()
        assert "<h1>Small</h1>" in text
        assert "<svg" in text
        assert "&#34;forward&#34;: 0.1" in text
        assert not re.search(r"(src|href)=\"(?!#)", text)


def test_list_names_what_comes_with_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "home-links" in shown
    assert "48 peers" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["run", "nowhere.toml"], 1, "nowhere.toml: cannot be read"),
        (
            ["run", "home-links", "--set", "minutes=none"],
            1,
            "home-links.toml:4: minutes: Input should be a valid number",
        ),
        (["run", "home-links", "--seed", "-1"], 2, "--seed -1: wanted 0 or more"),
        (["sweep", "home-links", "--over", "minutes"], 2, "wanted key=value,value"),
        (["run", "home-links", "--set", "run.model.stages=40"], 1, "the run begins with 120 peers"),
        (["run", "home-links", "--set", "run.model.name=nothing"], 1, "nothing"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], code: int, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert problem in capsys.readouterr().err
