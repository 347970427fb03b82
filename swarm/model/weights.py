"""The base weights of one stage: from a folder in Hugging Face's layout, or the seeded random base of `tiny`.

Reads only the wanted tensors of `model.safetensors` or of the shards that `model.safetensors.index.json` names; never
pickle. Each tensor is checked for presence, dtype (fp32, fp16, bf16), shape and finite values before it is used.

Errors: `ModelError` with the file, the tensor, what came and what is wanted.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import ModelError
from ..initial import base_tensor
from ..manifest import LlamaShape, Manifest
from .config import read_shape
from .names import stage_base_shapes

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_INDEX_BYTES = 64 << 20
_DTYPES = ("F32", "F16", "BF16")
_READ_BYTES = 1 << 20


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index of a sharded checkpoint."""
    path = folder / _INDEX
    try:
        with path.open("rb") as file:
            content = file.read(_INDEX_BYTES + 1)
        if len(content) > _INDEX_BYTES:
            raise ModelError(f"{path}: is larger than {_INDEX_BYTES} bytes")
        index = json.loads(content)
    except OSError as error:
        raise ModelError(f"{folder}: has neither {_SINGLE} nor a readable {_INDEX}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON: {error}") from error
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise ModelError(f"{path}: has no weight_map; wanted tensor names and the files that hold them")
    for name, file_name in files.items():
        # An index may come with a checkpoint from anywhere: it must not point outside its folder.
        if (
            not isinstance(file_name, str)
            or Path(file_name).name != file_name
            or not file_name.endswith(".safetensors")
        ):
            raise ModelError(
                f"{path}: {name} is said to be in {file_name!r}; wanted a .safetensors file beside the index"
            )
    return files


def _locate(folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[Path, list[str]]:
    """The files to open, and which of the wanted tensors to read from each."""
    if (folder / _SINGLE).is_file():
        return {folder / _SINGLE: list(wanted)}
    files = _weight_map(folder)
    by_file: dict[Path, list[str]] = {}
    for name in wanted:
        if name not in files:
            raise ModelError(f"{folder / _INDEX}: {name} is missing")
        by_file.setdefault(folder / files[name], []).append(name)
    return by_file


def read_tensors(folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """The wanted tensors (name -> shape) in the checkpoint's own dtype, on the CPU, one after the other. Raises
    `ModelError`."""
    for path, names in _locate(folder, wanted).items():
        try:
            with safe_open(path, framework="pt") as file:
                present = set(file.keys())
                for name in names:
                    if name not in present:
                        raise ModelError(f"{path}: {name} is missing")
                    header = file.get_slice(name)
                    dtype, shape = header.get_dtype(), tuple(header.get_shape())
                    if dtype not in _DTYPES:
                        raise ModelError(f"{path}: {name} has dtype {dtype}; wanted one of {', '.join(_DTYPES)}")
                    if shape != wanted[name]:
                        raise ModelError(f"{path}: {name} has shape {shape}; config.json wants {wanted[name]}")
                    tensor = file.get_tensor(name)
                    if not torch.isfinite(tensor).all():
                        raise ModelError(f"{path}: {name} holds NaN or infinity; fetch it again")
                    yield name, tensor
                    del tensor
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: is not a whole safetensors file ({error}); fetch it again") from error


def random_base(seed: int, shape: LlamaShape, wanted: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """The seeded random base: the wanted tensors (name -> shape) in fp32, a function of seed and name alone."""
    for name, size in wanted.items():
        yield name, base_tensor(seed, name, size, shape.initializer_range)


def stage_base(manifest: Manifest, stage: int, folder: Path | None) -> Iterator[tuple[str, Tensor]]:
    """The base tensors of one stage, one after the other: whoever quantizes them holds no more than one as it came.
    `folder` is None for a run without a checkpoint (random base).

    Raises `ModelError`, also when the folder's config.json is not the manifest's shape. Digests are not checked here:
    see `weights_digest`.
    """
    wanted = stage_base_shapes(manifest, stage)
    if manifest.weights_sha256 is None:
        return random_base(manifest.settings.seed, manifest.shape, wanted)
    if folder is None:
        raise ModelError(
            f"stage {stage} needs the weights of {manifest.settings.model.name!r}, but no folder was given"
        )
    came = read_shape(folder)
    if came != manifest.shape:
        raise ModelError(f"{folder / 'config.json'}: describes {came!r}; the manifest wants {manifest.shape!r}")
    return read_tensors(folder, wanted)


def weights_digest(folder: Path) -> str:
    """sha256 (hex) over config.json, the index if there is one, and the safetensors files, with their names and sizes.

    Streams the files, so memory stays small. Raises `ModelError`.
    """
    names = ["config.json"]
    if (folder / _SINGLE).is_file():
        names.append(_SINGLE)
    else:
        names += [_INDEX, *sorted(set(_weight_map(folder).values()))]
    digest = hashlib.sha256()
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                digest.update(f"{name}:{(folder / name).stat().st_size}\n".encode())
                while chunk := file.read(_READ_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise ModelError(f"{folder / name}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()
