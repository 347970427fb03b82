"""What a terminal is told of a demo's run."""

import pytest
from swarm_peer.peer.progress import Progress

from tests.tiny import tiny_manifest


def test_tokens_a_second_are_counted_from_step_to_step(capsys: pytest.CaptureFixture[str]) -> None:
    """Steps overlap: each takes 4 s, and one is done every 2 s."""
    progress = Progress(tiny_manifest().settings, 1, iter((10.0, 12.0, 14.0)).__next__)
    for number in range(3):
        step = {"step": number, "loss": 4.0, "grad_norm": 1.0, "tokens": 800, "seconds": 4.0, "replicas": [1, 1]}
        progress.see({"event": "stepped", **step})
    rates = [line.split(" tokens/s")[0].split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert rates == ["200", "400", "400"]
