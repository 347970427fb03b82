"""Who is in the run, as the trainer knows it: members, their stages, and what each has said of itself.

A member number names one incarnation of a peer and is never given twice. Pure bookkeeping; the streams are
`admission.py`'s.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from ..protos import swarm_pb2 as pb
from .directory import SEQUENCE_BITS, Record
from .manifest import PROTOCOL_VERSION
from .placement import Hosted, place

MEMBERS_PER_TERM = 1 << 16


@dataclass(eq=False)
class Member:
    """One incarnation of a peer. `digests`: of its state, by version; `version`: the newest it has, -1 before it has
    said so. It is `ready`, and takes part, once it has every committed version; before that it catches up. `kept`: the
    reductions (step, term, attempt) that it holds."""

    number: int
    peer: str
    stage: int
    addresses: tuple[str, ...]
    live: bool = True
    ready: bool = False
    took_part: bool = False
    returning: bool = False
    sent_away: str = ""
    leaving: str = ""
    """Why it wants to leave, or is wanted to."""

    draining: bool = False
    """Whether it leaves, and takes no visits of later steps."""

    loaded: bool = False
    """Whether it has its stage but for the state, which nobody gives it."""

    besides: tuple[int, ...] = ()
    """The stages that the same machine hosts as other members."""

    fixed: bool = False
    """Whether its owner wants it at this stage."""

    machine: str = ""
    """The peer id that its machine came with first: it stays the same over moves."""

    since: float = 0.0
    """When it came, by the loop's clock."""

    replaces: int = 0
    """The member of the same machine that leaves when this one is ready; 0 for none."""

    idle_since: float | None = None
    """When it said that nothing is open there any more."""

    kernels: str = ""
    about: pb.About = field(default_factory=pb.About)
    heard: float = 0.0
    """When it was last heard, by the loop's clock."""

    slots: int = 0
    """Visits that it may have open; 0 before it has said so."""

    digests: dict[int, bytes] = field(default_factory=dict)
    beat: pb.Heartbeat = field(default_factory=pb.Heartbeat)
    kept: set[tuple[int, int, int]] = field(default_factory=set)

    @property
    def version(self) -> int:
        return max(self.digests, default=-1)

    def holds(self, step: int, term: int, attempt: int) -> bool:
        """Whether it can give this reduction, the chosen one of `step`: it made it, or has applied it."""
        return self.version > step or (step, term, attempt) in self.kept

    def hosted(self) -> Hosted:
        load = self.beat.load
        seconds = (load.forward + load.backward) / 1e6
        return Hosted(
            member=self.number,
            peer=self.machine,
            rate=1.0 / seconds if seconds else 0.0,
            since=self.since,
            ready=self.ready and not self.draining,
            leaving=bool(self.leaving or self.sent_away),
            besides=self.besides,
        )

    def to_message(self) -> pb.Member:
        return pb.Member(member=self.number, peer=self.peer, addresses=self.addresses)


class Roster:
    """All members that a trainer has admitted, live and lost. `term`: the trainer's; with it no two trainers of a run
    give the same member number."""

    def __init__(self, run_id: str, stages: int, term: int = 1) -> None:
        self.run_id = run_id
        self.stages = stages
        self._base = (term - 1) * MEMBERS_PER_TERM
        self._members: dict[int, Member] = {}
        self._of_stage: list[list[Member]] = [[] for _ in range(stages)]
        """Whoever was ever placed there, by ascending number."""

        self._of_peer: dict[str, list[Member]] = {}
        """All incarnations of a peer."""

    @property
    def admitted(self) -> int:
        """Members so far, live and lost."""
        return len(self._members)

    def place(self, peer: str, addresses: tuple[str, ...], wanted: int | None, besides: Collection[int] = ()) -> Member:
        """A new member: on the wanted stage, else where it raises the run's throughput most (`placement.py`), but not
        `besides`, where there must be other stages."""
        stage = place(self.hosted(), besides) if wanted is None else wanted
        member = Member(self._base + len(self._members) + 1, peer, stage, addresses)
        member.machine, member.besides = peer, tuple(besides)
        self._members[member.number] = member
        self._of_stage[stage].append(member)
        self._of_peer.setdefault(peer, []).append(member)
        return member

    def hosted(self) -> list[list[Hosted]]:
        """The replicas of each stage, as placement and rebalancing see them."""
        stages: list[list[Hosted]] = [[] for _ in range(self.stages)]
        for member in self.live():
            stages[member.stage].append(member.hosted())
        return stages

    def get(self, number: int) -> Member | None:
        return self._members.get(number)

    def by_peer(self, peer: str) -> Member | None:
        """The live member that is this peer."""
        return next((member for member in self._of_peer.get(peer, ()) if member.live), None)

    def live(self, stage: int | None = None) -> list[Member]:
        """Live members (of a stage), by ascending number."""
        members = self._members.values() if stage is None else self._of_stage[stage]
        return [member for member in members if member.live]

    def ready(self, stage: int) -> list[Member]:
        return [member for member in self.live(stage) if member.ready]

    def serving(self, stage: int) -> list[Member]:
        """Those of the ready that take new visits."""
        return [member for member in self.ready(stage) if not member.draining]

    def following(self) -> list[Member]:
        """Live members that have a state of this run: ready, or catching up with the Commits."""
        return [member for member in self.live() if member.version >= 0]

    def is_overtaken(self, member: Member) -> bool:
        """Whether another replica of its stage has gone on. That one need not be ready: it may itself lack what a later
        step was made of and `member` alone holds, and if they cannot reach each other, neither would ever go on."""
        replicas = [other for other in self.following() if other.stage == member.stage]
        return any(other.version > member.version for other in replicas)

    def digest_of(self, stage: int, version: int) -> bytes | None:
        """What the ready replicas of a stage say is the digest of a version; None if none of them says so now."""
        return next((member.digests[version] for member in self.ready(stage) if version in member.digests), None)

    def everyone(self) -> list[Member]:
        return list(self._members.values())

    def is_ready(self, number: int) -> bool:
        """Whether what this member does is credited."""
        member = self._members.get(number)
        return member is not None and member.live and member.ready

    def has_state(self, stage: int, version: int) -> bool:
        """Whether a live replica of a stage has a version, or a later one."""
        return any(member.live and member.version >= version for member in self._of_stage[stage])

    def some_at(self, version: int) -> bool:
        """Whether a ready replica of every stage has a version."""
        return all(any(member.version >= version for member in self.ready(stage)) for stage in range(self.stages))

    def all_at(self, version: int) -> bool:
        """Whether every ready replica has a version."""
        return all(member.version >= version for stage in range(self.stages) for member in self.ready(stage))

    def narrowest(self, wanted: int) -> int:
        """The slots of the stage that has fewest; who has said nothing has as many as `wanted`, and nobody has more."""

        def slots_of(members: list[Member]) -> int:
            here = [one.slots for one in members if one.ready and one.live and not one.draining]
            return sum([min(slots or wanted, wanted) for slots in here])

        return min([slots_of(members) for members in self._of_stage])

    def dissenters(self, stage: int, version: int) -> list[Member]:
        """Live replicas whose digest of `version` is not the one that most replicas have, once all have said theirs.

        Ties go to the digest that the lowest member number has.
        """
        voters = self.ready(stage)
        if any(version not in member.digests for member in voters):
            return []
        votes: dict[bytes, int] = {}
        for member in voters:
            votes[member.digests[version]] = votes.get(member.digests[version], 0) + 1
        if len(votes) < 2:
            return []
        winner = max(votes, key=lambda digest: votes[digest])
        return [member for member in voters if member.digests[version] != winner]

    async def read(self, stage: int) -> tuple[Record, ...]:
        """The records of a stage, as a directory would give them."""
        return self.records(stage)

    def records(self, stage: int) -> tuple[Record, ...]:
        """The replicas of a stage that take visits, in the form of directory records."""
        return tuple(
            Record(
                run=self.run_id,
                stage=stage,
                peer=member.peer,
                addresses=member.addresses,
                sequence=member.number << SEQUENCE_BITS,
                protocol=PROTOCOL_VERSION,
                queue=member.beat.open_visits,
            )
            for member in self.serving(stage)
        )
