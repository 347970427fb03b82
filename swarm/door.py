"""Which Runs a stage host takes up: those for its run, stage and epoch, of a trainer that leads, of an open step,
and of a size that fits.

Knows no visit, socket or clock. Errors: `RefusedError` for what is not for this peer, `ProtocolError` for what is for
nobody.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ProtocolError, RefusedError
from ..protos import swarm_pb2 as pb
from .authority import Authority
from .manifest import Manifest
from .messages import check_run


@dataclass(frozen=True, slots=True)
class Door:
    """Of one stage on one peer. `close` is told of the closed marker that a trainer's Run carries."""

    manifest: Manifest
    authority: Authority
    stage: int
    peer_id: str
    close: Callable[[int], None]

    def check(self, run: pb.Run, sender: str) -> None:
        """Raises `RefusedError` or `ProtocolError` for a Run that is not taken up; its payload may be still to come."""
        check_run(run, self.manifest.stages, self.manifest.microbatches, sender)
        if run.run != self.authority.run_id:
            raise self.refusal("WRONG_RUN", f"this peer serves run {self.authority.run_id[:12]}", sender)
        if run.first != self.stage:
            raise self.refusal("WRONG_STAGE", f"this peer serves stage {self.stage}, not {run.first}", sender)
        if run.epoch != self.authority.epoch:
            detail = f"this peer is in epoch {self.authority.epoch}, not {run.epoch}"
            raise self.refusal("WRONG_EPOCH", detail, sender)
        self.authority.admit(run.term, sender)
        self.close(run.closed)
        if run.mode == pb.TRAIN and run.step < self.authority.closed:
            raise self.refusal("CLOSED", f"step {run.step} is closed", sender)
        self._check_size(run, sender)

    def _check_size(self, run: pb.Run, sender: str) -> None:
        length = run.samples * self.manifest.settings.data.sequence_length * 4
        if run.samples > self.manifest.settings.train.microbatch:
            raise ProtocolError(f"{sender} sent {run.samples} samples for a microbatch")
        if run.last == self.manifest.stages - 1 and len(run.labels) != length:
            raise ProtocolError(f"{sender} sent {len(run.labels)} bytes of labels; {length} are due")
        if self.stage == 0 and run.payload != length:
            raise ProtocolError(f"{sender} sent {run.payload} bytes of token ids; {length} are due")
        if self.stage > 0 and not run.payload and not run.input_holder:
            raise ProtocolError(f"{sender} sent neither input nor the name of its holder")

    def refusal(self, reason: str, detail: str, sender: str) -> RefusedError:
        return RefusedError(reason, f"{detail} (asked by {sender})", self.peer_id)
