"""What a trainer knows of its members."""

from swarm_peer.swarm.roster import Member, Roster

STAGE = 1


def member(roster: Roster, *, version: int, ready: bool, stage: int = STAGE) -> Member:
    placed = roster.place(f"peer {version} at {stage}", (), stage)
    placed.digests = {version: b"digest"} if version >= 0 else {}
    placed.ready = ready
    return placed


def test_a_replica_is_overtaken_also_by_one_that_catches_up() -> None:
    """Each of the two may lack what the other alone holds: one of them must go for the other to go on."""
    roster = Roster("run", stages=3)
    behind, ahead = member(roster, version=1, ready=True), member(roster, version=2, ready=False)
    assert roster.is_overtaken(behind)
    assert not roster.is_overtaken(ahead)


def test_nobody_is_overtaken_by_other_stages_the_lost_or_those_who_load() -> None:
    roster = Roster("run", stages=3)
    alone = member(roster, version=1, ready=True)
    member(roster, version=9, ready=True, stage=STAGE + 1)
    member(roster, version=9, ready=True).live = False
    member(roster, version=-1, ready=False)
    assert not roster.is_overtaken(alone)
