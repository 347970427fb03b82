"""Outlier columns: the few features of which some value is far larger than in the others, split off in 16 bits.

LLM.int8()'s idea (Dettmers et al. 2022, arXiv 2208.07339) for the wire. A column stands out if its largest magnitude is
at least `STANDS_OUT` times the median of all columns': only comparisons, so every machine chooses the same ones.
"""

import struct
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import CodecError

STANDS_OUT = 4.0
SHARE = 16
"""One column in so many may be split off, those that stand out most: more are no outliers."""


def split(rows: Tensor) -> tuple[Tensor, bytes]:
    """float32 [r, c], finite -> (the same with zeros in the outlier columns, the section that holds those)."""
    found = _standing_out(rows)
    if not len(found):
        return rows, struct.pack("<I", 0)
    apart = rows[:, found].to(torch.bfloat16)
    if not bool(torch.isfinite(apart).all()):  # rounded beyond the largest; then nothing is gained by 16 bits
        return rows, struct.pack("<I", 0)
    rest = rows.clone()
    rest[:, found] = 0.0
    numbers = found.tolist()
    values = apart.contiguous().cpu().view(torch.int16).numpy().astype("<i2").tobytes()
    return rest, struct.pack(f"<{1 + len(numbers)}I", len(numbers), *numbers) + values


def _standing_out(rows: Tensor) -> Tensor:
    """The numbers of the columns that stand out, ascending."""
    largest = rows.abs().amax(dim=0)
    room = rows.shape[1] // SHARE
    candidates = (largest >= STANDS_OUT * largest.median()).logical_and(largest > 0).nonzero().view(-1)
    if len(candidates) > room:
        order = torch.sort(largest[candidates], descending=True, stable=True).indices
        candidates = candidates[order[:room]].sort().values
    return candidates


def most_bytes(rows: int, columns: int) -> int:
    """The length of the largest section."""
    return 4 + columns // SHARE * (4 + 2 * rows)


def put_back(rows: Tensor, section: memoryview) -> None:
    """Overwrites the columns of float32 [r, c] that a section holds. Raises `CodecError`."""
    height, width = rows.shape
    if len(section) < 4:
        raise CodecError(f"{len(section)} bytes of outlier columns; at least 4 are due")
    (count,) = struct.unpack_from("<I", section)
    if count > width // SHARE or len(section) != 4 + count * (4 + 2 * height):
        raise CodecError(f"{count} outlier columns of {width} in {len(section)} bytes")
    if not count:
        return
    numbers = struct.unpack_from(f"<{count}I", section, 4)
    if any(left >= right for left, right in pairwise(numbers)) or numbers[-1] >= width:
        raise CodecError(f"outlier columns {numbers[:8]}... are not ascending numbers below {width}")
    values = torch.frombuffer(bytearray(section[4 + 4 * count :]), dtype=torch.bfloat16)
    rows[:, torch.tensor(numbers, device=rows.device)] = values.view(height, count).to(rows.device).float()
