"""Who is asked for which part, and when."""

import hashlib

import pytest
from swarm_peer.swarm.snapshot_parts import Offer, PartTable


def offer(parts: int) -> tuple[Offer, list[bytes]]:
    data = [bytes([part]) * 10 for part in range(parts)]
    return Offer(1, 10 * parts, tuple(hashlib.sha256(part).digest() for part in data)), data


def test_quick_donors_are_asked_for_more_at_once_and_slow_ones_for_less() -> None:
    made, data = offer(40)
    table = PartTable(made, 4)

    def at_once(donor: str, seconds: float) -> int:
        """How many parts it is asked for at once, all of which come after so long."""
        asked = list(iter(lambda: table.next_for(donor, 0.0), None))
        for part in asked:
            table.arrived(part, donor, data[part], seconds)
            table.ended(part, donor)
        return len(asked)

    assert [at_once("quick", 0.1) for _ in range(4)] == [2, 4, 6, 6]
    assert [at_once("slow", 9.0) for _ in range(3)] == [2, 1, 1]
    assert at_once("slow", 0.1) == 1
    assert at_once("slow", 0.1) == 2
    assert table.arrived_bytes == 10 * 25


@pytest.mark.parametrize(("donors", "asked"), [(1, 6), (2, 4), (3, 2), (8, 1), (50, 1)])
def test_many_donors_are_asked_for_few_parts_each_at_first(donors: int, asked: int) -> None:
    table = PartTable(offer(100)[0], donors)
    assert len(list(iter(lambda: table.next_for("a", 0.0), None))) == asked


def test_at_the_end_what_is_late_is_asked_of_one_more() -> None:
    made, data = offer(3)
    table = PartTable(made, 4)
    assert [table.next_for("a", 0.0), table.next_for("b", 1.0), table.next_for("a", 1.0)] == [0, 1, 2]
    table.arrived(1, "b", data[1], 4.0)  # a part takes 3 s
    table.ended(1, "b")
    assert table.next_for("b", 11.9) is None
    assert table.look_again("b") == 12.0
    assert table.look_again("a") is None
    assert table.next_for("b", 12.0) == 0
    assert table.next_for("c", 12.0) is None  # two are at part 0, and the other is not late yet
    assert table.look_again("c") == 13.0
    assert table.next_for("c", 13.0) == 2
    # The first to bring it counts; the other is of no use, and no harm.
    table.arrived(0, "b", data[0], 14.0)
    table.ended(0, "b")
    table.arrived(0, "a", data[0], 15.0)
    table.ended(0, "a")
    # One of two that were at it fails: the other goes on. Both: it is to be asked for anew.
    table.ended(2, "c")
    assert table.next_for("d", 15.0) is None
    table.ended(2, "a")
    assert table.next_for("d", 15.0) == 2
    table.arrived(2, "d", data[2], 16.0)
    assert table.complete
    assert bytes(table.data) == b"".join(data)
