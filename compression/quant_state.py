"""What bitsandbytes says of a weight in nf4, beside its codes: JSON, in a tensor of bytes.

It may come from anywhere: nothing of it is reckoned with before it is checked. Errors: `ModelError`.
"""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..errors import ModelError
from ..kernels import blockwise

QUANT_STATE = "quant_state.bitsandbytes__nf4"
"""What is appended to a weight's name for it."""

MOST_BYTES = 4096
_LARGEST = torch.finfo(torch.float32).max
_Size = Annotated[int, Field(ge=1, le=1 << 40)]


class QuantState(BaseModel):
    """`nested_blocksize`: scales that share one, in double quantization; `nested_offset` is added to all of them."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    quant_type: Literal["nf4"]
    shape: tuple[_Size, _Size]
    blocksize: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096]
    nested_blocksize: Literal[64, 128, 256, 512, 1024, 2048, 4096] | None = None
    nested_offset: float = Field(default=0.0, ge=-_LARGEST, le=_LARGEST)

    @property
    def blocks(self) -> int:
        return -(-math.prod(self.shape) // self.blocksize)


def read(state: Mapping[str, Tensor], name: str, shape: tuple[int, int] | None) -> QuantState:
    """Of the weight `name`, with all that lies beside it as it says; of this `shape`, if one is wanted."""
    packed = state.get(f"{name}.{QUANT_STATE}")
    if packed is None or name not in state or f"{name}.absmax" not in state:
        raise ModelError(f"{name}: no nf4 weight of bitsandbytes; it has {sorted(state)[:8]}")
    if packed.dtype != torch.uint8 or packed.ndim != 1 or len(packed) > MOST_BYTES:
        raise ModelError(f"{name}: its quantization state is no list of at most {MOST_BYTES} bytes")
    try:
        told = QuantState.model_validate_json(packed.cpu().numpy().tobytes())
    except ValidationError as error:
        raise ModelError(f"{name}: its quantization state cannot be read: {_first(error)}") from error
    if shape is not None and told.shape != shape:
        raise ModelError(f"{name} is {list(told.shape)}; wanted {list(shape)}")
    _check_sizes(state, name, told)
    levels = state.get(f"{name}.quant_map")
    if levels is not None and levels.tolist() != list(blockwise.NF4_LEVELS):
        raise ModelError(f"{name}: its levels are {levels.tolist()}, which are not those of nf4")
    return told


def _check_sizes(state: Mapping[str, Tensor], name: str, told: QuantState) -> None:
    elements, blocks, nested = math.prod(told.shape), told.blocks, told.nested_blocksize
    codes = state[name]
    if codes.dtype != torch.uint8 or codes.numel() != -(-elements // 2):
        raise ModelError(f"{name}: {codes.numel()} bytes of codes for {list(told.shape)}")
    wanted = {"absmax": (blocks, torch.float32 if nested is None else torch.uint8)}
    if nested is not None:
        wanted |= {"nested_absmax": (-(-blocks // nested), torch.float32), "nested_quant_map": (256, torch.float32)}
    if f"{name}.quant_map" in state:
        wanted["quant_map"] = (16, torch.float32)
    for part, (count, dtype) in wanted.items():
        tensor = state.get(f"{name}.{part}")
        if tensor is None:
            raise ModelError(f"{name}.{part} is missing, and it is wanted by its quantization state")
        if tensor.dtype != dtype or tensor.shape != (count,):
            came = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise ModelError(f"{name}.{part} is {came}; wanted {str(dtype).removeprefix('torch.')} [{count}]")


def packed(shape: tuple[int, int], block: int, nested: int | None, offset: float, dtype: str) -> Tensor:
    """As bitsandbytes writes it. `nested`, `offset`: of the scales, None if each has its own; `dtype`: what the weight
    is to compute in there."""
    told = {"quant_type": "nf4", "shape": shape, "blocksize": block}
    if nested is not None:
        told |= {"nested_blocksize": nested, "nested_offset": offset}
    try:
        QuantState.model_validate(told)
    except ValidationError as error:
        raise ModelError(f"bitsandbytes has no such nf4: {_first(error)}") from error
    content = {**told, "dtype": dtype, **({} if nested is None else {"nested_dtype": "float32"})}
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
