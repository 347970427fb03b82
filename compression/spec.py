"""Which codec a tensor travels in."""

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import CodecError

Name = Literal["fp32", "int8", "dynamic8"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """`block` elements share one scale (8-bit codecs); `fp32` has none and ignores it."""

    name: Name
    block: int = 256

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise CodecError(f"codec {self.name!r} is unknown; wanted one of {', '.join(NAMES)}")
        if not 1 <= self.block <= 1 << 20:
            raise CodecError(f"block is {self.block}; wanted 1 to {1 << 20}")
