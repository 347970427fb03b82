"""The coordinator: the organizer's process. Bootstrap node of the directory and trainer of one run.

Owns the organizer's signature: it freezes the settings into a manifest, signs it, and delegates the run to itself as
its trainer. What happens goes out as events (`events.py`); how they are shown is the command line's.
"""

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ..errors import StoppedError
from .arithmetic import RealArithmetic
from .authority import from_term
from .events import Event
from .freezing import prepare
from .keys import Identity, delegate, sign_manifest, sign_term
from .local_runs import LocalRun, advertised
from .manifest import Settings
from .process import SharedFolder, network_node
from .trainer import Trainer

FIRST_TERM = 1


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """The run can be joined. `join`: the command to give to volunteers."""

    kind: ClassVar[str] = "listening"
    run_id: str
    model: str
    stages: int
    steps: int
    microbatches: int
    addresses: tuple[str, ...]
    join: str
    pid: int


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The run is over; `error` is empty if it came to its last step."""

    kind: ClassVar[str] = "ended"
    error: str
    report: dict[str, Any]


async def coordinate(
    settings: Settings,
    *,
    organizer: Identity,
    folder: SharedFolder,
    listen: Sequence[str],
    emit: Callable[[Event], None],
    announce: Sequence[str] = (),
    give_up: float | None = None,
) -> dict[str, Any]:
    """Leads a run from its settings to its report.

    Raises `ManifestError`, `DataError`, `ModelError` before anything is started, `UnreachableError` if the node cannot
    listen, `StoppedError` (after an `Ended` event with the report so far) if the run cannot go on.
    """
    prepared = prepare(settings, organizer=organizer.public_hex, nonce=secrets.token_hex(16))
    manifest, samples = prepared.manifest, prepared.samples()
    run_id = manifest.run_id
    signed = sign_manifest(organizer, manifest)
    identity = Identity.generate()
    term = sign_term(identity, run_id, FIRST_TERM, delegate(organizer, run_id, identity.public_hex))
    node = network_node(identity, folder.path / "coordinator", listen, (), announce)
    async with node as (transport, directory):
        trainer = Trainer(
            manifest=manifest,
            signature=signed.signature,
            term=from_term(term),
            transport=transport,
            directory=directory,
            arithmetic=RealArithmetic(manifest),
            samples=samples,
            emit=emit,
            give_up=give_up,
        )
        name = settings.model.name
        join = f"swarm-peer join --model {name} --run {run_id} --initial-peers {' '.join(transport.addresses)}"
        run = LocalRun(run_id, name, transport.addresses, os.getpid())
        with advertised(run):
            steps, microbatches = settings.train.steps, manifest.microbatches
            emit(Listening(**asdict(run), stages=manifest.stages, steps=steps, microbatches=microbatches, join=join))
            try:
                report = await trainer.run()
            except StoppedError as error:
                emit(Ended(str(error), trainer.report()))
                raise
        emit(Ended("", report))
        return report
