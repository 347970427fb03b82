"""JSON merge patches: the difference of two documents, applied to the first, gives the second."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from swarm_peer.swarm.merge_patch import apply, difference

VALUES: Any = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=5)


@given(DOCUMENTS, DOCUMENTS)
def test_the_difference_makes_the_second_of_the_first(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert apply(before, difference(before, after)) == after


@given(DOCUMENTS)
def test_nothing_has_changed(document: dict[str, Any]) -> None:
    assert difference(document, document) == {}


def test_only_what_differs_is_told() -> None:
    before = {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": 3}
    after = {"a": {"x": 1, "y": 5, "z": 0}, "b": [1, 2], "d": 4}
    assert difference(before, after) == {"a": {"y": 5, "z": 0}, "c": None, "d": 4}
