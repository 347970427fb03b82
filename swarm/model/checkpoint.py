"""One checkpoint in Hugging Face's layout, from whichever source: what it is, and its tensors one after the other.

Reads config.json, the index of a sharded one, the header of every safetensors file, and then only the bytes of the
wanted tensors; never pickle. Linear layers may be in nf4 already, as bitsandbytes writes them: the codes under the
weight's name, and beside them what it takes to decode them. What a run trains is fixed by `Weights` (see
`manifest.py`): the headers are checked before anything is read, a piece's digest while it is read, and its last tensor
is handed out only after that.

Errors: `ModelError` with the file, the tensor or piece, what came and what is wanted; and what the source raises.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import torch
from torch import Tensor

from ...compression.linear import Nf4Linear, QuantizedLinear
from ...compression.quant_state import MOST_BYTES, QUANT_STATE
from ...errors import ModelError
from ...kernels import engine
from ..manifest import LlamaShape, Weights
from .config import CONFIG, CONFIG_BYTES, parse_config
from .files import INDEX, SINGLE, Files
from .header import LENGTH_BYTES, Entry, header_length, parse_header
from .names import Piece, block_linears, pieces
from .spans import Located, Span, SpanReader, spans_of

Weight: TypeAlias = Tensor | QuantizedLinear
"""As a checkpoint has it: numbers, or nf4 already."""

Progress = Callable[[int, int], None]
"""Called as bytes come, with (bytes so far, bytes in all); may raise to end the reading."""

_INDEX_BYTES = 64 << 20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", QUANT_STATE)
"""What may lie beside the codes of a weight, by the end of its name."""

_PART_DTYPES = {"F32": torch.float32, "U8": torch.uint8}
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class _Found:
    """A tensor of the model, and what lies `beside` it, by the end of its name, if it is the codes of a weight in
    nf4."""

    at: Located
    beside: dict[str, Located] = field(default_factory=dict)

    def all(self, name: str) -> dict[str, Located]:
        """By their names in the files."""
        return {name: self.at, **{f"{name}.{part}": located for part, located in self.beside.items()}}


class Checkpoint:
    """Reads config.json at once, the rest when it is asked for. Raises `ModelError`. A context manager: closes
    `files`. `says_nf4`: what config.json says of it; whether it is so, `is_nf4`."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.shape: LlamaShape
        self.shape, self.says_nf4 = parse_config(files.whole(CONFIG, CONFIG_BYTES), files.name_of(CONFIG))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.files.close()

    @cached_property
    def tensors(self) -> dict[str, _Found]:
        """The model's tensors by name; others that a file may hold are passed over. Raises `ModelError`."""
        wanted = {name: size for piece in pieces(self.shape) for name, size in piece.shapes.items()}
        files = dict.fromkeys(wanted, SINGLE) if self.files.has(SINGLE) else self._index()
        missing = [name for name in wanted if name not in files]
        if missing:
            raise ModelError(f"{self.files.name_of(INDEX)}: {missing[0]} is missing")
        headers = {file: self._header(file) for file in sorted({files[name] for name in wanted})}

        def locate(name: str) -> Located | None:
            file = files.get(name, SINGLE if SINGLE in headers else "")
            if file and file not in headers:
                headers[file] = self._header(file)
            entry = headers.get(file, {}).get(name)
            return None if entry is None else Located(file, entry)

        linears = _linears(self.shape)
        tensors: dict[str, _Found] = {}
        for name, size in wanted.items():
            where, located = self.files.name_of(files[name]), locate(name)
            if located is None:
                raise ModelError(f"{where}: {name} is missing")
            if located.entry.dtype == "U8" and name in linears:
                parts = {part: locate(f"{name}.{part}") for part in _PARTS}
                found = _Found(located, {part: at for part, at in parts.items() if at is not None})
                _check_packed(where, name, size, found)
            elif located.entry.dtype not in _DTYPES:
                dtypes = ", ".join(_DTYPES)
                raise ModelError(f"{where}: {name} has dtype {located.entry.dtype}; wanted one of {dtypes}")
            elif located.entry.shape != size:
                raise ModelError(f"{where}: {name} has shape {located.entry.shape}; config.json wants {size}")
            else:
                found = _Found(located)
            tensors[name] = found
        return tensors

    @property
    def is_nf4(self) -> bool:
        """Whether linear layers of it are in nf4. Raises `ModelError`."""
        return any(found.beside for found in self.tensors.values())

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
    ) -> Iterator[tuple[str, Weight]]:
        """The tensors of the wanted pieces, as the checkpoint has them, on the CPU, one after the other. `digests`:
        of all pieces, or empty to take what comes. Raises `ModelError`."""

        def check(piece: Piece, came: str) -> None:
            if digests and came != digests[piece.number]:
                self._forget(piece)
                raise ModelError(
                    f"{self.files.where}: {piece.label} has digest {came}; the run wants {digests[piece.number]}: "
                    "fetch the model that the run was started with, or pass its folder as --model"
                )

        return self._read(wanted, check, progress)

    def _read(
        self, wanted: Sequence[Piece], digested: Callable[[Piece, str], None], progress: Progress | None
    ) -> Iterator[tuple[str, Weight]]:
        tensors = self.tensors
        read = [at.entry for piece in wanted for name in piece.shapes for at in tensors[name].all(name).values()]
        done, total = 0, sum(entry.stop - entry.start for entry in read)

        def came(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        for piece in wanted:
            digest = hashlib.sha256()
            names, reader = sorted(piece.shapes), SpanReader(self.files, self._beside(piece), came)
            for name in names:
                contents: dict[str, Tensor] = {}
                for at, located in tensors[name].all(name).items():
                    entry = located.entry
                    content = reader.read(located)
                    digest.update(_canonical([at, entry.dtype, entry.shape]) + b"\n")
                    digest.update(content)
                    dtype = (_PART_DTYPES if tensors[name].beside else _DTYPES)[entry.dtype]
                    contents[at] = torch.frombuffer(content, dtype=dtype).view(entry.shape)
                weight = self._checked(piece, name, contents)
                if name == names[-1]:
                    digested(piece, digest.hexdigest())
                yield name, weight
                del weight, contents, content

    def _beside(self, piece: Piece) -> list[Located]:
        """The tensors of its weights in nf4: they may be read together."""
        packed = (found for name in piece.shapes if (found := self.tensors[name]).beside)
        return [at for found in packed for at in (found.at, *found.beside.values())]

    def _checked(self, piece: Piece, name: str, contents: dict[str, Tensor]) -> Weight:
        """The weight that these tensors make up. Raises `ModelError`."""
        found, size = self.tensors[name], piece.shapes[name]
        where = self.files.name_of(found.at.file)
        weight: Weight = contents[name]
        numbers = [contents[name]]
        try:
            if found.beside:
                layer = Nf4Linear.from_bitsandbytes(contents, name.removesuffix("weight"), (size[0], size[1]))
                if layer.scales is not None or layer.block != _BLOCK:
                    raise ModelError(
                        f"{name} is in blocks of {layer.block} or has scales of its own; wanted {_BLOCK}, shared scales"
                    )
                weight, numbers = layer, []  # its scales have been looked at
            if not all(torch.isfinite(part).all() for part in numbers):
                raise ModelError(f"{name} holds NaN or infinity")
        except ModelError as error:
            self._forget(piece)
            raise ModelError(f"{where}: {error}; fetch it again") from error
        return weight

    def _forget(self, piece: Piece) -> None:
        spans, found = spans_of(self._beside(piece)), [self.tensors[name] for name in piece.shapes]
        every = (at for one in found for at in (one.at, *one.beside.values()))
        wrong = dict.fromkeys(spans.get(at) or Span(at.file, at.entry.start, at.entry.stop) for at in every)
        self.files.forget([(span.file, span.start, span.stop) for span in wrong])

    def _headers(self) -> str:
        listed = [[name, entry.dtype, entry.shape] for name, entry in sorted(self._entries().items())]
        return hashlib.sha256(_canonical({"shape": self.shape.model_dump(mode="json"), "tensors": listed})).hexdigest()

    def _entries(self) -> dict[str, Entry]:
        """All tensors that belong to it, by their names in the files."""
        return {at: located.entry for name, found in self.tensors.items() for at, located in found.all(name).items()}

    def _names(self) -> set[str]:
        every = (located for name, found in self.tensors.items() for located in found.all(name).values())
        return {CONFIG, *(located.file for located in every)}

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


def _linears(shape: LlamaShape) -> set[str]:
    return {f"{name}.weight" for layer in range(shape.num_hidden_layers) for name in block_linears(shape, layer)}


def _check_packed(where: str, name: str, size: tuple[int, ...], found: _Found) -> None:
    """Whether this can be a weight of this size in nf4, as far as the headers say. Raises `ModelError`."""
    elements = math.prod(size)
    blocks = -(-elements // _BLOCK)
    wanted = {
        "absmax": ("U8", blocks),
        "nested_absmax": ("F32", -(-blocks // engine.SCALE_BLOCK)),
        "quant_map": ("F32", 16),
        "nested_quant_map": ("F32", 256),
    }
    missing = [part for part in _PARTS if part not in found.beside and part != "quant_map"]
    if missing:
        raise ModelError(
            f"{where}: {name}.{missing[0]} is missing: without it its codes cannot be read; wanted nf4 with double "
            "quantization"
        )
    codes = found.at.entry.shape
    if math.prod(codes) != (elements + 1) // 2 or len(codes) > 2:
        raise ModelError(f"{where}: {name} has {codes} bytes of codes; config.json wants {size}")
    for part, at in found.beside.items():
        dtype, count = wanted.get(part, ("U8", max(1, min(MOST_BYTES, math.prod(at.entry.shape)))))
        if at.entry.dtype != dtype or at.entry.shape != (count,):
            raise ModelError(
                f"{where}: {name}.{part} is {at.entry.dtype} {list(at.entry.shape)}; wanted {dtype} [{count}], as in "
                f"nf4 with double quantization, in blocks of {_BLOCK}"
            )


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
