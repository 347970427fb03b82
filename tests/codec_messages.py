"""Values to be coded, and coded messages with the checksum that belongs to them."""

import struct
import zlib

import numpy as np
import torch
from swarm_peer.compression import CodecSpec, decode, encode
from swarm_peer.compression.format import CHECKSUM_AT

PLAIN = ("fp32", "fp16", "bf16")
QUANTIZED = ("int8", "dynamic8", "nf4", "int4")
WITH_OPTIONS = (
    "int8+columns",
    "int8+rotation",
    "int8+stochastic",
    "int8+entropy",
    "dynamic8+columns+entropy",
    "nf4+columns+entropy",
    "int4+columns+rotation+stochastic+entropy",
)
NAMES = (*PLAIN, *QUANTIZED)
EVERY = (*NAMES, *WITH_OPTIONS)
HEADER = 32
"""Bytes before the sizes."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def log_normal(*shape: int) -> torch.Tensor:
    generator = np.random.default_rng(1)
    signs = generator.choice([-1.0, 1.0], shape)
    return torch.from_numpy((signs * generator.lognormal(0.0, 3.0, shape)).astype(np.float32))


def round_trip(tensor: torch.Tensor, text: str, block: int = 256) -> torch.Tensor:
    return decode(encode(tensor, CodecSpec.parse(text, block)))


def sealed(coded: bytes | bytearray) -> bytes:
    """With the checksum that belongs to it."""
    message = bytearray(coded)
    message[CHECKSUM_AT : CHECKSUM_AT + 4] = bytes(4)
    message[CHECKSUM_AT : CHECKSUM_AT + 4] = struct.pack("<I", zlib.crc32(message))
    return bytes(message)


def with_payload(coded: bytes, dimensions: int, payload: bytes) -> bytes:
    """`coded` with another payload, of which length and checksum tell."""
    head = bytearray(coded[: HEADER + 4 * dimensions])
    head[20:28] = struct.pack("<Q", len(payload))
    return sealed(head + payload)


def relative_error(back: torch.Tensor, values: torch.Tensor) -> float:
    return ((back - values).norm() / values.norm()).item()


def with_outliers(rows: int = 1024, columns: int = 4096, features: tuple[int, ...] | None = None) -> torch.Tensor:
    """N(0, 1), four features twenty times as large; without `features` far apart."""
    values = normal(rows, columns)
    values[:, list(features or range(0, columns, columns // 4))] *= 20
    return values
