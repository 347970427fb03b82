"""A trainer that gives the checkpoint its epoch begins with, and what it gives to nobody."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from swarm_peer.errors import CheckpointError, RefusedError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.simulations.devices import SimulatedDevice
from swarm_peer.simulations.network import MemoryNetwork
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import restoring
from swarm_peer.swarm.catching_up import fetch_snapshot
from swarm_peer.swarm.checkpoint import Checkpoint, StageCheckpoint
from swarm_peer.swarm.epochs import Lineage
from swarm_peer.swarm.exchange import Meter, Pool
from swarm_peer.swarm.fetching import fetch
from swarm_peer.swarm.heartbeats import Heartbeats
from swarm_peer.swarm.keys import SignedManifest
from swarm_peer.swarm.messages import Body
from swarm_peer.swarm.restoring import Restoring
from swarm_peer.swarm.serving import Incoming, serve_exchanges

RUN, EPOCH = "run", 4
CLOSED, VERSION = 6, 5
TERM, ATTEMPT = 3, 2
STATES = [b"the state of stage 0", b"and that of stage 1"]
PARTS = [[b"a", b"bc"], [b"def"]]
COMMIT = pb.Commit(
    epoch=2, step=CLOSED - 1, crew=[5], choices=[pb.Choice(stage=at, term=TERM, attempt=ATTEMPT) for at in (0, 1)]
)


@dataclass
class World:
    """A trainer with a checkpoint, and somebody who asks. `broken`: the stages that cannot be read."""

    commit: pb.Commit | None = field(default_factory=lambda: COMMIT)
    broken: set[int] = field(default_factory=set)
    reads: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = MemoryNetwork()
        self.pool = Pool(self.network.transport("newcomer"), Meter())
        checkpoint = Checkpoint(
            signed=SignedManifest(b"", b""),
            lineage=Lineage(),
            term=pb.Term(),
            closed=CLOSED,
            version=VERSION,
            digests=[b"digest 0", b"digest 1"],
            commit=self.commit,
            past=[],
            read=self.read,
        )
        self.restoring = Restoring(RUN, EPOCH, checkpoint, SimulatedDevice(random.Random(1)), 1 << 20)

    def read(self, stage: int) -> StageCheckpoint:
        self.reads.append(stage)
        if stage in self.broken:
            raise CheckpointError(f"stage {stage} of the checkpoint cannot be read: its digest is another")
        return StageCheckpoint(STATES[stage], {"stage": PARTS[stage]})

    async def start(self) -> None:
        async def dispatch(incoming: Incoming, body: Body, payload: bytes) -> None:
            if isinstance(body, pb.Watch):
                await Heartbeats(pb.Heartbeat).serve(incoming)
            else:
                assert isinstance(body, pb.Fetch)
                await self.restoring.serve(incoming, body)

        trainer, meter = self.network.transport("trainer"), Meter()
        await trainer.serve(lambda stream: serve_exchanges(stream, meter, lambda: 0, dispatch))


def reduction(**changes: object) -> pb.Fetch:
    """What a newcomer of stage 0 asks for, but for the `changes`."""
    asked = pb.Fetch(
        run=RUN, epoch=EPOCH, kind=pb.Fetch.REDUCTION, step=CLOSED - 1, term=TERM, attempt=ATTEMPT, group="stage"
    )
    asked.MergeFrom(pb.Fetch(**changes))  # type: ignore[arg-type]
    return asked


def state(**changes: object) -> pb.Fetch:
    asked = pb.Fetch(run=RUN, epoch=EPOCH, kind=pb.Fetch.STATE)
    asked.MergeFrom(pb.Fetch(**changes))  # type: ignore[arg-type]
    return asked


def refusal(question: pb.Fetch, world: World | None = None) -> RefusedError:
    """How a question is refused, after which the trainer goes on to give what there is."""
    world = world or World()

    async def main() -> RefusedError:
        await world.start()
        with pytest.raises(RefusedError) as caught:
            await fetch(world.pool, "trainer", question, 1 << 20)
        stage = next(at for at in (0, 1) if at not in world.broken)
        _, data = await fetch(world.pool, "trainer", state(stage=stage), 1 << 20)
        assert data == STATES[stage]
        return caught.value

    return run(main())


@pytest.mark.parametrize(("most", "reads"), [(restoring.MOST_BYTES, [0, 1]), (0, [0, 1, 0])])
def test_it_gives_states_and_reductions_of_every_stage(
    most: int, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "MOST_BYTES", most)
    world = World()

    async def main() -> None:
        await world.start()
        for stage in (0, 1, 0):
            donors = [pb.Member(peer="trainer")]
            found = await fetch_snapshot(world.pool, donors, RUN, stage, 1 << 20, epoch=EPOCH)
            assert (found.version, bytes(found.data)) == (VERSION, STATES[stage])
            for part, expected in enumerate(PARTS[stage]):
                _, data = await fetch(world.pool, "trainer", reduction(stage=stage, part=part), 1 << 20)
                assert data == expected

    run(main())
    assert world.reads == reads, "a stage is read once for all who ask, and again if there was no room for it"


def test_a_stage_that_nobody_asks_for_leaves_memory() -> None:
    world, held = World(), []

    async def main() -> None:
        await world.start()
        for pause in (20.0, 20.0, 40.0, 0.0):
            await fetch(world.pool, "trainer", state(stage=0), 1 << 20)
            held.append(list(world.restoring._held))
            await asyncio.sleep(pause)

    run(main())
    assert world.reads == [0, 0], "it stays for as long as it is asked for, and is read again after that"
    assert held == [[0]] * 4


def test_stages_that_are_restored_at_once_are_read_once() -> None:
    world = World()

    async def main() -> None:
        await world.start()
        questions = [reduction(part=part) for part in (0, 1)] + [reduction(stage=1), state(stage=1), state(stage=0)]
        await asyncio.gather(*(fetch(world.pool, "trainer", question, 1 << 20) for question in questions * 2))

    run(main())
    assert sorted(world.reads) == [0, 1]


@pytest.mark.parametrize(
    "question",
    [
        state(run="another run"),
        state(epoch=EPOCH - 1),
        state(epoch=EPOCH + 1),
        state(stage=2),
        state(version=VERSION + 1),
        state(kind=pb.Fetch.INPUT_GRADIENT),
        reduction(run="another run"),
        reduction(epoch=2),
        reduction(stage=2),
        reduction(step=CLOSED),
        reduction(term=TERM + 1),
        reduction(attempt=ATTEMPT + 1),
        reduction(group="tied"),
        reduction(part=2),
        reduction(stage=1, part=1),
    ],
    ids=lambda question: str(question).replace("\n", " "),
)
def test_what_it_does_not_hold_it_refuses(question: pb.Fetch) -> None:
    assert refusal(question).reason == "NOT_KEPT"


def test_a_checkpoint_without_a_delayed_update_holds_no_reduction() -> None:
    world = World(commit=None)
    assert refusal(reduction(), world).reason == "NOT_KEPT"
    assert world.restoring.commit() is None
    assert not world.restoring.holds(CLOSED - 1)


@pytest.mark.parametrize("question", [state(), reduction()])
def test_a_part_that_cannot_be_read_is_said_and_read_again_when_it_is_asked_for(question: pb.Fetch) -> None:
    world = World(broken={0})
    error = refusal(question, world)
    assert (error.reason, error.detail) == (
        "NOT_READY",
        "stage 0 of the checkpoint cannot be read: its digest is another",
    )
    world = World(broken={0})

    async def main() -> None:
        await world.start()
        with pytest.raises(RefusedError):
            await fetch(world.pool, "trainer", question, 1 << 20)
        world.broken.clear()
        await fetch(world.pool, "trainer", question, 1 << 20)

    run(main())
    assert world.reads == [0, 0]


def test_its_commit_is_one_of_the_new_epoch_and_says_of_nobody_how_many_made_it() -> None:
    """A majority of those who made it may be few of those who go on from it: two halves could both take themselves for
    the greater one."""
    world = World()
    renewed = world.restoring.commit()
    assert renewed is not None
    assert (renewed.epoch, list(renewed.crew)) == (EPOCH, [])
    assert (COMMIT.epoch, list(COMMIT.crew)) == (2, [5])
    assert (renewed.step, list(renewed.choices)) == (COMMIT.step, list(COMMIT.choices))
    assert world.restoring.holds(CLOSED - 1)
