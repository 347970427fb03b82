"""The flags of demo and reference, and the settings that they mean."""

import argparse

import pytest
from swarm_peer.peer.settings import add_run_flags, settings_of
from swarm_peer.swarm.manifest import Settings


def settings(*flags: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    return settings_of(parser.parse_args(flags))


@pytest.mark.parametrize(
    ("flags", "base"),
    [
        ((), "nf4"),
        (("--base", "int8"), "int8"),
        (("--train", "full"), "auto"),
        (("--model", "tiny"), "auto"),
        (("--model", "tiny", "--train", "lora"), "auto"),
        (("--model", "tiny", "--train", "lora", "--base", "nf4"), "nf4"),
        (("--model", "llama-65b"), "nf4"),
    ],
)
def test_adapters_are_trained_on_a_base_of_four_bits_unless_it_is_said_otherwise(
    flags: tuple[str, ...], base: str
) -> None:
    assert settings(*flags).model.base == base


def test_one_codec_is_for_both_directions() -> None:
    codecs = settings("--codec", "int8+columns").codecs
    assert (codecs.activations, codecs.gradients) == ("int8+columns", "int8+columns")
