"""A peer surveys its links while it serves: how long a question to a neighbouring stage takes, how fast bytes come.

One replica of the next stage (of the one before, at the end of the pipeline) at a time, in turn, about once a minute:
`PROBE_BYTES` a minute, 140 kbit/s. What goes up is not measured: the other end's figure is that. Only for people:
nothing is decided by it.

Errors: none; who does not answer is passed over.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from ..errors import RefusedError, UnreachableError, WireError
from ..protos import swarm_pb2 as pb
from .exchange import Pool
from .link import move_nothing
from .neighbours import Neighbours

FIRST_SECONDS, PAUSE_SECONDS = 5.0, 60.0
PROBE_BYTES = 1 << 20
KEPT = 8
SECONDS = 20.0
"""A link that takes longer is too slow to be measured so."""


@dataclass
class Survey:
    """The links of one member. `stage`: its own, of `stages`."""

    run_id: str
    stage: int
    stages: int
    pool: Pool
    neighbours: Neighbours
    _found: "OrderedDict[str, pb.LinkReport]" = field(default_factory=OrderedDict)

    def reports(self) -> list[pb.LinkReport]:
        """What was measured last, of each of the last few peers."""
        return list(self._found.values())

    async def run(self) -> None:
        """Never returns."""
        await asyncio.sleep(FIRST_SECONDS)
        turn = 0
        while True:
            at = self.stage + 1 if self.stage + 1 < self.stages else self.stage - 1
            if at >= 0:
                await self.neighbours.refresh(at)
                peers = self.neighbours.peers(at)
                if peers:
                    await self.measure(peers[turn % len(peers)])
                    turn += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def measure(self, peer: str) -> None:
        """One peer, by an empty answer and a long one."""
        try:
            async with asyncio.timeout(SECONDS):
                await move_nothing(self.run_id, self.pool, peer)  # the stream is open from here on
                trip = await move_nothing(self.run_id, self.pool, peer)
                whole = await move_nothing(self.run_id, self.pool, peer, down=PROBE_BYTES)
        except (UnreachableError, RefusedError, WireError, TimeoutError):
            return
        rate = 8 * PROBE_BYTES / max(whole - trip, 1e-6)
        self._found[peer] = pb.LinkReport(peer=peer, round_trip_us=int(1e6 * trip), rate=int(rate))
        self._found.move_to_end(peer)
        while len(self._found) > KEPT:
            self._found.popitem(last=False)
