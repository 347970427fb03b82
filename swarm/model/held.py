"""The frozen base of one stage as it is held: norms and embeddings as tensors, linear layers in the manifest's format.

`hold` makes it of a checkpoint's tensors one by one, so that no more than one of them is there as it came. `HeldStore`
keeps what was made on disk, so that a peer that starts again neither reads nor quantizes: one safetensors file for each
(weights, cut, format), written beside its place and renamed, proven by its digest, the least recently used given up
when there are too many bytes of them.

Errors: `ModelError` for tensors that do not fit; a store that cannot be written or read only costs the time.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...compression.linear import QuantizedLinear, empty, quantized
from ...errors import ModelError
from ..manifest import Manifest
from .checkpoint import Weight
from .names import block_linears, stage_base_shapes

Held: TypeAlias = Mapping[str, Tensor | QuantizedLinear]
"""By the weight's name in Hugging Face's layout."""

QUANTIZED = ("nf4", "int8")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

DEFAULT_STORE_BYTES = 50 << 30


def hold(manifest: Manifest, stage: int, base: Iterable[tuple[str, Weight]], device: torch.device) -> Held:
    """The base of a stage on a device, from its tensors as they come. Raises `ModelError`."""
    wanted = stage_base_shapes(manifest, stage)
    settings = manifest.settings
    linears, form = _linears(manifest, stage), settings.model.base
    plain = torch.float32 if settings.train.mode == "full" else DTYPES[settings.model.compute_dtype]
    held: dict[str, Tensor | QuantizedLinear] = {}
    for name, tensor in base:
        size = tuple(tensor.shape) if isinstance(tensor, Tensor) else (tensor.out_features, tensor.in_features)
        if size != wanted.get(name):
            raise ModelError(f"stage {stage}: {name} is {size}; wanted {wanted.get(name)}")
        if isinstance(tensor, QuantizedLinear):
            if form != "nf4" or name not in linears:
                raise ModelError(f"stage {stage}: {name} is nf4 in the checkpoint; the run wants a base in {form}")
            held[name] = tensor.to(device)
        elif name in linears and form in QUANTIZED:
            # On the CPU, whatever the device: the same codes, and the device never holds the layer whole.
            held[name] = quantized(form, tensor).to(device)
        else:
            held[name] = tensor.to(device, DTYPES.get(form, plain) if name in linears else plain)
    missing = sorted(set(wanted) - set(held))
    if missing:
        raise ModelError(f"stage {stage}: {', '.join(missing[:4])} is missing of {len(wanted)} tensors")
    return held


def _linears(manifest: Manifest, stage: int) -> dict[str, tuple[int, int]]:
    """The weights of a stage's linear layers: name -> (out, in)."""
    shape = manifest.shape
    return {
        f"{name}.weight": size for layer in manifest.layers(stage) for name, size in block_linears(shape, layer).items()
    }


class HeldStore:
    """Held bases in a folder; `limit`: bytes of all of them. Several processes may use it at once."""

    def __init__(self, folder: Path, limit: int = DEFAULT_STORE_BYTES) -> None:
        self._folder = folder
        self._limit = limit

    def get_or_make(
        self, manifest: Manifest, stage: int, device: torch.device, make: Callable[[], Iterable[tuple[str, Weight]]]
    ) -> Held:
        """The base of a stage, kept or made of the tensors that `make` gives. Raises what `hold` and `make` do.

        Kept is what took work: a base that is not quantized here lies elsewhere as it is, and a random one is made
        anew.
        """
        if manifest.weights is None or manifest.settings.model.base not in QUANTIZED:
            return hold(manifest, stage, make(), device)
        path = self._folder / f"{_key(manifest, stage)}.safetensors"
        found = _load(path, manifest, stage, device)
        if found is not None:
            return found
        came: list[Weight] = []

        def noted() -> Iterator[tuple[str, Weight]]:
            for name, weight in make():
                came.extend([weight] if isinstance(weight, QuantizedLinear) else [])
                yield name, weight

        made = hold(manifest, stage, noted(), torch.device("cpu"))
        if not came:
            self._save(path, made)
        return {name: part.to(device) for name, part in made.items()}

    def _save(self, path: Path, held: Held) -> None:
        tensors = dict(sorted(_pieces(held)))
        unfinished = path.with_suffix(f".{secrets.token_hex(4)}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, unfinished, metadata={"sha256": _digest(tensors)})
            os.replace(unfinished, path)
            self._trim(path)
        except (OSError, SafetensorError):
            return  # a full disk: it is made again the next time
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink()

    def _trim(self, newest: Path) -> None:
        kept = sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in kept)
        for path in kept:
            if total <= self._limit or path == newest:
                return
            total -= path.stat().st_size
            path.unlink(missing_ok=True)


def _key(manifest: Manifest, stage: int) -> str:
    settings = manifest.settings
    what = {
        "weights": manifest.weights.model_dump(mode="json") if manifest.weights else None,
        "tensors": {name: list(shape) for name, shape in stage_base_shapes(manifest, stage).items()},
        "base": settings.model.base,
        "compute": settings.model.compute_dtype,
        "mode": settings.train.mode,
        "format": 1,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _pieces(held: Held) -> Iterator[tuple[str, Tensor]]:
    for name, part in held.items():
        if isinstance(part, Tensor):
            yield name, part.contiguous()
        else:
            for piece, tensor in part.state_dict().items():
                yield f"{name}.{piece}", tensor.contiguous()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{list(tensor.shape)}{tensor.dtype}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load(path: Path, manifest: Manifest, stage: int, device: torch.device) -> Held | None:
    """What is kept there, if it is whole."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        os.utime(path)
    except (OSError, SafetensorError):
        return None
    if metadata.get("sha256") != _digest(tensors):
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    linears, form = _linears(manifest, stage), manifest.settings.model.base
    held: dict[str, Tensor | QuantizedLinear] = {}
    for name in stage_base_shapes(manifest, stage):
        if name in linears and form in QUANTIZED:
            layer = empty(form, *linears[name])
            prefix = f"{name}."
            layer.load_state_dict(
                {piece.removeprefix(prefix): tensor for piece, tensor in tensors.items() if piece.startswith(prefix)}
            )
            held[name] = layer.to(device)
        else:
            held[name] = tensors[name].to(device)
    return held
