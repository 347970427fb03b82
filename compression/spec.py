"""Which codec a tensor travels in."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from ..errors import CodecError

Name = Literal["fp32", "int8", "dynamic8", "fp16", "bf16", "nf4", "int4"]
NAMES: tuple[Name, ...] = get_args(Name)
"""By codec id."""

PLAIN = frozenset({"fp32", "fp16", "bf16"})
"""Without blocks and scales."""

LINEAR = frozenset({"int8", "int4"})

MAX_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """A codec and its options. `block` elements share one scale (64 to 4096 are of use); plain formats ignore it.

    `columns`: the outlier columns of the last dimension travel apart, in bfloat16. `rotation`: every block is rotated
    at random first, which spreads outliers over it (int4 and int8; `block` a power of two). `stochastic`: rounded at
    random, right on average (int4 and int8). `entropy`: the codes are Huffman-coded.
    """

    name: Name
    block: int = 256
    columns: bool = False
    rotation: bool = False
    stochastic: bool = False
    entropy: bool = False

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise CodecError(f"codec {self.name!r} is unknown; wanted one of {', '.join(NAMES)}")
        if not 1 <= self.block <= MAX_BLOCK:
            raise CodecError(f"block is {self.block}; wanted 1 to {MAX_BLOCK}")
        if self.name == "nf4" and self.block % 2:
            raise CodecError(f"block is {self.block}; nf4 packs two elements into a byte and wants an even one")
        if (self.rotation or self.stochastic) and self.name not in LINEAR:
            raise CodecError(f"rotation and stochastic rounding are for int8 and int4, not for {self.name}")
        if self.rotation and self.block & (self.block - 1):
            raise CodecError(f"block is {self.block}; a rotated one must be a power of two")
        if (self.columns or self.entropy) and self.name in PLAIN:
            raise CodecError(f"outlier columns and entropy coding are for quantized elements, not for {self.name}")

    @classmethod
    def parse(cls, text: str, block: int = 256) -> "CodecSpec":
        """A spec from its name and options: `int8`, `int8+columns`, `int4+rotation+entropy`. Raises `CodecError`."""
        name, *options = text.split("+")
        wrong = sorted(set(options) - set(OPTIONS))
        if wrong or len(set(options)) < len(options):
            raise CodecError(f"codec {text!r}: options are {', '.join(OPTIONS)}, each once")
        return cls(name, block, **dict.fromkeys(options, True))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return "+".join([self.name, *(option for option in OPTIONS if getattr(self, option))])


OPTIONS = tuple(field.name for field in fields(CodecSpec) if field.name not in ("name", "block"))
