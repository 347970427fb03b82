"""What counts as flat: lines of known slope, steps, noise and outliers."""

import random
from dataclasses import replace

import pytest

from tests.chaos.flatness import Bounds, Sample, Series, Verdict, judge, theil_sen, verdicts

RUN = 1800.0
BOUNDS = Bounds()
MB = 1_000_000


def watched(
    resident: float = 400 * MB,
    growth: float = 0.0,
    *,
    descriptors: int = 60,
    opened: float = 0.0,
    seconds: float = RUN,
    began: float = 0.0,
    loading: float = 0.0,
    noise: float = 0.0,
    name: str = "peer-0",
    kind: str = "peer",
) -> Series:
    """A process that grows evenly, by so much over a whole run; `loading` is what it takes up in its first minute."""
    draw = random.Random("flatness")
    samples = []
    for number in range(int(seconds / 5) + 1):
        passed = 5.0 * number
        memory = resident + growth * passed / RUN - loading * max(0.0, 1 - passed / 60) + draw.gauss(0, noise)
        samples.append(Sample(began + passed, int(memory), round(descriptors + opened * passed / RUN)))
    return Series(name, 1, kind, samples)


def verdict(*series: Series, bounds: Bounds = BOUNDS) -> Verdict:
    return judge("peer", series, RUN, bounds)


def test_the_slope_of_a_line() -> None:
    line = [(float(x), 3.0 * x - 7) for x in range(20)]
    assert theil_sen([line]) == pytest.approx(3.0)
    assert theil_sen([[(x, -y) for x, y in line]]) == pytest.approx(-3.0)


def test_lines_of_different_heights_have_their_common_slope() -> None:
    assert theil_sen([[(x, 2.0 * x + height) for x in range(height, height + 9)] for height in (0, 500, -70)]) == 2.0


def test_a_quarter_of_all_samples_far_off_does_not_move_it() -> None:
    points = [(float(x), 2.0 * x + (1e6 if x % 4 == 0 else 0)) for x in range(100)]
    assert theil_sen([points]) == pytest.approx(2.0)


def test_without_two_times_there_is_no_slope() -> None:
    assert theil_sen([]) == theil_sen([[(1.0, 5.0)]]) == theil_sen([[(1.0, 5.0), (1.0, 9.0)]]) == 0.0


def test_what_stays_is_flat() -> None:
    judged = verdict(watched(noise=5 * MB))
    assert judged.problem == ""
    assert judged.resident == pytest.approx(400 * MB, rel=0.01)
    assert abs(judged.resident_growth) < 2 * MB
    assert (judged.descriptors, judged.descriptor_growth) == (60, 0)


def test_memory_that_grows_is_found() -> None:
    judged = verdict(watched(growth=30 * MB, noise=5 * MB))
    assert judged.problem == "memory grows"
    assert judged.resident_growth == pytest.approx(30 * MB, rel=0.1)


@pytest.mark.parametrize(
    ("resident", "growth", "problem"),
    [
        (50 * MB, 14 * MB, ""),
        (50 * MB, 16 * MB, "memory grows"),
        (1000 * MB, 48 * MB, ""),
        (1000 * MB, 54 * MB, "memory grows"),
    ],
)
def test_bytes_bound_small_processes_and_a_share_large_ones(resident: int, growth: int, problem: str) -> None:
    assert verdict(watched(resident, growth)).problem == problem


def test_descriptors_that_grow_are_found() -> None:
    assert verdict(watched(opened=8)).problem == ""
    assert verdict(watched(opened=14)).problem == "descriptors grow"
    assert verdict(watched(opened=14, growth=60 * MB)).problem == "memory grows and descriptors grow"


def test_bursts_shorter_than_a_window_hide_no_growth_and_are_none() -> None:
    """Every second 40 streams come, and go in the next."""

    def bursting(opened: float) -> Series:
        samples = [Sample(float(at), 400 * MB, 60 + 40 * (at % 2) + round(opened * at / RUN)) for at in range(1801)]
        return Series("peer-0", 1, "peer", samples)

    assert abs(verdict(bursting(0)).descriptor_growth) < 1
    assert verdict(bursting(12)).descriptor_growth == pytest.approx(12, rel=0.1)


def test_what_is_given_back_is_no_growth() -> None:
    assert verdict(watched(growth=-100 * MB, opened=-20)).problem == ""


def test_what_it_takes_to_begin_does_not_count() -> None:
    series = watched(loading=300 * MB, seconds=600)
    assert verdict(series).problem == ""
    short = replace(series, samples=series.samples[:36])
    assert verdict(short, bounds=Bounds(warm_up=0, least=60)).problem == "memory grows"


def test_a_process_that_was_seen_for_part_of_the_run_is_judged_by_the_whole() -> None:
    judged = verdict(watched(growth=30 * MB, seconds=600, began=900))
    assert judged.seconds == 300
    assert judged.resident_growth == pytest.approx(30 * MB, rel=0.01)
    assert judged.problem == "memory grows"


def test_a_leak_of_all_is_found_though_none_lives_long_and_one_of_them_shrinks() -> None:
    """Each of them by itself would be lost in what it happens to do."""
    leaking = [watched(growth=40 * MB, opened=20, seconds=660, began=100 * n, noise=5 * MB) for n in range(8)]
    assert verdict(*leaking, watched(growth=-200 * MB, opened=-40, seconds=660)).problem == (
        "memory grows and descriptors grow"
    )


def test_one_that_moved_among_many_is_no_leak() -> None:
    steady = [watched(seconds=660, began=100 * n) for n in range(8)]
    assert verdict(*steady, watched(growth=200 * MB, opened=40, seconds=660)).problem == ""


def test_kinds_are_judged_apart_and_who_lived_long_alone_too() -> None:
    seen = [
        watched(growth=40 * MB, name="peer-0"),
        *(watched(seconds=660, name=f"peer-{number}") for number in range(1, 12)),
        watched(opened=40, seconds=900, name="coordinator", kind="trainer"),
        watched(growth=1000 * MB, seconds=595, name="peer-9 p2pd", kind="peer p2pd"),
        Series("peer-9", 1, "standby"),
    ]
    found = {verdict.name: (verdict.processes, verdict.problem) for verdict in verdicts(seen, RUN, BOUNDS)}
    assert found == {
        "peer": (12, "memory grows"),
        "peer-0 alone": (1, "memory grows"),
        "trainer": (1, "descriptors grow"),
    }
