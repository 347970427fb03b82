"""Who is enough to begin and to commit: by identity, with a standby."""

import asyncio
from collections.abc import Sequence

import pytest
from swarm_peer.errors import ProtocolError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.authority import Authority
from swarm_peer.swarm.conditions import Signal
from swarm_peer.swarm.crew import Crew, name_in_crew, renews
from swarm_peer.swarm.history import History
from swarm_peer.swarm.messages import MAX_CREW, check_crew
from swarm_peer.swarm.roster import Member, Roster

from tests.exact import exact_manifest


def crew_with(names: Sequence[str], version: int = 0, replicas: int = 1) -> Crew:
    """A crew of a run of three stages with a standby; those named have the version."""
    manifest = exact_manifest(replicas=replicas)
    pipeline = manifest.settings.pipeline.model_copy(update={"standby": True})
    manifest = manifest.model_copy(update={"settings": manifest.settings.model_copy(update={"pipeline": pipeline})})
    roster = Roster(manifest.run_id, manifest.stages)
    for name in names:
        at(version, roster.place(name, (), None, ()))
    return Crew(manifest, roster, History(manifest, {}, ()))


def at(version: int, *who: Member) -> None:
    """These have a version from now on."""
    for member in who:
        member.digests[version] = b""


def members(crew: Crew) -> list[Member]:
    return list(crew.roster.everyone())


def commit_of(step: int, crew: Sequence[str], earlier: Sequence[str] = ()) -> pb.Commit:
    return pb.Commit(step=step, crew=sorted(map(name_in_crew, crew)), earlier_crew=sorted(map(name_in_crew, earlier)))


def test_newcomers_count_when_most_of_those_before_have_applied_their_commit() -> None:
    crew = crew_with("abcdefg", version=1)
    crew.take(commit_of(1, "abcdefg", earlier="abc"))
    assert crew.has_majority()
    assert not crew.is_heard()
    at(2, *members(crew)[3:])
    assert not crew.is_heard()
    for founder in members(crew)[:2]:
        assert not crew.is_heard()
        at(2, founder)
    assert crew.is_heard()


def test_who_has_gone_since_has_heard_it_all_the_same() -> None:
    crew = crew_with("abcdefg", version=2)
    crew.take(commit_of(1, "abcdefg", earlier="abc"))
    for founder in members(crew)[:3]:
        founder.live = False
    assert crew.is_heard()
    assert crew.has_majority()


def test_nobody_is_spared_before_that() -> None:
    crew = crew_with("abcde", version=1)
    crew.take(commit_of(1, "abcde", earlier="abcdefghi"))
    at(2, *members(crew)[:4])
    assert not crew.can_spare(members(crew)[4])
    at(2, members(crew)[4])
    assert all(crew.can_spare(member) for member in members(crew))


def test_a_new_trainer_knows_it_from_the_commit() -> None:
    crew = crew_with("abcdefg", version=1)
    held = pb.Held(commits=[commit_of(1, "abcdefg", earlier="abc"), commit_of(0, "abc")])
    crew.heard(members(crew)[5], held)
    assert not crew.is_heard()
    at(2, *members(crew)[:2])
    assert crew.is_heard()


def reduced_by(step: int, *attempts: int, term: int = 1) -> pb.Commit:
    """A Commit of what was reduced at these attempts, by stage."""
    choices = [pb.Choice(stage=stage, term=term, attempt=attempt) for stage, attempt in enumerate(attempts)]
    return pb.Commit(step=step, choices=choices)


def test_of_a_step_of_which_something_was_reduced_anew_the_last_commit_counts() -> None:
    """Whoever has told of it first: a replica that lags is given nothing by those who have applied the other."""
    first, second, elsewhere = reduced_by(3, 1, 2, 1), reduced_by(3, 1, 3, 1), reduced_by(4, 1, 1, 1)
    later = reduced_by(3, 1, 1, 1, term=2)
    for told in ([first, second, elsewhere], [second, elsewhere, first]):
        crew = crew_with("abc")
        for member, commit in zip(members(crew), told, strict=True):
            crew.heard(member, pb.Held(commits=[commit]))
        assert sorted(crew.commits(), key=lambda commit: commit.step) == [second, elsewhere]
    assert renews(later, second)
    assert not renews(second, second)
    assert not renews(first, second)


def test_the_same_crew_again_waits_for_nobody() -> None:
    crew = crew_with("abc", version=0)
    crew.take(commit_of(4, "abc"))
    assert crew.is_heard()


def test_who_began_an_epoch_is_forgotten_with_it() -> None:
    authority = Authority(exact_manifest(), "a", lambda: 0.0)
    authority.founders = (1, 2, 3)
    authority.enter(2)
    assert authority.founders == ()


@pytest.mark.parametrize("knows", [False, True])
def test_an_epoch_begins_when_everyone_knows_who_began_it(knows: bool) -> None:
    """Also if some were told by a trainer before."""

    async def main() -> list[tuple[str, int]]:
        crew, signal = crew_with("abc"), Signal()
        told: list[tuple[str, int]] = []
        if knows:
            crew.heard(members(crew)[0], pb.Held(founders=sorted(map(name_in_crew, "abc"))))

        async def tell(member: Member, beat: pb.Heartbeat) -> None:
            told.append((member.peer, len(beat.founders)))

        telling = asyncio.ensure_future(crew.tell_founders(tell, signal))
        await asyncio.sleep(1.0)
        for member in members(crew):
            assert not telling.done()
            member.beat = pb.Heartbeat(knows=3)
            signal.notify()
            await asyncio.sleep(0.1)
        await telling
        return told

    assert run(main(), limit=60.0) == [("a", 3), ("b", 3), ("c", 3)]


def test_where_the_run_went_back_those_before_are_told_of() -> None:
    async def main() -> frozenset[int]:
        crew = crew_with("abz")
        crew.last = frozenset(map(name_in_crew, "abc"))

        async def tell(member: Member, beat: pb.Heartbeat) -> None:
            member.beat = pb.Heartbeat(knows=len(beat.founders))

        await crew.tell_founders(tell, Signal())
        return crew.founders

    assert run(main(), limit=60.0) == frozenset(map(name_in_crew, "abc"))


def welcomed_before(names: Sequence[str], told: Sequence[pb.Past] = ()) -> Crew:
    """Peers that another trainer has welcomed, two for each stage."""
    crew = crew_with(names, replicas=2)
    for member in members(crew):
        member.returning = True
        crew.heard(member, pb.Held())
    for past in told:
        crew.history.learn(past)
    return crew


def test_whoever_begins_a_run_after_another_needs_as_many_as_he() -> None:
    """Trainers of four and of five of nine peers could both begin a run that asks for six."""
    crew = welcomed_before("abcdef")
    assert crew.is_complete()
    assert crew.can_spare(members(crew)[0]), "nothing is lost yet"
    for member in members(crew)[:2]:
        member.live = False
    assert {member.stage for member in crew.roster.following()} == set(range(3))
    assert not crew.is_complete()


def test_one_who_knows_with_whom_the_run_began_goes_on_with_most_of_them() -> None:
    crew = welcomed_before("abcdef")
    members(crew)[0].live = False
    crew.heard(members(crew)[1], pb.Held(founders=sorted(map(name_in_crew, "abcdef"))))
    assert crew.is_complete()


def test_strangers_do_not_go_on_with_a_run_that_a_coordinator_knows_has_begun() -> None:
    crew = welcomed_before("abcdef", told=[pb.Past(step=0)])
    assert not crew.is_complete()
    crew.heard(members(crew)[1], pb.Held(founders=sorted(map(name_in_crew, "abcdefghi"))))
    assert crew.is_complete()


@pytest.mark.parametrize(
    ("names", "problem"), [((2, 1), "not ascending"), ((1, 1), "not ascending"), (range(MAX_CREW + 1), "at most")]
)
def test_a_crew_from_the_wire_is_bounded(names: Sequence[int], problem: str) -> None:
    check_crew((), "a peer")
    check_crew(range(MAX_CREW), "a peer")
    with pytest.raises(ProtocolError, match=problem):
        check_crew(names, "a peer")
