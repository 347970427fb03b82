"""What a stage's members are told of the credits of the open steps."""

from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm.credits import CreditsTold
from swarm_peer.swarm.ledger import Ledger
from swarm_peer.swarm.messages import to_bits


def ledger() -> Ledger:
    """Two open steps; at stage 1 of step 4 member 7 has 5 and 2, and member 8 has 0."""
    made = Ledger(stages=2, microbatches=6)
    for step in (4, 5):
        made.open(step)
    for index, member in ((5, 7), (0, 8), (2, 7)):
        made.credit(4, 1, index, member)
    return made


def test_each_is_told_of_its_own_and_of_all() -> None:
    told = CreditsTold(ledger(), 1.0)
    everyone = to_bits((0, 2, 5))
    assert told.of(1, 7, 3, now=0.0) == [
        pb.Credits(epoch=3, step=4, own=[2, 5], credited=everyone),
        pb.Credits(epoch=3, step=5),
    ]
    assert told.of(1, 8, 3, now=0.0)[0] == pb.Credits(epoch=3, step=4, own=[0], credited=everyone)
    assert told.of(0, 7, 3, now=0.0) == [pb.Credits(epoch=3, step=4), pb.Credits(epoch=3, step=5)]


def test_what_is_told_is_no_older_than_that_and_of_open_steps() -> None:
    books = ledger()
    told = CreditsTold(books, 1.0)
    told.of(1, 8, 0, now=0.0)
    books.credit(4, 1, 3, 8)
    books.lose(7)
    assert list(told.of(1, 8, 0, now=0.9)[0].own) == [0]
    assert told.of(1, 8, 0, now=1.0)[0] == pb.Credits(step=4, own=[0, 3], credited=to_bits((0, 3)))
    books.close(4)
    assert told.of(1, 8, 0, now=1.0) == [pb.Credits(step=5)]
