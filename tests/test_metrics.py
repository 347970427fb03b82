"""Prometheus' view of a run, and the Grafana board that is made of it."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from swarm_peer.swarm import events
from swarm_peer.swarm.dashboard.metrics import MAX_MEMBERS, metrics_text
from swarm_peer.swarm.run_state import RunState

from tests.watched_run import beginning, told

BOARD = Path(__file__).parent.parent / "docker" / "grafana" / "swarm.json"


def samples(state: RunState) -> dict[str, float]:
    """By name and labels."""
    families = text_string_to_metric_families(metrics_text(state).decode())
    return {
        sample.name + "".join(f"[{sample.labels[key]}]" for key in sorted(sample.labels)): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_run_in_numbers() -> None:
    lost = events.Lost(2, "peer2", 1, 1, "gone", 50.0, silent=0.3, rerun=2)
    found = samples(told(*beginning(), lost, events.Rerouted(2, "peer2", 1, 0, 50.75)).state)
    assert found["swarm_step"] == 1
    assert (found["swarm_loss"], found["swarm_heldout_loss"]) == (4.0, 5.0)
    assert (found["swarm_microbatches_total"], found["swarm_lost_total"], found["swarm_duplicated_total"]) == (4, 0, 0)
    assert found["swarm_faults_total"] == 1
    assert (found["swarm_reroute_seconds_sum"], found["swarm_reroute_seconds_count"]) == (0.75, 1)
    assert (found["swarm_reroute_seconds_bucket[0.5]"], found["swarm_reroute_seconds_bucket[1.0]"]) == (0, 1)
    assert found["swarm_detection_seconds_bucket[0.5]"] == 1
    assert [found[f"swarm_stage_replicas[{stage}]"] for stage in range(3)] == [2, 1, 2]
    assert found["swarm_wire_bytes_total[gradient]"] == 12000
    assert (found["swarm_phase[training]"], found["swarm_phase[paused]"]) == (1, 0)
    assert found["swarm_member_counted_total[peer1][0]"] == 2


def test_before_anything_is_known_there_are_no_false_numbers() -> None:
    found = samples(RunState())
    assert "swarm_loss" not in found
    assert (found["swarm_step"], found["swarm_members"]) == (0, 0)


def test_of_a_large_swarm_members_are_not_listed_one_by_one() -> None:
    many = [events.Joined(number, f"p{number}", 0) for number in range(10, 10 + MAX_MEMBERS)]
    found = samples(told(*beginning(), *many).state)
    assert found["swarm_members"] == MAX_MEMBERS + 6
    assert not [name for name in found if name.startswith("swarm_member_")]


def test_names_that_strangers_choose_are_no_labels() -> None:
    evil = events.Joined(9, "12D3KooWabcdefgh", 0, name='x"} swarm_lost_total 7')
    text = metrics_text(told(*beginning(), evil).state).decode()
    assert "swarm_lost_total 7" not in text
    assert 'peer="abcdefgh"' in text


def test_the_board_shows_only_what_is_measured() -> None:
    lost = events.Lost(2, "peer2", 1, 1, "gone", 50.0, silent=0.3, rerun=2)
    names = {name.split("[")[0] for name in samples(told(*beginning(), lost).state)} | {"swarm_seconds_left"}
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    used: set[str] = set()
    for panel in board["panels"]:
        assert panel["gridPos"].keys() == {"h", "w", "x", "y"}
        for target in panel.get("targets", ()):
            used |= set(re.findall(r"\bswarm_\w+", target["expr"]))
    assert used <= names
    assert len(used) > 15
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
