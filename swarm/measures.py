"""What a held-out loss means, in the units that people compare models by. Pure."""

import math
from collections.abc import Mapping


def measures(version: int, loss: float, tokens: int, text_bytes: int) -> dict[str, float | int]:
    """What a held-out loss (nats a label token) means: also as perplexity, and in bits a byte of the text, which models
    with other tokenizers can be compared by."""
    bits = loss * tokens / math.log(2) / text_bytes if text_bytes else math.nan
    perplexity = math.exp(loss)
    return {"version": version, "loss": loss, "perplexity": perplexity, "bits_per_byte": bits, "tokens": tokens}


def measures_line(found: Mapping[str, float | int]) -> str:
    """The same for people."""
    return (
        f"version {found['version']}: held-out loss {found['loss']:.4f} nats a token, perplexity "
        f"{found['perplexity']:.3f}, {found['bits_per_byte']:.4f} bits a byte ({found['tokens']} tokens)"
    )
