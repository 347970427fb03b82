"""Epochs and checkpoints against a naive model: a run is the list of what was committed in it; going back cuts it."""

from dataclasses import dataclass, field
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm_peer.errors import ProtocolError, TrustError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm.checkpoint import Checkpoint, MemoryCheckpoints
from swarm_peer.swarm.epochs import MAX_EPOCHS, Lineage, begin_epoch, read_lineage
from swarm_peer.swarm.keys import Identity, ProvenTerms, SignedManifest, SignedTerm, delegate, sign_term

from tests.exact import ORGANIZER, TRAINER, exact_manifest

MANIFEST = exact_manifest()
RUN = MANIFEST.run_id
DELEGATION = delegate(ORGANIZER, RUN, TRAINER.public_hex)
STRANGER = Identity.from_seed("stranger")


@cache
def term_of(number: int) -> SignedTerm:
    return sign_term(TRAINER, RUN, number, DELEGATION)


def checkpoint_of(lineage: Lineage, closed: int) -> Checkpoint:
    return Checkpoint(
        signed=SignedManifest(b"", b""),
        lineage=lineage,
        term=pb.Term(),
        closed=closed,
        version=closed,
        digests=[],
        commit=None,
        past=[],
        read=lambda stage: pytest.fail("nobody reads it"),
    )


@dataclass
class Model:
    """`run`: the (epoch, step) that it is made of; `ever`: all that were ever committed; `checkpoints`: each with what
    the run was then."""

    epoch: int = 0
    lineage: Lineage = field(default_factory=Lineage)
    run: list[tuple[int, int]] = field(default_factory=list)
    ever: list[tuple[int, int]] = field(default_factory=list)
    checkpoints: list[tuple[Checkpoint, list[tuple[int, int]]]] = field(default_factory=list)

    def commit(self) -> None:
        self.run.append((self.epoch, len(self.run)))
        self.ever.append(self.run[-1])

    def take_checkpoint(self) -> None:
        """As trainers do: of a step that was closed in their epoch."""
        if self.run and self.run[-1][0] == self.epoch:
            self.checkpoints.append((checkpoint_of(self.lineage, len(self.run)), list(self.run)))

    def go_back(self, first: int, number: int) -> None:
        first = min(first, len(self.run))
        self.epoch += number
        del self.run[first:]
        self.lineage = self.lineage.followed_by(begin_epoch(TRAINER, RUN, term_of(self.epoch), first))


@st.composite
def models(draw: st.DrawFn) -> Model:
    model = Model()
    for _ in range(draw(st.integers(0, 6))):
        for _ in range(draw(st.integers(0, 4))):
            model.commit()
            if draw(st.booleans()):
                model.take_checkpoint()
        model.go_back(draw(st.integers(0, 12)), draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(0, 3))):
        model.commit()
        model.take_checkpoint()
    return model


@given(models())
def test_what_is_part_of_a_run_is_what_going_back_has_left(model: Model) -> None:
    assert [told for told in model.ever if model.lineage.holds(*told)] == sorted(model.run)
    assert model.lineage.number == model.epoch
    assert not model.lineage.holds(model.epoch + 1, 0)


@given(models())
def test_a_checkpoint_is_of_a_run_that_begins_as_it_does(model: Model) -> None:
    for checkpoint, then in model.checkpoints:
        assert checkpoint.is_of(model.lineage) == (model.run[: checkpoint.closed] == then)


@given(models())
def test_the_newest_checkpoint_is_the_furthest_of_those_of_the_run(model: Model) -> None:
    kept = MemoryCheckpoints(1, lambda stage, state: b"", [checkpoint for checkpoint, _ in model.checkpoints])
    fitting = [len(then) for _, then in model.checkpoints if model.run[: len(then)] == then]
    newest = kept.newest(model.lineage)
    assert (0 if newest is None else newest.closed) == max(fitting, default=0)


@given(models())
def test_epochs_are_read_as_they_were_told(model: Model) -> None:
    told = [pb.Epoch.FromString(epoch.SerializeToString()) for epoch in model.lineage.epochs]
    assert read_lineage(told, ProvenTerms(MANIFEST), RUN, "a peer") == model.lineage


def lineage_of(*epochs: tuple[int, int]) -> list[pb.Epoch]:
    return [begin_epoch(TRAINER, RUN, term_of(number), first) for number, first in epochs]


FIELDS = ("first", "signature", "number", "trainer", "delegation", "term signature", "another's", "of another run")


@given(models().filter(lambda model: bool(model.lineage.epochs)), st.data())
def test_no_epoch_can_be_changed_or_invented(model: Model, data: st.DataObject) -> None:
    told = [pb.Epoch.FromString(epoch.SerializeToString()) for epoch in model.lineage.epochs]
    epoch = told[data.draw(st.integers(0, len(told) - 1))]
    changed = data.draw(st.sampled_from(FIELDS))
    if changed == "first":
        epoch.first += 1
    elif changed == "signature":
        epoch.signature = epoch.signature[:-1] + bytes([epoch.signature[-1] ^ 1])
    elif changed == "number":
        epoch.term.number += 1
    elif changed == "trainer":
        epoch.term.trainer = STRANGER.public_hex
    elif changed == "delegation":
        epoch.term.delegation = delegate(STRANGER, RUN, TRAINER.public_hex)
    elif changed == "term signature":
        epoch.term.signature = STRANGER.sign("term", f"{RUN}/{epoch.term.number}".encode())
    elif changed == "another's":
        own = sign_term(STRANGER, RUN, epoch.term.number, delegate(STRANGER, RUN, STRANGER.public_hex))
        epoch.CopyFrom(begin_epoch(STRANGER, RUN, own, epoch.first))
    else:
        epoch.CopyFrom(begin_epoch(TRAINER, "another run", term_of(epoch.term.number), epoch.first))
    with pytest.raises((TrustError, ProtocolError)):
        read_lineage(told, ProvenTerms(MANIFEST), RUN, "a peer")


@pytest.mark.parametrize(
    "epochs",
    [((3, 1), (2, 4)), ((2, 4), (3, 1)), ((2, 4), (3, 4)), ((2, 4), (2, 4))],
    ids=["lower term", "earlier step", "same step", "twice"],
)
def test_epochs_that_do_not_follow_each_other_are_refused(epochs: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ProtocolError, match="do not follow each other"):
        read_lineage(lineage_of(*epochs), ProvenTerms(MANIFEST), RUN, "a peer")


def test_of_very_many_epochs_the_last_are_kept_and_more_are_refused() -> None:
    lineage = Lineage()
    for number in range(1, MAX_EPOCHS + 3):
        lineage = lineage.followed_by(pb.Epoch(term=pb.Term(number=number), first=number))
    assert [lineage.epochs[0].first, lineage.first, len(lineage.epochs)] == [3, MAX_EPOCHS + 2, MAX_EPOCHS]
    told = (*lineage.epochs, pb.Epoch(term=pb.Term(number=MAX_EPOCHS + 3), first=MAX_EPOCHS + 3))
    with pytest.raises(ProtocolError, match=f"tells of {MAX_EPOCHS + 1} epochs"):
        read_lineage(told, ProvenTerms(MANIFEST), RUN, "a peer")
