"""Reading a stage's weights can be cancelled."""

import pytest
from swarm_peer.errors import StoppedError
from swarm_peer.peer.loading import Loading


def test_cancelling_ends_the_reading_at_its_next_bytes() -> None:
    shown: list[tuple[int, int]] = []
    loading = Loading(lambda done, total: shown.append((done, total)))
    loading(1, 10)
    loading.cancel()
    with pytest.raises(StoppedError, match="cancelled at 2 of 10"):
        loading(2, 10)
    assert shown == [(1, 10)]
