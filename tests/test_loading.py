"""What is shown while weights come: lines now and then where there is no terminal, a bar on one."""

import io

import pytest
from rich.console import Console
from swarm_peer.errors import StoppedError
from swarm_peer.peer.loading import Loading


def test_a_line_every_ten_seconds_without_a_terminal() -> None:
    lines: list[str] = []
    times = iter([0.0, 4.0, 10.0, 12.0, 19.9, 20.0])
    loading = Loading(lines.append, Console(file=io.StringIO()), lambda: next(times))
    for done in range(6):
        loading(done * 10**6, 5 * 10**6)
    assert lines == ["weights: 2 of 5 MB", "weights: 5 of 5 MB"]


def test_a_bar_on_a_terminal() -> None:
    lines: list[str] = []
    file = io.StringIO()
    loading = Loading(lines.append, Console(file=file, force_terminal=True, width=100))
    for done in range(6):
        loading(done * 10**6, 5 * 10**6)
    loading.cancel()
    assert lines == []
    assert "5.0/5.0 MB" in file.getvalue()


def test_cancelling_ends_the_reading_at_its_next_bytes() -> None:
    loading = Loading(lambda line: None, Console(file=io.StringIO()))
    loading(1, 10)
    loading.cancel()
    with pytest.raises(StoppedError, match="cancelled at 2 of 10"):
        loading(2, 10)
