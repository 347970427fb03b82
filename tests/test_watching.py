"""Who may be killed without a stage losing its state, as the coordinators' events tell."""

from typing import Any

from swarm_peer.peer.watching import Watching


def watching(*hosted: tuple[str, int]) -> Watching:
    """A run led by "one", with these peers up to date at their stages."""
    made = Watching()
    made.see({"event": "leads", "by": "one"})
    for peer, stage in hosted:
        say(made, "joined", peer, stage=stage)
        say(made, "ready", peer, stage=stage)
    return made


def say(watch: Watching, event: str, peer: str, by: str = "one", **more: Any) -> bool:
    return watch.see({"event": event, "by": by, "peer": peer, **more})


def test_the_only_replica_may_not_fail() -> None:
    watch = watching(("a", 0), ("b", 0), ("c", 1))
    assert watch.may_fail() == ["a", "b"]
    assert watch.may_fail(down=("b",)) == []
    say(watch, "lost", "a")
    assert watch.may_fail() == []


def test_who_is_not_up_to_date_or_leaves_is_no_other_replica() -> None:
    watch = watching(("a", 0))
    say(watch, "joined", "b", stage=0)
    assert watch.may_fail() == []
    say(watch, "ready", "b")
    assert watch.may_fail() == ["a", "b"]
    say(watch, "draining", "b")
    assert watch.may_fail() == []
    assert watch.stages == {"a": 0, "b": 0}
    say(watch, "left", "b")
    assert watch.stages == {"a": 0}


def test_a_machine_of_several_members_goes_with_all_of_them() -> None:
    """It moves: until it has left stage 0 it hosts two."""
    machine = {"a": "A", "a2": "A", "b": "B", "c": "C"}.__getitem__
    watch = watching(("a", 0), ("b", 0), ("a2", 1))
    assert watch.may_fail(machine=machine) == ["b"]
    say(watch, "joined", "c", stage=1)
    say(watch, "ready", "c")
    assert watch.may_fail(machine=machine) == ["a", "a2", "b", "c"]
    # Two members of one machine at a stage are no two machines.
    assert watching(("a", 0), ("a2", 0)).may_fail(machine=machine) == []


def test_only_who_leads_is_heard_and_a_new_leader_begins_anew() -> None:
    watch = watching(("a", 0), ("b", 0))
    assert not say(watch, "lost", "a", by="two")
    assert watch.may_fail() == ["a", "b"]
    assert watch.see({"event": "leads", "by": "two"})
    assert (watch.leader, watch.may_fail(), watch.stages) == ("two", [], {})


def test_of_two_that_lead_for_a_moment_the_one_that_goes_on_is_heard() -> None:
    """A machine that stood still: the standby takes over, and then the trainer goes back by itself."""
    watch = watching(("a", 0), ("b", 0))
    watch.see({"event": "leads", "by": "two"})
    say(watch, "joined", "a", by="two", stage=1)
    say(watch, "ready", "a", by="two")
    assert watch.see({"event": "leads", "by": "one"})
    assert (watch.leader, watch.stages) == ("one", {})
    say(watch, "joined", "b", by="two", stage=1)
    say(watch, "ready", "b", by="two")
    assert not watch.see({"event": "follows", "by": "one"})
    assert (watch.leader, watch.stages, watch.may_fail()) == ("two", {"a": 1, "b": 1}, ["a", "b"])
    assert say(watch, "lost", "a", by="two")
    assert not say(watch, "lost", "b", by="one")
    assert watch.stages == {"b": 1}


def test_a_killed_leader_that_follows_when_it_comes_again_leads_no_more() -> None:
    watch = watching(("a", 0), ("b", 0))
    watch.see({"event": "leads", "by": "two"})
    assert not watch.see({"event": "follows", "by": "one"})
    watch.see({"event": "leads", "by": "one"})
    assert not watch.see({"event": "follows", "by": "two"})
    assert watch.leader == "one"
