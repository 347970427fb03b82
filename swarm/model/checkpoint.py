"""One checkpoint in Hugging Face's layout, from whichever source: what it is, and its tensors one after the other.

Reads config.json, the index of a sharded one, the header of every safetensors file, and then only the bytes of the
wanted tensors; never pickle. What a run trains is fixed by `Weights` (see `manifest.py`): the headers are checked
before anything is read, a piece's digest while it is read, and its last tensor is handed out only after that.

Errors: `ModelError` with the file, the tensor or piece, what came and what is wanted; and what the source raises.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from ...errors import ModelError
from ..manifest import LlamaShape, Weights
from .config import CONFIG, CONFIG_BYTES, parse_config
from .files import INDEX, SINGLE, Files
from .header import LENGTH_BYTES, Entry, header_length, parse_header
from .names import Piece, pieces

Progress = Callable[[int, int], None]
"""Called as bytes come, with (bytes so far, bytes in all); may raise to end the reading."""

_INDEX_BYTES = 64 << 20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor of the checkpoint: which file, and where in it."""

    file: str
    entry: Entry


class Checkpoint:
    """Reads config.json at once, the rest when it is asked for. Raises `ModelError`. A context manager: closes
    `files`."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.shape: LlamaShape = parse_config(files.whole(CONFIG, CONFIG_BYTES), files.name_of(CONFIG))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.files.close()

    @cached_property
    def tensors(self) -> dict[str, Located]:
        """The model's tensors by name; others that a file may hold are passed over. Raises `ModelError`."""
        wanted = {name: size for piece in pieces(self.shape) for name, size in piece.shapes.items()}
        files = dict.fromkeys(wanted, SINGLE) if self.files.has(SINGLE) else self._index()
        missing = [name for name in wanted if name not in files]
        if missing:
            raise ModelError(f"{self.files.name_of(INDEX)}: {missing[0]} is missing")
        headers = {file: self._header(file) for file in sorted({files[name] for name in wanted})}
        found: dict[str, Located] = {}
        for name, size in wanted.items():
            where, entry = self.files.name_of(files[name]), headers[files[name]].get(name)
            if entry is None:
                raise ModelError(f"{where}: {name} is missing")
            if entry.dtype not in _DTYPES:
                raise ModelError(f"{where}: {name} has dtype {entry.dtype}; wanted one of {', '.join(_DTYPES)}")
            if entry.shape != size:
                raise ModelError(f"{where}: {name} has shape {entry.shape}; config.json wants {size}")
            found[name] = Located(files[name], entry)
        return found

    def weights(self, progress: Progress | None = None) -> Weights:
        """What a manifest says of this checkpoint. Reads a local one whole, for its pieces; a remote one's pieces stay
        unknown: an organizer need not hold what its peers do. Raises `ModelError`."""
        digests: list[str] = []
        if self.files.is_local:
            for _ in self._read(pieces(self.shape), lambda _, digest: digests.append(digest), progress):
                pass
        return Weights(headers=self._headers(), revision=self.files.revision(self._names()), pieces=tuple(digests))

    def check(self, weights: Weights) -> None:
        """Raises `ModelError` if this is not the checkpoint of `weights`, as far as can be said before reading it."""
        came = self._headers()
        if came != weights.headers:
            raise ModelError(
                f"{self.files.where}: its headers have digest {came}; the run wants {weights.headers}: fetch the model "
                "that the run was started with, or pass its folder as --model"
            )
        self.files.check_revision(weights.revision, self._names())

    def read(
        self, wanted: Sequence[Piece], digests: Sequence[str] = (), progress: Progress | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the wanted pieces, in the checkpoint's own dtype, on the CPU, one after the other. `digests`:
        of all pieces, or empty to take what comes. Raises `ModelError`."""

        def check(piece: Piece, came: str) -> None:
            if digests and came != digests[piece.number]:
                for name in piece.shapes:
                    self._forget(name)
                raise ModelError(
                    f"{self.files.where}: {piece.label} has digest {came}; the run wants {digests[piece.number]}: "
                    "fetch the model that the run was started with, or pass its folder as --model"
                )

        return self._read(wanted, check, progress)

    def _read(
        self, wanted: Sequence[Piece], digested: Callable[[Piece, str], None], progress: Progress | None
    ) -> Iterator[tuple[str, Tensor]]:
        tensors = self.tensors
        entries = [tensors[name].entry for piece in wanted for name in piece.shapes]
        done, total = 0, sum(entry.stop - entry.start for entry in entries)

        def came(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        for piece in wanted:
            digest = hashlib.sha256()
            names = sorted(piece.shapes)
            for name in names:
                entry = tensors[name].entry
                content = memoryview(bytearray(entry.stop - entry.start))
                self.files.read(tensors[name].file, entry.start, content, came)
                digest.update(_canonical([name, entry.dtype, entry.shape]) + b"\n")
                digest.update(content)
                tensor = torch.frombuffer(content, dtype=_DTYPES[entry.dtype]).view(entry.shape)
                if not torch.isfinite(tensor).all():
                    self._forget(name)
                    where = self.files.name_of(tensors[name].file)
                    raise ModelError(f"{where}: {name} holds NaN or infinity; fetch it again")
                if name == names[-1]:
                    digested(piece, digest.hexdigest())
                yield name, tensor
                del tensor, content

    def _forget(self, name: str) -> None:
        located = self.tensors[name]
        self.files.forget(located.file, located.entry.start, located.entry.stop)

    def _headers(self) -> str:
        listed = [[name, found.entry.dtype, found.entry.shape] for name, found in sorted(self.tensors.items())]
        return hashlib.sha256(_canonical({"shape": self.shape.model_dump(mode="json"), "tensors": listed})).hexdigest()

    def _names(self) -> set[str]:
        return {CONFIG, *(found.file for found in self.tensors.values())}

    def _header(self, file: str) -> dict[str, Entry]:
        size, where = self.files.size(file), self.files.name_of(file)
        prefix = bytearray(min(LENGTH_BYTES, size))
        self.files.read(file, 0, memoryview(prefix), lambda count: None)
        table = bytearray(header_length(bytes(prefix), size, where))
        self.files.read(file, LENGTH_BYTES, memoryview(table), lambda count: None)
        return parse_header(bytes(table), size, where)

    def _index(self) -> dict[str, str]:
        """Tensor name -> file name, from the index of a sharded checkpoint."""
        where = self.files.name_of(INDEX)
        if not self.files.has(INDEX):
            raise ModelError(
                f"{self.files.where}: has neither {SINGLE} nor {INDEX}; wanted a checkpoint in one of both"
            )
        try:
            index = json.loads(self.files.whole(INDEX, _INDEX_BYTES))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{where}: is not JSON: {error}") from error
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict) or not files:
            raise ModelError(f"{where}: has no weight_map; wanted tensor names and the files that hold them")
        for name, file in files.items():
            # An index may come with a checkpoint from anywhere: it must not point outside its folder.
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise ModelError(
                    f"{where}: {name} is said to be in {file!r}; wanted a .safetensors file beside the index"
                )
        return files


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
