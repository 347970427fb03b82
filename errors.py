"""Every exception that swarm-peer raises on purpose.

    SwarmError
    ├── ManifestError            a manifest (or its signature) is wrong: field, what came, what is wanted
    ├── DataError                a text or a line of it is missing, too short, malformed, or not what the manifest names
    ├── ModelError               a checkpoint is missing, corrupt or not of the Llama family
    ├── CodecError               a coded tensor cannot be decoded, or a tensor cannot be coded
    │   └── NonFiniteError       NaN or infinity where a finite number is required
    ├── WireError                what came over the wire is malformed or too large
    │   └── ProtocolError        well-formed, but not what the protocol allows at this point
    ├── TrustError               a key, signature, delegation or term does not prove what it claims
    │   └── OrganizerError       a run is another organizer's than the one who invited to it
    ├── UnreachableError         the other side cannot be reached, or the exchange ended before its reply
    │   └── SilentError          the other side is connected, but nothing has come from it for too long
    ├── RefusedError             the other side answered Refused{reason}
    ├── FailedError              a stage further down failed: Failed{stage, reason}
    ├── StoppedError             the run cannot go on: what stopped it, and what to do
    │   └── FencedError          another trainer leads the run: this one has nothing more to say
    │   └── GoingBackError       a stage has lost its state: the run goes back to its last checkpoint
    ├── StorageError             what was to be kept on disk cannot be written or read back
    │   └── CheckpointError      what is to be resumed from is no checkpoint of this run, or is damaged
    ├── DeviceError              a device has been at one piece of work for so long that it will not come back
    ├── FittingError             a machine is too small for what it is to host: what is missing, what would fit
    ├── ScenarioError            a scenario's file is wrong: which line and key, what came, what is wanted
    ├── StuckError               a simulation in which nothing can happen any more
    ├── ConservationError        a simulation in which a microbatch is nowhere
    └── UsageError               a command line that cannot be carried out

An error says what was expected, what came, from whom, and what to do. A caller that wants to survive
anything this package raises catches `SwarmError`.
"""


class SwarmError(Exception):
    """Root of the tree; never raised itself."""


class ManifestError(SwarmError):
    """A manifest is wrong. The message names the field, what it got and what it wants."""


class DataError(SwarmError):
    """A text, a line of it or a chat template cannot serve for training data."""


class ModelError(SwarmError):
    """A checkpoint or a model description cannot be used."""


class CodecError(SwarmError):
    """A coded tensor is malformed, or a tensor cannot be coded."""


class NonFiniteError(CodecError):
    """NaN or infinity where a finite number is required."""


class WireError(SwarmError):
    """A message from the wire is malformed or larger than its limit."""


class ProtocolError(WireError):
    """A well-formed message that the protocol does not allow at this point."""


class TrustError(SwarmError):
    """A signature, delegation, term or identity does not prove what it claims."""


class OrganizerError(TrustError):
    """A run is another organizer's than the one who invited to it: no trainer of it can prove otherwise."""


class UnreachableError(SwarmError):
    """The other side cannot be reached, or an exchange ended before its closing message."""


class SilentError(UnreachableError):
    """The other side is connected, but has been silent for longer than the limit: frozen, or cut off."""


class RefusedError(SwarmError):
    """The other side answered `Refused`.

    Attributes: `reason` is one of `swarm.messages.Reason`'s names, `detail` is for people.
    """

    def __init__(self, reason: str, detail: str, by: str) -> None:
        super().__init__(f"{by} refused ({reason}): {detail}")
        self.reason = reason
        self.detail = detail
        self.by = by


class FailedError(SwarmError):
    """A visit ended in `Failed{stage, reason}`; only the caller of `stage` may retry it."""

    def __init__(self, stage: int, reason: str, detail: str = "") -> None:
        super().__init__(f"stage {stage} failed ({reason}){': ' if detail else ''}{detail}")
        self.stage = stage
        self.reason = reason
        self.detail = detail


class StoppedError(SwarmError):
    """The run cannot go on; the message says why and what to do."""


class FencedError(StoppedError):
    """A trainer of a higher term leads the run."""


class GoingBackError(StoppedError):
    """A stage's state is nowhere any more: this term is over, and the next one begins at the last checkpoint."""


class StorageError(SwarmError):
    """A disk is full or fails: what was to be kept there is not."""


class CheckpointError(StorageError):
    """What is to be resumed from is no checkpoint, one of another run, or damaged."""


class DeviceError(SwarmError):
    """A device hangs: what was given to it is lost, and nothing more can be."""


class FittingError(SwarmError):
    """Not even the least of what is wanted fits this machine. The message says what is needed, what there is, and what
    would fit.

    Attribute: `final` is False where less has been asked for meanwhile, so that it may go on.
    """

    def __init__(self, message: str, *, final: bool = True) -> None:
        super().__init__(message)
        self.final = final


class ScenarioError(SwarmError):
    """A scenario cannot be simulated. The message names file, line and key."""


class EmulationError(SwarmError):
    """An internet cannot be emulated on this machine, or what it did there counts for nothing."""


class StuckError(SwarmError):
    """On virtual time: every task waits and no timer is pending, or time ran past its limit."""


class ConservationError(SwarmError):
    """In a simulation: a microbatch that was issued is not counted, nobody works on it, and nobody was told."""


class UsageError(SwarmError):
    """A command line that cannot be carried out."""
