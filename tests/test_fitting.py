"""Budgets, what fits, and what a machine that is too small is told."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peer.errors import FittingError, UsageError
from swarm_peer.swarm.advice import LEAST_SLOTS, checked
from swarm_peer.swarm.budget import CUDA_BYTES, HEAP_LOSS, PROCESS_BYTES, Budget, budget, budget_lines, open_steps
from swarm_peer.swarm.fitting import choose, choose_each, pace_of
from swarm_peer.swarm.machine import (
    AS_IT_IS,
    GB,
    MBIT,
    Device,
    Link,
    Machine,
    Overrides,
    overridden,
    parse_bandwidth,
    parse_memory,
)
from swarm_peer.swarm.manifest import Manifest
from swarm_peer.swarm.sizes import gradient_bytes
from swarm_peer.swarm.work import backward_flops, forward_flops, pace

from tests.shapes import MID, of_65b, shaped_manifest

CPU = Device("cpu", None, 1e11)
MANY = shaped_manifest(MID.model_copy(update={"num_hidden_layers": 12}), stages=12, base="nf4", length=256)


def machine(ram: float, *devices: Device) -> Machine:
    return Machine(int(ram), devices or (CPU,))


def gpu(memory: float, number: int = 0, flops: float = 4e13) -> Device:
    return Device(f"cuda:{number}", int(memory), flops)


def needed(found: Budget) -> int:
    """Bytes of RAM on a CPU."""
    return found.against(machine(0), CPU)[0][1]


# ---- budgets


def test_a_budget_is_the_sum_of_its_lines_by_place_and_time() -> None:
    found = budget(MANY, range(3, 5), slots=8, recompute=False)
    running = sum(line.bytes for line in found.lines if line.time != "loading")
    assert found.total == pytest.approx(running * 1.05, rel=1e-6)
    assert found.on("device") + found.on("host") == pytest.approx(found.total, rel=1e-6)
    assert found.line("process (torch, hivemind, libp2p)") == PROCESS_BYTES
    assert found.line("base weights") == 2 * budget(MANY, range(3, 4), slots=8, recompute=False).line("base weights")


def test_a_cpus_allocator_loses_memory_that_a_gpus_does_not() -> None:
    found = budget(MANY, range(1), slots=8, recompute=False)
    visits = found.line("the visit that computes") + found.line("visits that wait below")
    assert needed(found) - found.total == pytest.approx(HEAP_LOSS * visits, rel=1e-6)
    assert found.against(machine(0, gpu(0)), gpu(0))[0][1] == found.on("device") + CUDA_BYTES


@pytest.mark.parametrize("staleness", [0, 1])
def test_versions_that_are_live(staleness: int) -> None:
    run = shaped_manifest(MID, staleness=staleness)
    assert open_steps(run) == staleness + 2
    held = budget(run, range(1), slots=8, recompute=False)
    assert (
        held.line(f"trained state, {staleness + 2} versions")
        == (staleness + 2) * held.line("a newcomer's snapshot") // 2
    )


def test_computing_again_keeps_inputs_in_place_of_graphs() -> None:
    kept, again = (budget(MANY, range(4, 5), slots=5, recompute=choice) for choice in (False, True))
    waiting = "visits that wait below"
    assert again.line(waiting) == 4 * 4 * 512 * 512
    assert kept.line(waiting) > 10 * again.line(waiting)
    assert kept.line("the visit that computes") == again.line("the visit that computes")


def test_limits_bound_what_is_kept() -> None:
    run = of_65b()
    found = budget(run, range(5, 6), slots=8, recompute=False)
    assert found.line("coded tensors kept for others") == run.settings.limits.visit_bytes
    assert found.line("gradients kept apart") == run.settings.limits.gradient_bytes


def test_beyond_the_limit_gradients_are_a_sum_a_step() -> None:
    """A full gradient of 32 MB, of 3 open steps with 64 microbatches each, within 1 GiB or within 1 byte."""
    run = shaped_manifest(MID, mode="full", batch=64, microbatch=1)
    limits = run.settings.limits.model_copy(update={"gradient_bytes": 1})
    tight = run.model_copy(update={"settings": run.settings.model_copy(update={"limits": limits})})
    gradient = gradient_bytes(run, 1)
    name = "gradients kept apart"
    assert budget(run, range(1, 2), slots=8, recompute=False).line(name) == 1 << 30
    assert budget(tight, range(1, 2), slots=8, recompute=False).line(name) == 4 * gradient


def test_a_budget_for_people() -> None:
    found = budget(MANY, range(1), slots=8, recompute=False)
    enough, too_little = machine(needed(found)), machine(needed(found) - 2_000_000)
    assert found.fits(enough, CPU)
    assert not found.fits(too_little, CPU)
    assert budget_lines(found, enough, CPU)[-1].endswith("fits")
    lines = budget_lines(found, too_little, CPU, ["less would do"])
    assert "too much by 2.00 MB" in lines[-2]
    assert lines[-1].strip() == "less would do"
    assert sum("base weights" in line for line in lines) == 1


def test_a_gpu_needs_both_memories() -> None:
    found = budget(MANY, range(1), slots=8, recompute=False)
    assert found.fits(machine(2 * GB, gpu(24 * GB)), gpu(24 * GB))
    assert not found.fits(machine(0.1 * GB, gpu(24 * GB)), gpu(24 * GB))
    assert not found.fits(machine(64 * GB, gpu(0.5 * GB)), gpu(0.5 * GB))


# ---- work


def test_65b_work_and_traffic() -> None:
    """DESIGN's seconds of compute (0.67 forward, 1.34 back with the forward pass again, at 40 TFLOP/s) are those of
    eight layers: 10 stages. Four layers take half."""
    run, link = of_65b(10), Link(200 * MBIT, 200 * MBIT)
    assert forward_flops(run, range(5, 6)) / 4e13 == pytest.approx(0.67, rel=0.02)
    assert backward_flops(run, range(5, 6), recompute=True) / 4e13 == pytest.approx(1.34, rel=0.02)
    found = pace(run, range(5, 6), 4e13, link, recompute=True)
    assert found.up == found.down == pytest.approx(1.35, rel=0.01)
    assert (found.limit, found.seconds) == ("compute", found.compute)
    four = pace(of_65b(20), range(5, 6), 4e13, link, recompute=True)
    assert four.compute == pytest.approx(found.compute / 2, rel=0.01)
    assert four.limit in ("uplink", "downlink")


def test_full_training_computes_the_weights_gradients_too() -> None:
    frozen, whole = shaped_manifest(MID), shaped_manifest(MID, mode="full")
    for run, passes in ((frozen, 1), (whole, 2)):
        ratio = backward_flops(run, range(1), recompute=False) / forward_flops(run, range(1))
        assert ratio == pytest.approx(passes)


# ---- what fits


def stages_that_fit(run: Manifest, here: Machine, said: Overrides = AS_IT_IS) -> int:
    try:
        return len(choose(run, here, [0] * run.stages, said).stages)
    except FittingError:
        return 0


@settings(max_examples=60, deadline=None)
@given(ram=st.integers(10**8, 4 * 10**9), more=st.integers(0, 4 * 10**9), on_gpu=st.booleans())
def test_more_memory_never_hosts_fewer_stages(ram: int, more: int, on_gpu: bool) -> None:
    def stages(memory: int) -> int:
        return stages_that_fit(MANY, machine(64 * GB, gpu(memory)) if on_gpu else machine(memory))

    def on_gpu_only(memory: int) -> int:
        return stages_that_fit(MANY, machine(64 * GB, gpu(memory)), Overrides(device="cuda"))

    count = on_gpu_only if on_gpu else stages
    assert count(ram) <= count(ram + more)


@settings(max_examples=60, deadline=None)
@given(ram=st.integers(5 * 10**8, 4 * 10**9))
def test_what_is_chosen_fits_and_the_next_larger_does_not(ram: int) -> None:
    here = machine(ram)
    try:
        choice = choose(MANY, here, [1] * 12)
    except FittingError:
        least = [budget(MANY, range(s, s + 1), slots=LEAST_SLOTS, recompute=True) for s in range(12)]
        assert not any(found.fits(here, CPU) for found in least)
        return
    assert choice.budget.fits(here, CPU)
    if len(choice.stages) < 12 and choice.slots == 8:
        longer = [range(first, first + len(choice.stages) + 1) for first in range(12 - len(choice.stages))]
        assert not any(budget(MANY, s, slots=8, recompute=True).fits(here, CPU) for s in longer)
    if choice.recompute:
        assert not budget(MANY, choice.stages, slots=choice.slots, recompute=False).fits(here, CPU)


def test_the_span_with_the_fewest_replicas_is_taken() -> None:
    three = needed(budget(MANY, range(3, 6), slots=8, recompute=True))
    replicas = [3, 3, 3, 3, 1, 1, 2, 3, 3, 3, 3, 3]
    choice = choose(MANY, machine(three), replicas)
    assert choice.stages == range(4, 7)
    assert choose(MANY, machine(64 * GB), replicas).stages == range(12)


def test_what_the_owner_says_goes() -> None:
    here = machine(64 * GB, gpu(24 * GB), CPU)
    assert choose(MANY, here, [0] * 12).device.name == "cuda:0"
    assert choose(MANY, here, [0] * 12, Overrides(device="cpu")).device.name == "cpu"
    assert len(choose(MANY, here, [0] * 12, Overrides(stages=2)).stages) == 2
    three = (budget(MANY, range(1, 4), slots=8, recompute=True).on("device") + CUDA_BYTES + 1) / 10**6
    assert len(choose(MANY, here, [0] * 12, Overrides(memory=f"{three}MB")).stages) == 3
    assert choose(MANY, replace(here, devices=(CPU,)), [0] * 12, Overrides(memory="2%")).budget.total <= 1.28 * GB
    link = overridden(here, Overrides(bandwidth=(20 * MBIT, 500 * MBIT), threads=3))
    assert (link.link.up, link.link.down, link.cores) == (20 * MBIT, 500 * MBIT, 3)
    with pytest.raises(UsageError, match="cuda:1"):
        choose(MANY, here, [0] * 12, Overrides(device="cuda:1"))
    with pytest.raises(UsageError, match="the run has 12"):
        choose(MANY, here, [0] * 12, Overrides(stages=13))
    least = needed(budget(MANY, range(12), slots=LEAST_SLOTS, recompute=True))
    with pytest.raises(FittingError, match="stages 0 to 11"):
        choose(MANY, machine(least - 1000), [0] * 12, Overrides(stages=12))


# ---- several devices


def test_stages_are_dealt_to_devices_alike_and_none_twice() -> None:
    here = machine(64 * GB, gpu(24 * GB), gpu(24 * GB, 1))
    choices = choose_each(MANY, here, [0] * 12)
    assert [(choice.device.name, choice.stages) for choice in choices] == [
        ("cuda:0", range(6)),
        ("cuda:1", range(6, 12)),
    ]
    assert [len(choice.stages) for choice in choose_each(MANY, here, [0] * 12, Overrides(stages=5))] == [3, 2]
    assert [len(choice.stages) for choice in choose_each(MANY, here, [0] * 12, Overrides(device="cuda:1"))] == [12]


def test_a_small_device_takes_what_it_can_and_another_the_rest() -> None:
    two = budget(MANY, range(1, 3), slots=8, recompute=True).on("device") + CUDA_BYTES + 1
    here = machine(64 * GB, gpu(two), gpu(24 * GB, 1))
    assert [len(choice.stages) for choice in choose_each(MANY, here, [0] * 12)] == [2, 10]
    none = machine(64 * GB, gpu(CUDA_BYTES), gpu(24 * GB, 1))
    assert [choice.device.name for choice in choose_each(MANY, none, [0] * 12)] == ["cuda:1"]
    with pytest.raises(FittingError):
        choose_each(MANY, machine(64 * GB, gpu(CUDA_BYTES)), [0] * 12)


def test_devices_share_ram_and_link() -> None:
    host = budget(MANY, range(12), slots=8, recompute=True).on("host")
    half = machine(PROCESS_BYTES + (host - PROCESS_BYTES) // 2, gpu(24 * GB), gpu(24 * GB, 1))
    choices = choose_each(MANY, half, [0] * 12)
    counts = [len(choice.stages) for choice in choices]
    assert 4 <= sum(counts) < 8
    assert abs(counts[0] - counts[1]) <= 1
    assert sum(choice.budget.ram(choice.device) for choice in choices) <= half.ram + PROCESS_BYTES
    here = machine(64 * GB, gpu(24 * GB), gpu(24 * GB, 1))
    both, one = choose_each(MANY, here, [0] * 12), choose_each(MANY, here, [0] * 12, Overrides(device="cuda:0"))
    assert pace_of(MANY, here, both).up == pace_of(MANY, here, one).up, "nothing crosses the link between them"
    inner = choose_each(MANY, here, [0] * 12, Overrides(stages=4))
    first = pace(MANY, range(4), inner[0].device.flops, here.link, recompute=False)
    assert pace_of(MANY, here, inner).up == pytest.approx(first.up)


# ---- too small


def test_a_machine_that_is_too_small_is_told_by_how_much() -> None:
    with pytest.raises(FittingError) as caught:
        choose(of_65b(base="int8"), machine(2 * GB), [0] * 20)
    said = str(caught.value)
    assert "there are 2.00 GB" in said
    assert "model.base = nf4" in said
    assert "model.stages = 40" in said
    assert "GB of RAM" in said


def test_the_stage_that_came_is_checked() -> None:
    run = of_65b(base="int8")
    with pytest.raises(FittingError) as caught:
        checked(run, range(3, 4), machine(6 * GB), CPU)
    said = str(caught.value)
    assert "stage 3 does not fit" in said
    assert "too much by" in said
    assert "graphs computed again" in said
    kept, lines = checked(run, range(3, 4), machine(640 * GB), CPU)
    assert not kept.recompute
    assert lines[-1].endswith("fits")
    again, lines = checked(run, range(3, 4), machine(30 * GB), CPU)
    assert again.recompute
    assert "graphs computed again" in lines[0]
    with pytest.raises(FittingError, match="stages 3 to 5 do not fit"):
        checked(run, range(3, 6), machine(30 * GB), CPU, range(8, 9))
    fewer, lines = checked(run, range(3, 6), machine(30 * GB), CPU)
    assert LEAST_SLOTS <= fewer.slots < 8
    assert not budget(run, range(3, 6), slots=fewer.slots + 1, recompute=True).fits(machine(30 * GB), CPU)
    assert lines[-1].strip() == "there is no memory for the 8 slots of the run"
    with pytest.raises(FittingError, match="stages 3 to 9 do not fit"):
        checked(run, range(3, 10), machine(30 * GB), CPU)


def test_sizes_as_people_write_them() -> None:
    assert parse_memory("8GB", 0) == parse_memory("8", 0) == parse_memory("8 gb", 0) == 8 * GB
    assert parse_memory("512MB", 0) == 512 * 10**6
    assert parse_memory("1.5GiB", 0) == 3 << 29
    assert parse_memory("80%", 1000) == 800
    assert parse_bandwidth("100") == (100 * MBIT, 100 * MBIT)
    assert parse_bandwidth("20/500") == (20 * MBIT, 500 * MBIT)
    for wrong in ("", "GB", "-1", "101%", "8 apples", "0"):
        with pytest.raises(UsageError, match="memory is"):
            parse_memory(wrong, 1000)
    for wrong in ("", "0", "1/2/3", "fast", "-5", "nan", "inf"):
        with pytest.raises(UsageError, match="bandwidth is"):
            parse_bandwidth(wrong)
