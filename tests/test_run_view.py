"""What people are shown: the sentence, what is needed, what waits for whom, shares, credit, bytes saved."""

from typing import Any

import pytest
from swarm_peer.swarm import events
from swarm_peer.swarm.events import Event
from swarm_peer.swarm.run_state import RunState
from swarm_peer.swarm.run_view import view

from tests.watched_run import LISTENING, OPENED, beginning, pulse, stepped, told


def shown(*story: Event) -> dict[str, Any]:
    return view(told(*story).state)


NARROWEST = "step 1 of 10, stage 1 is the narrowest: 2 replicas, queue 2"
TOO_FEW = "step 1 of 10, waiting for peers: stage 0 has 0 of 2, stage 1 has 0 of 2, stage 2 has 0 of 2"
LOST = events.Lost(2, "peer2", 1, 1, "gone", 9.0)
STANDING_BY = "standing by: another coordinator leads, in term 2; step 1 is the next"


@pytest.mark.parametrize(
    ("more", "phase", "sentence"),
    [
        ((), "training", NARROWEST),
        ((events.Paused(),), "paused", "step 1 of 10, paused by the organizer"),
        ((events.Paused(), events.Resumed()), "training", NARROWEST),
        ((LOST,), "training", "step 1 of 10, stage 1 is the narrowest: one replica, queue 1"),
        ((events.Waiting(1),), "waiting", "step 1 of 10, waiting for stage 1: it has no replica left"),
        ((events.Concluded(""),), "finished", "all 10 steps are done, lost 0, duplicated 0"),
        ((events.Concluded("no peer came"),), "stopped", "it cannot go on: no peer came"),
        ((events.Follows("peer9", 2),), "standby", STANDING_BY),
        ((events.Leads(2),), "gathering", TOO_FEW),
    ],
)
def test_the_run_in_one_sentence(more: tuple[Event, ...], phase: str, sentence: str) -> None:
    document = shown(*beginning(), *more)
    assert (document["phase"], document["sentence"]) == (phase, sentence)


def test_nothing_is_known_before_the_first_event() -> None:
    document = view(RunState())
    assert document["sentence"] == "nothing is known of this run yet"
    assert (document["stages"], document["needs"], document["progress"]["loss"]) == ({}, None, None)


def test_a_waiting_run_goes_on_when_the_stage_has_a_replica_again() -> None:
    lost = (events.Lost(2, "peer2", 1, 1, "gone", 9.0), events.Lost(5, "peer5", 1, 1, "gone", 9.1), events.Waiting(1))
    back = (events.Joined(7, "peer2", 1), events.Ready(7, "peer2", 1))
    assert shown(*beginning(), *lost)["phase"] == "waiting"
    assert shown(*beginning(), *lost, *back)["phase"] == "training"


def test_the_slowest_stage_is_the_bottleneck_and_what_is_needed() -> None:
    document = shown(*beginning())
    assert [stage["rate"] for stage in document["stages"].values()] == pytest.approx([20.0, 10.0, 20.0])
    assert [stage["is_slowest"] for stage in document["stages"].values()] == [False, True, False]
    need = document["needs"]
    assert (need["stage"], need["replicas"], need["memory"]) == (1, 2, 2 * 10**9)
    assert need["speed_up"] == pytest.approx(1.5)  # a third replica of 5 visits a second
    assert need["bandwidth"] == pytest.approx(8 * 2 * 200 / 0.2)
    assert need["command"] == LISTENING.join + " --stage 1"
    # By compute alone: the slowest stage's 10 visits a second, of 100 tokens each.
    assert document["progress"]["ideal_tokens_per_second"] == pytest.approx(1000.0)


def test_before_the_beginning_the_emptiest_stage_is_what_is_needed() -> None:
    document = shown(OPENED, LISTENING, events.Joined(1, "peer1", 0), events.Ready(1, "peer1", 0))
    assert (document["needs"]["stage"], document["needs"]["speed_up"]) == (1, None)
    assert "too few" in document["needs"]["why"]


def test_credit_is_what_was_counted_times_what_the_stage_costs() -> None:
    document = shown(*beginning())
    assert [document["peers"][f"peer{number}"]["counted"] for number in range(1, 7)] == [2, 3, 2, 2, 1, 2]
    assert [document["peers"][f"peer{number}"]["credit"] for number in (1, 2, 3)] == [1.5, 2.25, 3.0]
    assert [document["members"][str(number)]["share"] for number in (2, 5)] == [0.75, 0.25]


def test_credit_stays_when_a_peer_comes_again_and_a_step_counts_once() -> None:
    again = events.Settled(0, ((1, 2),), 4, 0, 0, 0, 0)
    recalled = events.Recalled(0, 4.0, 0.5, 400, 2.0, 4, 0, 0, 0, 0)
    document = shown(*beginning(), again, recalled, events.Joined(7, "peer1", 2, name="box 1"))
    assert document["peers"]["peer1"]["counted"] == 2
    assert document["peers"]["peer1"]["stage"] == 2
    assert (document["ledger"]["steps"], document["ledger"]["microbatches"]) == (1, 4)


def test_what_another_trainer_did_is_recalled_once() -> None:
    recalled = [events.Recalled(step, 4.0 - step, 0.5, 400, 2.0, 4, 0, 0, 1, 0) for step in range(3)]
    document = shown(OPENED, *recalled, *recalled)
    assert sorted(document["steps"]) == ["0", "1", "2"]
    assert (document["ledger"]["microbatches"], document["ledger"]["reissued"]) == (12, 3)


def test_what_a_peer_waits_for_and_for_whom() -> None:
    def of(number: int, **said: Any) -> str:
        news = events.Pulse((pulse(number, **said),), (), 0, 0, 1, 0)
        waits: str = shown(*beginning(), news)["members"][str(number)]["waits"]
        return waits

    assert of(2, open=2, below=2) == "waits for box 3 of stage 2 with 2 visits"
    assert of(2, open=0, below=0) == "waits for microbatches from stage 0"
    assert of(1, open=0, below=0) == "waits for microbatches"
    assert of(1, open=2, below=1) == ""
    joined = shown(*beginning(), events.Joined(7, "peer7", 1))
    assert joined["members"]["7"]["waits"] == "loads its stage, or fetches the state of another replica"
    leaving = shown(*beginning(), events.Draining(2, "peer2", "bed time"))
    assert leaving["members"]["2"]["waits"].startswith("leaves (bed time)")
    behind = shown(*beginning(), stepped(1), stepped(2), events.Pulse((pulse(2, version=1),), (), 3, 0, 1, 0))
    assert behind["members"]["2"]["waits"] == "catches up: 2 versions behind"


def test_a_fault_tells_how_it_was_found_and_what_it_cost() -> None:
    lost = events.Lost(2, "peer2", 1, 1, "its control stream ended", 50.0, silent=0.3, rerun=2)
    document = shown(*beginning(), lost, events.Rerouted(2, "peer2", 1, 0, 50.75))
    fault = document["faults"]["2"]
    assert (fault["name"], fault["stage"], fault["at_step"]) == ("box 2", 1, 1)
    assert (fault["silent"], fault["rerun"], fault["rerouted"]) == (0.3, 2, 0.75)
    assert document["peers"]["peer2"]["losses"] == document["ledger"]["faults"] == 1
    assert document["notes"][str(document["sequence"])]["text"] == "microbatch 0 of step 1 is done without box 2"


def test_who_leaves_or_never_took_part_is_no_fault() -> None:
    left = events.Left(2, "peer2", 1, "bed time")
    never = (events.Joined(7, "peer7", 1), events.Lost(7, "peer7", 1, 1, "out of memory", 50.0))
    document = shown(*beginning(), left, *never)
    assert document["faults"] == {}
    assert (document["peers"]["peer2"]["state"], document["peers"]["peer2"]["why"]) == ("gone", "bed time")


def test_bytes_that_compression_saves() -> None:
    wire = shown(*beginning())["wire"]
    assert (wire["activation_bytes"], wire["gradient_bytes"]) == (6000, 12000)
    assert wire["saved_bytes"] == 6000 * 3 + 12000 * 1


def test_bytes_of_a_process_with_a_new_place_count_once_and_those_of_a_new_one_add_up() -> None:
    again = (events.Joined(7, "peer1", 0), events.Pulse((pulse(7)._replace(activation_bytes=1500),), (), 0, 0, 1, 0))
    assert shown(*beginning(), *again)["wire"]["activation_bytes"] == 5 * 1000 + 1500
    anew = (events.Joined(7, "peer1", 0), events.Pulse((pulse(7)._replace(activation_bytes=10),), (), 0, 0, 1, 0))
    assert shown(*beginning(), *anew)["wire"]["activation_bytes"] == 6 * 1000 + 10


def test_links_end_with_the_peer_that_measured_them() -> None:
    document = shown(*beginning())
    assert document["links"]["peer2 peer3"] == {
        "near": "peer2", "far": "peer3", "round_trip": 0.05, "rate": 200 * 10**6, "relayed": False,
    }  # fmt: skip
    assert shown(*beginning(), events.Left(2, "peer2", 1, "bed time"))["links"] == {}


def test_the_banned_are_known() -> None:
    document = shown(*beginning(), events.Banned("peer2", "it lies"), events.Banned("stranger", ""))
    assert document["peers"]["peer2"]["banned"] == "it lies"
    assert document["peers"]["stranger"]["banned"] == "by the organizer"


def test_shares_follow_the_latest_steps_without_jumping() -> None:
    def share(*more: Event) -> float:
        found: float = shown(*beginning(), *more)["members"]["1"]["share"]
        return found

    assert share() == pytest.approx(0.5)
    elsewhere = events.Settled(1, ((4, 4),), 4, 0, 0, 0, 0)
    assert 0.1 < share(stepped(1), elsewhere) < 0.5
    gone = events.Left(4, "peer4", 0, "bed time")
    assert share(stepped(1), elsewhere, gone) == pytest.approx(1.0)


def test_notes_say_whose_they_are_and_downloads_have_the_numbers_that_they_are_asked_for_by() -> None:
    first = events.Kept("adapter", 1, "/a", (("a", 1, "0" * 64),))
    second = events.Kept("checkpoint", 2, "/b", (("b", 1, "0" * 64),))
    document = shown(*beginning(), first, second, first)
    ready = next(note for note in document["notes"].values() if note["kind"] == "ready")
    assert (ready["peer"], ready["text"]) == ("peer1", "box 1 is ready at stage 0")
    assert {number: kept["what"] for number, kept in document["kept"].items()} == {"0": "checkpoint", "1": "adapter"}
