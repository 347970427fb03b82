"""Who hosts what in a run that has not begun, as the pure plan has it and as the command prints it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peer.errors import FittingError, UsageError
from swarm_peer.swarm.budget import budget
from swarm_peer.swarm.coordinator_cli import main
from swarm_peer.swarm.fitting import choose
from swarm_peer.swarm.machine import GB, MBIT, Machine
from swarm_peer.swarm.manifest import Manifest
from swarm_peer.swarm.model.folder import model_config
from swarm_peer.swarm.plan_command import parse_peers
from swarm_peer.swarm.planning import Plan, best_stages, plan

from tests.shapes import MID, of_65b, shaped_manifest

SIX = shaped_manifest(MID.model_copy(update={"num_hidden_layers": 6}), stages=6, base="nf4", batch=64, microbatch=1)

TINY_TOML = """
[model]
name = "tiny"
stages = 3
[train]
batch = 32
microbatch = 1
[data]
sequence_length = 64
"""


def peers(*specs: str) -> list[Machine]:
    return [peer for spec in specs for peer in parse_peers(spec)]


def covered(found: Plan, stages: int) -> bool:
    return {stage for hosting in found.hostings for stage in hosting.stages} == set(range(stages))


# ---- what people write


def test_peers_as_people_write_them() -> None:
    two = parse_peers("2x:memory=24GB,gflops=20000,up=100,down=500,rtt=60ms")
    assert len(two) == 2
    assert two[0] == two[1]
    (device,), link = two[0].devices, two[0].link
    assert (two[0].ram, device.flops) == (24 * GB, 2e13)
    assert (link.up, link.down, link.round_trip) == (100 * MBIT, 500 * MBIT, 0.06)
    assert parse_peers("memory=8,gflops=50")[0].link.up == 100 * MBIT
    for wrong in (
        "",
        "8x:",
        "0x:memory=1,gflops=1",
        "99999x:memory=1,gflops=1",
        "memory=24GB",
        "gflops=1",
        "memory=24GB,gflops=x",
        "memory=24GB,gflops=0",
        "memory=80%,gflops=1",
        "memory=1,memory=1,gflops=1",
        "memory=1,gflops=1,colour=red",
        "memory=1,gflops=1,rtt=",
    ):
        with pytest.raises(UsageError):
            parse_peers(wrong)


# ---- placing


def room(run: Manifest, stages: int) -> str:
    """Memory for so many stages with all slots, wherever they are, and for no more."""
    slots = run.settings.pipeline.slots
    spans = [range(first, first + stages) for first in range(run.stages - stages + 1)]
    most = max(budget(run, span, slots=slots, recompute=True).total for span in spans)
    return f"{(most + 1000) / 10**6}MB"


def test_equal_peers_are_spread_evenly() -> None:
    found = plan(SIX, peers(f"18x:memory={room(SIX, 1)},gflops=100"))
    counts = [sum(stage in hosting.stages for hosting in found.hostings) for stage in range(6)]
    assert len(found.hostings) == 18
    assert all(counts[stage] in (2, 3, 4) for stage in range(6))
    assert min(found.rates) > 0.7 * max(found.rates)


def test_slow_peers_are_put_together() -> None:
    """Six fast ones and six of a tenth: no stage is left to a slow one alone."""
    kind = f"memory={room(SIX, 1)},up=1000,down=1000"
    found = plan(SIX, peers(f"6x:gflops=10,{kind}", f"6x:gflops=100,{kind}"))
    fast = {stage for hosting in found.hostings if hosting.peer >= 6 for stage in hosting.stages}
    assert fast == set(range(6))


def test_who_alone_can_hold_a_stage_holds_it() -> None:
    """The last stage of a large vocabulary is larger than the others; only one peer, the fastest, has room for it."""
    shape = MID.model_copy(update={"num_hidden_layers": 3, "vocab_size": 200_000})
    run = shaped_manifest(shape, stages=3, length=256)
    found = plan(run, peers("4x:memory=1.3GB,gflops=10", "memory=20GB,gflops=1000"))
    assert covered(found, 3)
    assert [hosting.peer for hosting in found.hostings if 2 in hosting.stages] == [4]


def most_stages(peer: Machine) -> int:
    """How many stages of `SIX` it has room for, wherever they are: they are all of about one size."""
    try:
        return len(choose(SIX, peer, [0] * SIX.stages).stages)
    except FittingError:
        return 0


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.5, 2, 16]), st.integers(1, 1000), st.sampled_from([5, 100])),
        min_size=1,
        max_size=14,
    )
)
def test_every_plan_covers_the_model_and_fits(kinds: list[tuple[float, int, int]]) -> None:
    here = peers(*(f"memory={memory}GB,gflops={gflops},up={up}" for memory, gflops, up in kinds))
    try:
        found = plan(SIX, here)
    except FittingError:
        assert sum(map(most_stages, here)) < 6
        return
    assert covered(found, 6)
    assert len({hosting.peer for hosting in found.hostings}) == len(found.hostings)
    for hosting in found.hostings:
        assert hosting.budget.fits(here[hosting.peer], here[hosting.peer].devices[0])
    assert found.tokens_per_second <= 64 * min(found.rates) * 1.001
    more = plan(SIX, [*here, *peers("6x:memory=16GB,gflops=1000,up=100")])
    assert more.tokens_per_second >= found.tokens_per_second * 0.9


def test_fewer_peers_than_stages_take_spans() -> None:
    found = plan(SIX, peers(f"2x:memory={room(SIX, 3)},gflops=100"))
    assert sorted((hosting.stages.start, hosting.stages.stop) for hosting in found.hostings) == [(0, 3), (3, 6)]
    kind = f"memory={room(SIX, 5)},up=1000,down=1000"
    uneven = plan(SIX, peers(f"gflops=300,{kind}", f"gflops=60,{kind}"))
    assert [len(hosting.stages) for hosting in uneven.hostings] == [5, 1]


def test_who_has_memory_to_spare_and_little_link_hosts_spans() -> None:
    """Six peers with room for everything: each hosts it all, and nothing crosses a link but token ids."""
    found = plan(SIX, peers("6x:memory=16GB,gflops=1000,up=5,down=5"))
    assert [hosting.stages for hosting in found.hostings] == [range(6)] * 6
    one_each = plan(SIX, peers(f"6x:memory={room(SIX, 1)},gflops=1000,up=5,down=5"))
    assert min(found.rates) > 10 * min(one_each.rates)


# ---- what comes of it


def test_too_little_memory_says_how_many_more_peers_are_needed() -> None:
    with pytest.raises(FittingError, match=r"needs \d+ more peers of >= 9\.\d+ GB"):
        plan(of_65b(), peers("2x:memory=24GB,gflops=20000"))
    with pytest.raises(FittingError, match="smaller stages"):
        plan(of_65b(), peers("40x:memory=2GB,gflops=20000"))


def test_65b_needs_about_sixty_in_flight_a_column() -> None:
    """DESIGN: 20 stages at 100 ms and 1 Gbit/s, 80 % use."""

    def of(slots: int, batch: int) -> Plan:
        run = of_65b(slots=slots, batch=batch)
        return plan(run, peers(f"20x:memory={room(run, 1)},gflops=40000,up=1000,down=1000,rtt=100ms"))

    found = of(100, 256)
    assert found.wanted_in_flight == pytest.approx(60, rel=0.2)
    assert found.in_flight == pytest.approx(80)
    assert found.tokens_per_second == pytest.approx(2048 * min(found.rates) * 0.83, rel=0.03)
    few = of(8, 256)
    assert "pipeline.slots" in few.limit
    assert few.tokens_per_second < 0.45 * found.tokens_per_second
    assert "train.batch" in of(20, 4).limit


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("gflops=400000,up=50,down=500", "uplink of stage"),
        ("gflops=400000,up=500,down=50", "downlink of stage"),
        ("gflops=4000,up=1000,down=1000", "compute of stage 19"),  # the head is work too
    ],
)
def test_what_limits_is_named(kind: str, limit: str) -> None:
    run = of_65b(slots=100, batch=1000)
    assert plan(run, peers(f"20x:memory={room(run, 1)},{kind}")).limit.startswith(limit)


def test_no_overlap_of_steps_costs_a_path_a_step() -> None:
    here = peers("6x:memory=4GB,gflops=100")
    delayed, synchronous = (
        plan(
            shaped_manifest(SIX.shape, stages=6, base="nf4", batch=64, microbatch=1, slots=12, staleness=staleness),
            here,
        )
        for staleness in (1, 0)
    )
    assert synchronous.step_seconds == pytest.approx(delayed.step_seconds + delayed.path_seconds)


def test_the_best_number_of_stages() -> None:
    """Of three peers with room for a third of the layers each, 6 stages make 3 spans of 2, and 2 stages do not fit."""
    here = peers(f"3x:memory={room(SIX, 2)},gflops=1000,up=1000,down=1000")
    stages, found = best_stages(SIX, here)
    assert stages >= 3
    assert found.tokens_per_second >= plan(SIX, here).tokens_per_second
    with pytest.raises(FittingError):
        best_stages(of_65b(), peers("memory=2GB,gflops=1"))


# ---- the command


def test_plan_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TINY_TOML)
    specs = ["3x:memory=2GB,gflops=5,up=20,down=100", "memory=1GB,gflops=1"]
    assert main(["plan", str(path), "--peers", *specs]) == 0
    printed = capsys.readouterr().out
    assert "tokens/s" in printed
    assert "limited by" in printed
    assert printed.splitlines()[1].split()[:2] == ["0-2", "0-5"]
    assert main(["plan", str(path), "--json", "--peers", *specs]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stages"], len(found["stage_rates"]), len(found["hostings"])) == (3, 3, 4)
    assert found["best"]["tokens_per_second"] >= found["tokens_per_second"]


def test_plan_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TINY_TOML)
    assert main(["plan", str(path), "--peers", "fast"]) == 2
    assert "memory, gflops, up, down, rtt" in capsys.readouterr().err
    assert main(["plan", str(path), "--peers", "2x:memory=0.1GB,gflops=5"]) == 1
    assert "needs 3 more peers of >= " in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "none.toml"), "--peers", "memory=1,gflops=1"]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_a_model_that_is_in_nf4_is_planned_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its config.json alone: weights need not be here."""
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = model_config(MID, "bf16") | {"quantization_config": quantization}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    memory = {}
    for base in ("auto", "nf4", "int8"):
        path = tmp_path / f"{base}.toml"
        path.write_text(TINY_TOML.replace('name = "tiny"', f'name = "{tmp_path / "model"}"\nbase = "{base}"'))
        code = main(["plan", str(path), "--json", "--peers", "3x:memory=64GB,gflops=5"])
        said = capsys.readouterr()
        if base == "int8":
            assert code != 0
            assert "wanted nf4 or auto" in said.err
        else:
            assert code == 0, said.err
            memory[base] = [hosting["memory_bytes"] for hosting in json.loads(said.out)["hostings"]]
    assert memory["auto"] == memory["nf4"]
