"""The report of a run: a JSON document of what happened, documented field by field in the README of this folder."""

import json
from collections.abc import Mapping
from typing import Any

from ..errors import ProtocolError
from .backend import Scalar
from .exchange import Meter
from .faults import FaultLog
from .manifest import Manifest
from .roster import Roster
from .steps import Step


def make_report(
    manifest: Manifest,
    steps: Mapping[int, Step],
    roster: Roster,
    faults: FaultLog,
    heldout: Mapping[str, Scalar | None],
    trainer: Meter,
) -> dict[str, Any]:
    """The report. `faults[].rerouted_s` counts from the loss as the trainer saw it; a killer knows better."""
    committed = [steps[number] for number in sorted(steps) if steps[number].committed]
    totals = [step.totals(manifest.stages, manifest.microbatches) for step in committed]
    beats = [member.beat for member in roster.everyone()]
    staleness = manifest.settings.pipeline.staleness
    return {
        "run_id": manifest.run_id,
        "steps": [
            {
                "step": step.number,
                "loss": step.loss,
                "grad_norm": step.grad_norm,
                "tokens": step.tokens,
                "seconds": step.seconds,
                "version": max(0, step.number - staleness),
            }
            for step in committed
        ],
        "heldout": dict(heldout),
        "ledger": {
            "microbatches": sum(total.microbatches for total in totals),
            "lost": sum(total.lost for total in totals),
            "duplicated": sum(total.duplicated for total in totals),
            "reissued": sum(total.reissued for total in totals),
            "taken_back": sum(total.taken_back for total in totals),
        },
        "faults": [
            {
                "kind": "lost",
                "why": fault.why,
                "stage": fault.stage,
                "peer": fault.peer,
                "at_step": fault.at_step,
                "rerouted_s": None if fault.rerouted_at is None else fault.rerouted_at - fault.lost_at,
            }
            for fault in faults.faults
        ],
        "replicas": [_replicas(stage, roster) for stage in range(manifest.stages)],
        "wire": {
            "activation_bytes": sum(beat.activation_bytes for beat in beats),
            "gradient_bytes": sum(beat.gradient_bytes for beat in beats),
            "reduce_bytes": sum(beat.reduce_bytes for beat in beats),
            "trainer_bytes": trainer.sent + trainer.received,
            "tokens": sum(step.tokens for step in committed),
        },
        "codecs": {
            "seconds": sum(beat.codec_microseconds for beat in beats) / 1e6,
            "kernels": sorted({member.kernels for member in roster.everyone()} - {""}),
        },
    }


def parse_replicas(text: str) -> list[dict[str, Any]]:
    """A report's list of replicas as another trainer has sent it. Raises `ProtocolError`."""
    try:
        replicas = json.loads(text)
    except ValueError as error:
        raise ProtocolError(f"a trainer sent a list of replicas that is not JSON: {error}") from error
    if not isinstance(replicas, list) or not all(isinstance(entry, dict) for entry in replicas):
        raise ProtocolError("a trainer sent a list of replicas that is none")
    return replicas


def _replicas(stage: int, roster: Roster) -> dict[str, Any]:
    """The newest version of a stage and who has it; a replica that is still catching up is not among them. Where nobody
    of them is left, what the last ones said."""
    everyone = [member for member in roster.everyone() if member.stage == stage and member.version >= 0]
    version = max((member.version for member in everyone), default=-1)
    having = [member for member in everyone if member.version == version]
    known = [member for member in having if member.live] or having
    digests = {member.peer: member.digests[version].hex() for member in known if version in member.digests}
    return {"stage": stage, "version": version, "digests": digests}
