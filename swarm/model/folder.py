"""Writes checkpoints in Hugging Face's layout: a folder that is there is whole.

Errors: `UsageError` if the folder holds something already, `StorageError` if it cannot be written.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...errors import StorageError, UsageError
from ..manifest import LlamaShape
from .opening import BESIDE_TOKENIZER, TOKENIZER

SHARD_BYTES = 4 << 30
"""Files of a checkpoint are about this large at most, but for a single larger tensor."""

MergedType = Literal["bf16", "fp32"]
NumberType = Literal["bf16", "fp16", "fp32"]


def model_config(shape: LlamaShape, dtype: NumberType) -> dict[str, Any]:
    """The config.json of a Llama of this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "use_cache": True,
        "dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype],
        **shape.model_dump(),
    }


def copy_tokenizer(source: Path, made: Path) -> None:
    """What a folder has of tokenizer, chat template and special tokens."""
    for path in (source / name for name in (TOKENIZER, *BESIDE_TOKENIZER)):
        if path.is_file():
            shutil.copyfile(path, made / path.name)


class Shards:
    """Writes tensors into numbered files as they come, and then the index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[dict[str, int]] = []
        self._open: dict[str, Tensor] = {}
        self._bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._open and self._bytes + size > SHARD_BYTES:
            self._write()
        self._open[name] = tensor
        self._bytes += size

    def _write(self) -> None:
        try:
            save_file(self._open, self._folder / f"part-{len(self._files)}", metadata={"format": "pt"})
        except SafetensorError as error:
            raise StorageError(f"a file of the checkpoint cannot be written: {error}") from error
        self._files.append({name: tensor.numel() * tensor.element_size() for name, tensor in self._open.items()})
        self._open, self._bytes = {}, 0

    def finish(self) -> None:
        """Names the files as Hugging Face does, which takes their number."""
        self._write()
        count = len(self._files)
        if count == 1:
            (self._folder / "part-0").rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._files):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            (self._folder / f"part-{number}").rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        total = sum(size for names in self._files for size in names.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(self._folder / "model.safetensors.index.json", index)


def check_target(target: Path) -> None:
    """Raises `UsageError` unless a new folder can have this name."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not empty: name another folder, or move it away")
    if target.is_symlink() or target.resolve() == Path.cwd() or target.is_mount():
        raise UsageError(f"{target} cannot be made anew when all is written: name a folder that is not there yet")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that gets its name when the block has ended well, and is gone otherwise."""
    check_target(target)
    made: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield made
        if target.exists():
            target.rmdir()
        made.chmod(0o755)
        for path in made.iterdir():
            path.chmod(0o644)
        os.replace(made, target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
