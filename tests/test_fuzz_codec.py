"""Mutated messages: a part of what `tests/fuzz_codec.py` does."""

import shutil

import pytest
from swarm_peer.kernels import engine

from tests.fuzz_codec import fuzz, sanitized


def test_mutated_messages_are_refused_or_decoded_within_the_limits() -> None:
    outcomes = fuzz(20_000, seed=1)
    assert outcomes["CodecError"] > 10_000
    assert outcomes["decoded"] > 500, "some come through, or the kernels would not be reached"


needs_a_compiler = pytest.mark.skipif(
    engine.native() is None or shutil.which("g++") is None,
    reason="there is nothing to sanitize, or nothing to build with",
)


@needs_a_compiler
@pytest.mark.slow
def test_a_million_mutated_messages_touch_no_memory_that_is_not_theirs() -> None:
    assert "1000000 mutants" in sanitized(1_000_000, seed=3)
