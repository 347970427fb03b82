"""Llama-65B in its real shape: three true-size layers behind a server, read by range and quantized by their peers."""

from pathlib import Path

import pytest
from swarm_peer.swarm.budget import PROCESS_BYTES
from swarm_peer.swarm.model.names import block_linears

from benchmarks.llama65b import LAYERS, SHAPE, measure, served, write_checkpoint
from tests.processes import home

BF16_LAYER = 2 * sum(rows * columns for rows, columns in block_linears(SHAPE, 0).values())


@pytest.mark.slow
def test_peers_read_only_their_layers_and_never_hold_one_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "llama")
    with served(tmp_path) as server, home() as place:
        peers, report = measure(place, server, tokens=128, steps=2, batch=2, base="nf4")
    assert len(peers) == LAYERS
    for peer in peers:
        assert peer.due <= peer.served <= 1.001 * peer.due + (1 << 20)
        assert peer.loaded <= PROCESS_BYTES + peer.held + BF16_LAYER
        assert peer.forward > 0
        assert peer.backward > 0
    assert pytest.approx(1.62e9, rel=0.01) == BF16_LAYER
    assert (report["ledger"]["lost"], report["ledger"]["duplicated"]) == (0, 0)
    assert report["ledger"]["microbatches"] == 4
