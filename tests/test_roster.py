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


def test_the_narrowest_stage_is_the_one_with_the_fewest_slots() -> None:
    """Who has not said how many it has is taken to have all; nobody has more than the run wants."""
    roster = Roster("run", stages=2)
    assert roster.narrowest(8) == 0
    for version in range(2):
        member(roster, version=version, ready=True, stage=0)
    three = [member(roster, version=version, ready=True, stage=1) for version in range(3)]
    assert roster.narrowest(8) == 16
    for replica, slots in zip(three, (2, 3, 100), strict=True):
        replica.slots = slots
    assert roster.narrowest(8) == 13
    three[2].live = False
    assert roster.narrowest(8) == 5
