"""The seam to the directory: short-lived, signed records by which peers of a run find each other.

One record a (run, stage, peer); trainers stand in an index of runs besides, by which a run is found whose id is not
known, one record a trainer. Implementations: `dht_directory.py` (hivemind's DHTNode) and
`simulations/network.py` (in memory). Records are advice: whoever acts on one proves it on the stream it opens.
"""

from dataclasses import dataclass
from typing import Protocol

SEQUENCE_BITS = 32
"""The high bits of a record's sequence tell incarnations apart: a peer that comes again is not one that failed."""

TRAINER_STAGE = -1
"""The pseudo-stage under which the trainer of a run publishes itself."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a peer says of itself.

    `sequence` rises with every publication of this peer. `throughput`: visits a second, 0 if not yet measured.
    `queue`: open visits. `versions`: the versions of the stage that can serve, lowest and highest. `moving_to`: the
    stage that its machine is about to host in place of this one, -1 for none.
    """

    run: str
    stage: int
    peer: str
    addresses: tuple[str, ...]
    sequence: int
    protocol: int
    throughput: float = 0.0
    queue: int = 0
    versions: tuple[int, int] = (0, 0)
    moving_to: int = -1


class Directory(Protocol):
    """Publishes own records and reads those of others."""

    async def publish(self, record: Record, lifetime: float) -> None:
        """Stores a record for `lifetime` seconds. Raises `UnreachableError` if no node took it."""
        ...

    async def read(self, run: str, stage: int) -> tuple[Record, ...]:
        """The valid records of a stage, by ascending peer id; what is malformed or forged is left out.

        Raises `UnreachableError` if the directory cannot be read (callers keep their last good snapshot).
        """
        ...

    async def list_run(self, record: Record, lifetime: float) -> None:
        """Stores a trainer's record in the index of runs for `lifetime` seconds. Raises `UnreachableError`."""
        ...

    async def listed_runs(self) -> tuple[Record, ...]:
        """The valid records of the index, by ascending peer id. Raises `UnreachableError`."""
        ...
