"""What can be joined: the runs that stand in a directory's index, as their trainers and the directory tell of them.

Anybody can put a record into the index; a run is what its trainer's signed manifest says, and one whose trainer does
not give it is shown as such. How many replicas serve a stage, and up to which version, is what peers say of themselves.
Everything is bounded: runs, stages, seconds, and what is shown of a text. Talks to the transport and the directory.

Errors: `UnreachableError` if the index cannot be read; what goes wrong with one run is that run's `problem`.
"""

import asyncio
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import SwarmError, UnreachableError
from .directory import TRAINER_STAGE, Directory, Record
from .first_contact import ask
from .invites import MAX_ADDRESSES, is_address, is_shareable_model
from .manifest import Manifest, parse_manifest
from .transport import Transport

_RUN_ID = re.compile(r"[0-9a-f]{64}")

MAX_RUNS = 64
MAX_STAGES = 256
MAX_TRAINERS = 4
"""Of one run: so many who say that they lead it are asked."""

AT_ONCE = 8
RUN_SECONDS = 20.0
"""For all that is asked about one run."""


@dataclass(frozen=True, slots=True)
class OfferedRun:
    """A run that can be joined, or that somebody says can be.

    `replicas`: of each stage, empty if not known; `step`: steps that are done, None if not known; `steps`: of the whole
    run, 0 if not known; `organizer`: public key, hex; `join`: the command; `problem`: why no more is known of it.
    """

    run_id: str
    model: str = ""
    organizer: str = ""
    replicas: tuple[int, ...] = ()
    step: int | None = None
    steps: int = 0
    join: str = ""
    is_here: bool = False
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run_id,
            "model": self.model,
            "organizer": self.organizer,
            "replicas": list(self.replicas),
            "step": self.step,
            "steps": self.steps,
            "join": self.join,
            "here": self.is_here,
            "problem": self.problem,
        }


def join_command(run_id: str, model: str, addresses: Iterable[str]) -> str:
    """What to type, safe for a shell; addresses that are none are left out, and "" if none is left."""
    dialable = [address for address in addresses if is_address(address)][:MAX_ADDRESSES]
    chosen = ["--model", model] if is_shareable_model(model) else []
    words = ["swarm-peer", "join", *chosen, "--run", run_id, "--initial-peers", *dialable]
    return shlex.join(words) if dialable else ""


def model_elsewhere(manifest: Manifest) -> str:
    """The model's name if it means the same on every machine: where it is digested, peers of the run give its files."""
    has_source = manifest.weights is None or bool(manifest.weights.revision)
    return manifest.settings.model.name if has_source else ""


async def listed(transport: Transport, directory: Directory, also: Sequence[str] = ()) -> tuple[list[OfferedRun], int]:
    """The runs of the index and those with the ids `also`, by id; and how many more there are than are asked."""
    found: dict[str, list[Record]] = {run_id: [] for run_id in also}
    for record in await directory.listed_runs():
        if not _RUN_ID.fullmatch(record.run):
            continue
        found.setdefault(record.run, []).append(record)
    chosen = [*also, *sorted(run_id for run_id in found if run_id not in also)][:MAX_RUNS]
    turn = asyncio.Semaphore(AT_ONCE)

    async def look(run_id: str) -> OfferedRun:
        async with turn:
            return await _look(transport, directory, run_id, found[run_id])

    async with asyncio.TaskGroup() as tasks:
        looking = [tasks.create_task(look(run_id)) for run_id in chosen]
    return [task.result() for task in looking], len(found) - len(chosen)


async def _look(transport: Transport, directory: Directory, run_id: str, records: Sequence[Record]) -> OfferedRun:
    run = OfferedRun(run_id)
    try:
        async with asyncio.timeout(RUN_SECONDS):
            records = records or await directory.read(run_id, TRAINER_STAGE)
            for record in sorted(records, key=lambda record: record.sequence, reverse=True)[:MAX_TRAINERS]:
                try:
                    manifest = parse_manifest((await ask(transport, record)).canonical)
                except (SwarmError, TimeoutError) as error:
                    run = replace(run, problem=f"its trainer does not answer: {str(error) or 'nothing came'}")
                    continue
                run = _of(manifest, record)
                return await _with_replicas(run, manifest, directory)
    except (UnreachableError, TimeoutError) as error:
        why = str(error) or f"it could not be asked within {RUN_SECONDS:.0f} s"
        return replace(run, problem=run.problem or why)
    return replace(run, problem=run.problem or "nobody announces that it leads")


def _of(manifest: Manifest, record: Record) -> OfferedRun:
    return OfferedRun(
        manifest.run_id,
        model=manifest.settings.model.name,
        organizer=manifest.organizer,
        steps=manifest.settings.train.steps,
        join=join_command(manifest.run_id, model_elsewhere(manifest), record.addresses),
    )


async def _with_replicas(run: OfferedRun, manifest: Manifest, directory: Directory) -> OfferedRun:
    """A step is done where every stage has a replica of a later version."""
    stages = range(min(manifest.stages, MAX_STAGES))
    read = [await directory.read(run.run_id, stage) for stage in stages]
    versions = [max((record.versions[1] for record in records), default=0) for records in read]
    return replace(run, replicas=tuple(len(records) for records in read), step=min(min(versions, default=0), run.steps))
