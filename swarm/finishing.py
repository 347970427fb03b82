"""Finishing a step, from its last Done to the closed marker: reduced, committed in order, settled, and now and then
kept as a checkpoint.

Owns the order of these; `closing.py` does them. A Commit of the step that another trainer has sent is finished as it
is, whenever it becomes known.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..protos import swarm_pb2 as pb
from . import events, facts
from .admission import Admission
from .checkpointing import Checkpointing
from .closing import Closing, Unit, units_of
from .conditions import Signal
from .crew import Crew
from .driving import Driver
from .history import History
from .ledger import Ledger
from .manifest import Manifest
from .roster import Roster
from .steps import Step


@dataclass
class Finishing:
    """For a trainer. `version_of(step)`: the version that it computes at; `checkpointing()` may be None; `spawn` owns
    what is begun here."""

    manifest: Manifest
    steps: dict[int, Step]
    roster: Roster
    ledger: Ledger
    crew: Crew
    history: History
    closing: Closing
    admission: Admission
    driver: Driver
    signal: Signal
    version_of: Callable[[int], int]
    checkpointing: Callable[[], Checkpointing | None]
    emit: Callable[[events.Event], None]
    spawn: Callable[[Coroutine[Any, Any, None]], object]

    async def finish(self, step: Step, earlier: "asyncio.Task[None] | None") -> None:
        """Reduces, commits and settles one step, in order. `earlier`: the same of the step before."""
        units = units_of(self.manifest)
        making = asyncio.ensure_future(self._make_commit(step, units))
        adopting = asyncio.ensure_future(self.signal.wait_for(lambda: step.commit is not None))
        try:
            await asyncio.wait((making, adopting), return_when=asyncio.FIRST_COMPLETED)
            if making.done():
                commit = making.result()
            else:
                assert step.commit is not None
                commit = step.commit
                self.closing.adopt(step, commit)
        finally:
            making.cancel()
            adopting.cancel()
        await self.signal.wait_for(lambda: self._preceded(step))
        self.crew.take(commit)
        step.committed = True
        self.admission.committed()
        self.signal.notify()
        self._tell_commit(step, commit)
        await self.closing.announce(commit)
        if earlier is not None:
            # The closed marker moves in order; the Commit itself does not wait for the slowest replica of the last one.
            await earlier
        commit = await self.closing.settle(step, commit, units)
        self.emit(facts.settled(step, self.manifest.stages, self.manifest.microbatches))
        step.finish(self.manifest.stages, self.manifest.microbatches)
        self.driver.forget(self.closing.closed)
        checkpointing = self.checkpointing()
        if checkpointing is not None and checkpointing.is_due(self.closing.closed):
            self.spawn(checkpointing.take(self.closing.closed, commit))

    def _tell_commit(self, step: Step, commit: pb.Commit) -> None:
        replicas = tuple(len(self.roster.live(stage)) for stage in range(self.manifest.stages))
        self.emit(
            events.Stepped(
                step=step.number,
                loss=step.loss,
                grad_norm=step.grad_norm,
                tokens=step.tokens,
                seconds=step.seconds,
                version=self.version_of(step.number),
                replicas=replicas,
                reissued=step.totals(self.manifest.stages, self.manifest.microbatches).reissued,
                members=len(commit.crew),
            )
        )

    def _preceded(self, step: Step) -> bool:
        """Whether the step before is committed: steps are committed in order."""
        return step.number <= self.closing.closed or self.steps[step.number - 1].committed

    async def _make_commit(self, step: Step, units: Sequence[Unit]) -> pb.Commit:
        """Reduces every unit of a step whose microbatches are all done."""
        await self.signal.wait_for(lambda: self.ledger.complete(step.number, range(self.manifest.stages)))
        await self.signal.wait_for(lambda: self._preceded(step))
        # A replica whose state went wrong is found by the digests of the version; its work must not be reduced.
        await self.signal.wait_for(partial(self.roster.all_at, self.version_of(step.number)))
        async with asyncio.TaskGroup() as tasks:
            reductions = [tasks.create_task(self.closing.reduce(step, unit)) for unit in units]
        choices = sorted((choice for task in reductions for choice in task.result()), key=lambda choice: choice.stage)
        await self.signal.wait_for(lambda: self.crew.is_heard() and self.crew.has_majority())
        commit = self.closing.commit(step, choices)
        if self.crew.whole != set(commit.crew):
            commit.earlier_crew.extend(sorted(self.crew.whole))
        now = asyncio.get_running_loop().time()
        step.seconds = now - (step.began if step.began is not None else now)
        commit.past.CopyFrom(self.history.of(step, {}))
        return commit
