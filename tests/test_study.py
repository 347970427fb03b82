"""Scenarios simulated: conservation, determinism, and what comes of churn."""

import json
from itertools import pairwise

import pytest
from swarm_peer.errors import ConservationError, ScenarioError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.cast import manifest_of
from swarm_peer.simulations.outcome import Outcome
from swarm_peer.simulations.scenario import Scenario, parse_scenario
from swarm_peer.simulations.sized import (
    ELEMENTS,
    GRADIENT,
    OUTPUT,
    SizedBackend,
    SizedState,
    number_of,
    weigher,
    whole_sum,
)
from swarm_peer.simulations.study import Study
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.tcp import WIRE
from swarm_peer.simulations.validation import EQUAL, VISIT
from swarm_peer.swarm.events import Event
from swarm_peer.swarm.host import Moment, StageHost
from swarm_peer.swarm.messages import pack
from swarm_peer.swarm.sizes import reduced_bytes, traffic


def simulated(*changes: str, text: str = EQUAL, seed: int | None = None) -> Outcome:
    return Study(scenario(*changes, text=text), seed).run()


def scenario(*changes: str, text: str = EQUAL) -> Scenario:
    return parse_scenario(text, "a test", changes)


def test_with_staleness_the_bubble_is_gone() -> None:
    outcome = simulated("run.pipeline.staleness=1", "run.train.steps=30")
    assert outcome.step_seconds == pytest.approx(8 * VISIT, rel=0.03)
    assert outcome.kept > 0.95
    assert all(stage.busy > 0.9 for stage in outcome.stages)


def test_the_same_seed_gives_the_same_outcome() -> None:
    changes = ("peers.0.noise=0.2", "peers.0.jitter=20", "peers.0.count=8", "peers.0.stays={mean=40}")
    changes = (*changes, "peers.0.away={mean=10}", "run.train.steps=6")
    first, again, other = (simulated(*changes, seed=seed) for seed in (3, 3, 4))
    assert json.dumps(first.to_json()) == json.dumps(again.to_json())
    assert json.dumps(first.to_json()) != json.dumps(other.to_json())


def test_peers_that_come_and_go_lose_no_microbatch() -> None:
    """`Study` itself raises if any state is not the sum of exactly its microbatches."""
    outcome = simulated(
        "peers.0.count=12",
        'peers.0.stays={mean=60, distribution="weibull", shape=0.7}',
        "peers.0.away={mean=20}",
        "coordinator.checkpoint_every=2",
        "run.pipeline.patience=5",
        "run.train.steps=20",
    )
    assert outcome.finished
    assert outcome.lost > 3
    assert outcome.recoveries


def test_what_befalls_the_swarm_is_carried_out() -> None:
    text = (
        EQUAL
        + """
[[events]]
kind = "kill"
at = 5
seconds = 3
peers = "equal"
share = 0.25

[[events]]
kind = "slow"
at = 12
seconds = 10
peers = "equal"
factor = 0.5

[[events]]
kind = "isolate"
at = 25
seconds = 2
peers = "equal"
share = 0.25

[[events]]
kind = "degrade"
at = 30
seconds = 5
peers = "equal"
latency = 100

[[events]]
kind = "stop"
at = 36
seconds = 1

[[events]]
kind = "lose"
at = 45
seconds = 2
stage = 1
"""
    )
    outcome = simulated("peers.0.count=8", "run.train.steps=30", "coordinator.checkpoint_every=1", text=text)
    assert [(kind, hit) for _, kind, hit in outcome.happened][:5] == [
        ("kill", 2),
        ("slow", 8),
        ("isolate", 2),
        ("degrade", 8),
        ("stop", 1),
    ]
    assert outcome.happened[5][1] == "lose"
    assert outcome.finished
    assert outcome.lost >= 2


def test_what_happens_again_and_again_may_do_so_at_drawn_times() -> None:
    event = 'events=[{ kind = "slow", at = 5, every = [2, 9], seconds = 1, peers = "equal", factor = 0.9 }]'
    first, again, other = (simulated(event, "run.train.steps=20", seed=seed) for seed in (1, 1, 2))
    times = [at for at, _, _ in first.happened]
    between = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] == 5
    assert len(between) > 5
    assert 2 <= min(between) < max(between) - 2 <= 7
    assert first.happened == again.happened != other.happened


def test_what_a_visit_has_sent_takes_as_long_when_it_is_fetched() -> None:
    """Who does a visit again for a peer that was lost fetches its input and gradient from the neighbours."""
    manifest = manifest_of(scenario("run.data.sequence_length=512", 'run.model.name="llama-7b"'), 0)
    inner = traffic(manifest, range(1, 2))
    for sent, size in ((OUTPUT, inner.input), (GRADIENT, inner.input_gradient)):
        weigh = weigher(manifest)()
        header = pack(pb.Fetched(payload=len(sent)))
        assert weigh(header) == len(header)
        assert weigh(pack(pb.Chunk(data=sent))) == pytest.approx(WIRE * size, abs=1)
    weigh = weigher(manifest)()
    weigh(pack(pb.Fetched(payload=ELEMENTS)))
    assert weigh(pack(pb.Chunk(data=bytes(ELEMENTS)))) == pytest.approx(WIRE * reduced_bytes(manifest, 1), rel=0.01)


def test_who_comes_into_a_region_that_is_cut_off_is_cut_off_too() -> None:
    text = EQUAL.replace("[coordinator]", '[coordinator]\nregion = "here"').replace(
        "latency = 0\nnoise", 'region = "here"\nnoise'
    )
    text += """
[[peers]]
name = "far"
count = 2
forward = 0.1
backward = 0.2
region = "there"
joins = [10.8, 12.8]

[[events]]
kind = "part"
at = 10
seconds = 15
region = "there"

[[events]]
kind = "part"
at = 20
seconds = 20
region = "there"
"""
    scenario = parse_scenario(text, "a test", ["run.train.steps=30"])
    joined: list[float] = []

    class Watched(Study):
        def _saw(self, event: Event) -> None:
            super()._saw(event)
            if event.kind == "joined":
                joined.append(self._swarm.now)

    assert Watched(scenario).run().finished
    assert len(joined) == 6
    assert min(joined[4:]) > 40


def test_the_bound_is_that_of_the_devices_as_fast_as_they_are() -> None:
    events = '\n[[events]]\nkind = "slow"\nat = 0.5\npeers = "equal"\nfactor = 0.5\n'
    slow = simulated("run.pipeline.staleness=1", "run.train.steps=30", text=EQUAL + events)
    assert slow.bound == pytest.approx(simulated().bound / 2, rel=0.01)
    assert 0.95 < slow.kept <= 1.02


def test_a_run_that_can_never_begin_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"begins with 4 peers \(4 stages, 1 replicas each\), but 3 ever come"):
        simulated("peers.0.count=3")


def test_who_comes_to_stages_of_their_own_must_leave_none_out() -> None:
    with pytest.raises(ScenarioError, match="4 ever come, 4 of them to stages of their own choice"):
        simulated("peers.0.stage=1")


def test_a_run_that_can_never_go_on_ends_and_says_why() -> None:
    outcome = simulated('peers.0.stays={mean=20, distribution="fixed"}', "run.train.steps=100")
    assert outcome.seconds == 60
    assert outcome.explained == "after 1 min 0 machines are left, nobody else comes, and 4 are needed"
    assert outcome.steps


def test_who_may_not_leave_yet_is_still_there() -> None:
    """The only replica of a stage stays until another one has come, and trains on."""
    leaving = ('peers.0.stays={mean=10, distribution="fixed"}', "peers.0.leaves=true", "minutes=4")
    outcome = simulated(*leaving, "run.train.steps=60", "run.pipeline.staleness=1")
    assert outcome.seconds > 60
    assert len(outcome.steps) > 30
    assert outcome.kept <= 1.02
    assert outcome.losses.absent == pytest.approx(0.0, abs=0.02)


def test_steps_that_are_undone_do_not_count() -> None:
    lose = '\n[[events]]\nkind = "lose"\nat = 20\nseconds = 60\nstage = 1\n'
    changes = ("run.train.steps=20", "coordinator.checkpoint_every=4", "run.pipeline.patience=1")
    outcome = simulated(*changes, text=EQUAL + lose)
    assert outcome.steps_undone > 0
    assert len(outcome.steps) == 20
    assert outcome.losses.repeated > 0


def test_a_run_that_stands_still_says_since_when() -> None:
    """Its only peer of a stage is gone, another machine is still to come, and nobody moves."""
    late = '\n[[peers]]\nname = "late"\nforward = 1\nbackward = 1\njoins = 3000\n'
    brief = EQUAL.replace("count = 4", "count = 3") + EQUAL[EQUAL.index("[[peers]]") :].replace('"equal"', '"brief"')
    brief = brief.replace("count = 4", 'count = 1\nstays = { mean = 20, distribution = "fixed" }')
    outcome = simulated("minutes=10", "run.train.steps=100", text=brief + late)
    assert outcome.explained.startswith("no step was done after 0.")
    assert "have no replica" in outcome.explained


def test_a_run_that_does_not_begin_says_why() -> None:
    outcome = simulated("peers.0.joins=[100, 200]", "minutes=1")
    assert not outcome.finished
    assert outcome.steps == ()
    assert outcome.explained == "stages [0, 1, 2, 3] never had the 1 replicas that the run begins with"


def test_a_state_that_lacks_a_microbatch_is_found() -> None:
    study = Study(scenario("run.train.steps=3"))
    apply = SizedState

    def forget(version: int, value: int) -> SizedState:
        return apply(version, value - (version == 2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swarm_peer.simulations.sized.SizedState", forget)
        with pytest.raises(ConservationError, match=r"at version 2; \d+ is due"):
            study.run()


def test_the_sum_of_a_state_is_that_of_its_microbatches() -> None:
    every = [number_of(step, index, 8) for step in range(5) for index in range(8)]
    assert len(set(every)) == len(every)
    assert whole_sum(5, 8) == sum(every)


def test_stages_that_share_a_tensor_sum_it_together() -> None:
    """Full training of a model with tied embeddings: the first and the last stage."""
    outcome = simulated('run.train.mode="full"', "peers.0.count=8", "run.pipeline.min_replicas=2")
    assert outcome.finished
    assert len(outcome.steps) == 12


def test_what_is_not_trained_has_its_causes() -> None:
    outcome = simulated("peers.0.count=9", "run.pipeline.staleness=1", 'peers.0.stays={mean=40, distribution="fixed"}')
    losses = outcome.losses
    parts = (losses.absent, losses.uneven, losses.repeated, losses.waited, outcome.kept)
    assert sum(parts) == pytest.approx(1.0)
    assert all(part >= -0.01 for part in parts)
    assert losses.uneven > 0.05  # nine peers at four stages


def test_no_more_is_in_flight_than_peers_have_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where peers keep fewer visits open than the run wants, the trainer issues fewer microbatches at once: one that
    finds no slot has come in vain."""
    hosts: dict[str, StageHost] = {}

    class Watched(Study):
        def _watch(self, swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
            super()._watch(swarm, peer, moment)
            host = swarm.peers[peer].host
            assert host is not None
            hosts[peer] = host
            assert host.visits.open <= host.visits.slots == 5

    monkeypatch.setattr(SizedBackend, "slots", 5)
    changes = ("run.pipeline.slots=16", "run.train.batch=24", "run.train.steps=10", "run.pipeline.staleness=1")
    outcome = Watched(scenario(*changes)).run()
    assert outcome.finished
    assert len(hosts) == 4
    busy = sum(host.busy for host in hosts.values())
    assert busy == 0
    assert outcome.kept > 0.9


def test_senders_of_garbage_cost_time_and_no_microbatch() -> None:
    """Whoever gets what nobody can decode asks another replica; the sums that `Study` checks stay whole."""
    groups = '\n[[peers]]\nname = "broken"\nforward = 0.1\nbackward = 0.2\njoins = 1\ngarbage = {}\n'
    few = ("peers.0.count=8", "run.train.steps=10")
    honest = simulated(*few, text=EQUAL + groups.format(0))
    flaky = simulated(*few, text=EQUAL + groups.format(0.3))
    broken = simulated(*few, text=EQUAL + groups.format(1))
    assert flaky.finished
    assert broken.finished
    assert flaky.reissued > honest.reissued
    assert broken.reissued > honest.reissued


def test_hedged_visits_cost_little_where_adapters_are_larger_than_what_may_be_kept_apart() -> None:
    """Replicas that were asked second sum what is credited first: one that must be taken back is still apart. When they
    summed in the order of coming, 574 stage-visits were done again here, and 54 % of the devices were kept."""
    text = """
title = "Large adapters"
minutes = 120

[run.model]
name = "llama-65b"
stages = 4

[run.train]
steps = 3
batch = 128
lora_rank = 8

[run.data]
sequence_length = 2048

[run.pipeline]
min_replicas = 2
slots = 48
rebalance = 0

[coordinator]
latency = 50
up = 200
down = 200

[[peers]]
name = "equal"
count = 8
forward = 0.67
backward = 1.34
up = 200
down = 200
latency = 50
"""
    outcome = simulated(text=text)
    assert outcome.reissued < 100
    assert outcome.kept > 0.85
