"""Checkpoints on disk: a folder each, whole or not there.

    step-00000050-epoch-0/
        checkpoint.json          what it is, and the size and sha256 of every other file
        checkpoint.signature     of the trainer that wrote it, whom the run's organizer has delegated
        manifest.json, manifest.signature
        history.binpb            the steps before, and the Commit of the last one (protobuf)
        stage-0000.safetensors   parameters and both moments
        reduction-0000.safetensors   with the one-step delayed update: the coded parts that make the next version

A folder is written beside its place, synced and renamed; what a full disk or a kill leaves behind is removed by the
next. Nothing is read that is not proven: first the signature, then each file against its digest, then the state
against the digest that replicas reported.

Errors: `StorageError` for what cannot be written, `CheckpointError` for what is no checkpoint, of another run, or
damaged.
"""

import asyncio
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from google.protobuf.message import DecodeError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import CheckpointError, StorageError, SwarmError
from ..protos import swarm_pb2 as pb
from . import moments
from .authority import to_term
from .checkpoint import Checkpoint, StageCheckpoint
from .epochs import Lineage, read_lineage
from .keys import (
    CHECKPOINT_DOMAIN,
    Identity,
    ProvenTerms,
    SignedManifest,
    check_signed_manifest,
    verify,
)
from .manifest import Manifest
from .messages import check_past
from .model.names import trainable_shapes
from .optimizer import state_digest, state_from_bytes

logger = logging.getLogger(__name__)

FORMAT = 1
INDEX, INDEX_SIGNATURE = "checkpoint.json", "checkpoint.signature"
MANIFEST, MANIFEST_SIGNATURE, HISTORY = "manifest.json", "manifest.signature", "history.binpb"
MAX_INDEX_BYTES = 16 << 20
UNFINISHED = ".unfinished-"
_NAME = re.compile(r"step-(\d+)-epoch-(\d+)")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class _Index(BaseModel):
    """checkpoint.json. `term` and `epochs` are protobuf messages in hex; `digests`: of each stage's state; `met`: the
    multiaddrs of members."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int
    run: Sha256
    model: str
    step: Annotated[int, Field(gt=0)]
    version: Annotated[int, Field(ge=0)]
    loss: float | None
    term: Hex
    epochs: list[Hex]
    digests: list[Sha256]
    met: list[str]
    files: dict[str, _File]


@dataclass
class CheckpointFolder:
    """The checkpoints of one run under `root`; the last `keep` of them stay. `identity`: the coordinator's."""

    root: Path
    manifest: Manifest
    identity: Identity
    every: int
    keep: int = 2

    async def digest(self, stage: int, state: bytes) -> bytes:
        return await asyncio.to_thread(_digest, self.manifest, stage, state)

    async def save(self, checkpoint: Checkpoint) -> None:
        await asyncio.to_thread(self.write, checkpoint)

    async def latest(self, lineage: Lineage) -> Checkpoint | None:
        return await asyncio.to_thread(self._latest, lineage)

    def write(self, checkpoint: Checkpoint) -> Path:
        """Writes it into a folder of its own. Blocks. Raises `StorageError`."""
        place = self.root / f"step-{checkpoint.closed:08d}-epoch-{checkpoint.lineage.number}"
        unfinished = self.root / f"{UNFINISHED}{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left_over in self.root.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left_over, ignore_errors=True)
            unfinished.mkdir(mode=0o700)
            self._write_files(unfinished, checkpoint)
            _sync(unfinished)
            if place.exists():  # of a run that was killed as it came by here before
                shutil.rmtree(place)
            unfinished.rename(place)
            _sync(self.root)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"the checkpoint {place} cannot be written: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        for old in _folders(self.root)[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return place

    def _write_files(self, folder: Path, checkpoint: Checkpoint) -> None:
        _write(folder / MANIFEST, checkpoint.signed.canonical)
        _write(folder / MANIFEST_SIGNATURE, checkpoint.signed.signature)
        commits = () if checkpoint.commit is None else (checkpoint.commit,)
        history = pb.Held(commits=commits, past=checkpoint.past)
        _write(folder / HISTORY, history.SerializeToString(deterministic=True))
        for stage in range(self.manifest.stages):
            kept = checkpoint.read(stage)
            save_file(_tensors(self.manifest, stage, kept.state), folder / _state_file(stage))
            if kept.reduction:
                parts = {
                    f"{group}.{number:05d}": np.frombuffer(part, np.uint8)
                    for group, coded in kept.reduction.items()
                    for number, part in enumerate(coded)
                }
                save_file(parts, folder / _reduction_file(stage))
        last = next((past for past in checkpoint.past if past.step == checkpoint.closed - 1), None)
        index = _Index(
            format=FORMAT,
            run=self.manifest.run_id,
            model=self.manifest.settings.model.name,
            step=checkpoint.closed,
            version=checkpoint.version,
            loss=None if last is None else last.loss.real,
            term=checkpoint.term.SerializeToString(deterministic=True).hex(),
            epochs=[epoch.SerializeToString(deterministic=True).hex() for epoch in checkpoint.lineage.epochs],
            digests=[digest.hex() for digest in checkpoint.digests],
            met=list(checkpoint.met),
            files={path.name: _measure(path) for path in sorted(folder.iterdir())},
        )
        data = (index.model_dump_json(indent=2) + "\n").encode()
        _write(folder / INDEX, data)
        _write(folder / INDEX_SIGNATURE, self.identity.sign(CHECKPOINT_DOMAIN, data))

    def _latest(self, lineage: Lineage) -> Checkpoint | None:
        found: list[Checkpoint] = []
        for folder in _folders(self.root):
            try:
                checkpoint = open_checkpoint(folder)
                if checkpoint.is_of(lineage) and checkpoint.signed.canonical == self.manifest.canonical():
                    found.append(checkpoint)
            except SwarmError as error:
                logger.warning("%s is passed over: %s", folder, error)
        return max(found, key=lambda checkpoint: (checkpoint.closed, checkpoint.lineage.number), default=None)


def find_checkpoint(path: Path) -> Path:
    """The newest whole checkpoint in a folder of them, or `path` itself if it is one. Raises `CheckpointError`."""
    if (path / INDEX).is_file():
        return path
    problem = f"{path} holds no checkpoint: wanted a folder with {INDEX}, or one of such folders"
    for folder in reversed(_folders(path)):
        try:
            open_checkpoint(folder)
            return folder
        except SwarmError as error:
            problem = str(error)
    raise CheckpointError(problem)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads and proves a checkpoint: all of its files are looked at, none is kept in memory. Blocks.

    Raises `CheckpointError`.
    """
    with _explained(folder):
        index_path = folder / INDEX
        if index_path.stat().st_size > MAX_INDEX_BYTES:
            raise CheckpointError(f"{index_path} has more than {MAX_INDEX_BYTES} bytes")
        data = index_path.read_bytes()
        index = _Index.model_validate_json(data)
        if index.format != FORMAT:
            raise CheckpointError(f"{folder} is of format {index.format}; this version reads {FORMAT}")
        manifest, signed = _read_manifest(folder, index)
        proven = ProvenTerms(manifest)
        term = pb.Term.FromString(bytes.fromhex(index.term))
        proven.check(to_term(term))
        verify(term.trainer, CHECKPOINT_DOMAIN, data, (folder / INDEX_SIGNATURE).read_bytes())
        epochs = [pb.Epoch.FromString(bytes.fromhex(text)) for text in index.epochs]
        lineage = read_lineage(epochs, proven, manifest.run_id, str(folder))
        for name, file in index.files.items():
            _check_file(folder, name, file)
        commit, past = _read_history(folder, manifest, index)
        digests = [bytes.fromhex(digest) for digest in index.digests]
        delayed = manifest.settings.pipeline.staleness
        if len(digests) != manifest.stages or index.version != index.step - delayed or bool(delayed) != bool(commit):
            raise CheckpointError(f"{folder} does not hold what a run of this manifest needs at step {index.step}")
        return Checkpoint(
            signed=signed,
            lineage=lineage,
            term=term,
            closed=index.step,
            version=index.version,
            digests=digests,
            commit=commit,
            past=past,
            met=index.met,
            read=partial(_read_stage, folder, manifest, index, digests),
        )


def _read_manifest(folder: Path, index: _Index) -> tuple[Manifest, SignedManifest]:
    for name in (MANIFEST, MANIFEST_SIGNATURE):
        _check_file(folder, name, index.files.get(name))
    signed = SignedManifest((folder / MANIFEST).read_bytes(), (folder / MANIFEST_SIGNATURE).read_bytes())
    return check_signed_manifest(signed.canonical, signed.signature, index.run), signed


def _read_history(folder: Path, manifest: Manifest, index: _Index) -> tuple[pb.Commit | None, list[pb.Past]]:
    _check_file(folder, HISTORY, index.files.get(HISTORY))
    history = pb.Held.FromString((folder / HISTORY).read_bytes())
    for past in history.past:
        check_past(past, manifest.settings.train.steps, str(folder))
    commit = history.commits[0] if history.commits else None
    if commit is not None and commit.step != index.step - 1:
        raise CheckpointError(f"{folder} holds the Commit of step {commit.step}; that of {index.step - 1} is due")
    return commit, list(history.past)


def _read_stage(folder: Path, manifest: Manifest, index: _Index, digests: list[bytes], stage: int) -> StageCheckpoint:
    """The state and the reduction of a stage. Raises `CheckpointError`."""
    with _explained(folder):
        name = _state_file(stage)
        _check_file(folder, name, index.files.get(name))
        state = _state_bytes(manifest, stage, load_file(folder / name))
        if _digest(manifest, stage, state) != digests[stage]:
            raise CheckpointError(f"{folder / name} has not the digest that replicas reported")
        name = _reduction_file(stage)
        reduction: dict[str, list[bytes]] = {}
        if name in index.files:
            _check_file(folder, name, index.files[name])
            parts = load_file(folder / name)
            for key in sorted(parts):
                reduction.setdefault(key.rsplit(".", 1)[0], []).append(parts[key].tobytes())
        return StageCheckpoint(state, reduction)


# ---- states as named tensors


def _tensors(manifest: Manifest, stage: int, state: bytes) -> dict[str, np.ndarray]:
    read = state_from_bytes(
        state, trainable_shapes(manifest, stage), torch.device("cpu"), manifest.settings.optimizer.state
    )
    tensors: dict[str, np.ndarray] = {}
    for name, parameter in read.parameters.items():
        tensors[name] = parameter.numpy()
        for moment, table in (("first_moment", read.first_moment), ("second_moment", read.second_moment)):
            pieces = moments.pieces(table[name])
            for kind, piece in zip(_kinds(len(pieces)), pieces, strict=True):
                tensors[f"{name}.{moment}{kind}"] = piece.numpy()
    return tensors


def _kinds(pieces: int) -> Iterable[str]:
    return ("",) if pieces == 1 else (".scales", ".codes")


def _state_bytes(manifest: Manifest, stage: int, tensors: dict[str, np.ndarray]) -> bytes:
    form = manifest.settings.optimizer.state
    parts: list[bytes] = []
    for name, shape in sorted(trainable_shapes(manifest, stage).items()):
        elements = int(np.prod(shape, dtype=np.int64))
        kinds = _kinds(2 if moments.is_coded(elements, form) else 1)
        named = [name, *(f"{name}.{moment}{kind}" for moment in ("first_moment", "second_moment") for kind in kinds)]
        for key in named:
            if key not in tensors:
                raise CheckpointError(f"the tensor {key} of stage {stage} is missing")
            parts.append(np.ascontiguousarray(tensors[key]).tobytes())
    return b"".join(parts)


def _digest(manifest: Manifest, stage: int, state: bytes) -> bytes:
    shapes = trainable_shapes(manifest, stage)
    return state_digest(state_from_bytes(state, shapes, torch.device("cpu"), manifest.settings.optimizer.state))


# ---- files


def _state_file(stage: int) -> str:
    return f"stage-{stage:04d}.safetensors"


def _reduction_file(stage: int) -> str:
    return f"reduction-{stage:04d}.safetensors"


def _folders(root: Path) -> list[Path]:
    """The finished checkpoints under a folder, the newest last."""
    found = [(match, path) for path in root.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda entry: (int(entry[0][2]), int(entry[0][1])))]


def _measure(path: Path) -> _File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return _File(bytes=path.stat().st_size, sha256=digest)


def _check_file(folder: Path, name: str, file: _File | None) -> None:
    if file is None or Path(name).name != name:
        raise CheckpointError(f"{folder / INDEX} does not name {name!r} as it should")
    path = folder / name
    if path.stat().st_size != file.bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes; {file.bytes} are due")
    with path.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
            raise CheckpointError(f"{path} is damaged: its digest is not the one in {INDEX}")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Whatever goes wrong in reading a checkpoint is a `CheckpointError` that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, ValidationError, DecodeError, SafetensorError, SwarmError) as error:
        raise CheckpointError(f"{folder} is no checkpoint that can be resumed from: {error}") from error
