"""Carries out a fault schedule on a simulated swarm, and says what came of it.

A kill or a freeze never takes the last replica of a stage that is up to date: its work would be gone, or nobody left to
wait for. The event log holds every event of the trainer, every moment of every peer and every fault, with its virtual
time: the same schedule gives the same log, byte for byte.
"""

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from swarm_peer.errors import ConservationError
from swarm_peer.simulations.conservation import Conservation
from swarm_peer.simulations.devices import DURATIONS
from swarm_peer.simulations.network import Link
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.checkpoint import Checkpoint, MemoryCheckpoints
from swarm_peer.swarm.compute import BACKGROUND
from swarm_peer.swarm.events import Event, Stepped, WentBack
from swarm_peer.swarm.exact_backend import WIDTH, ExactBackend
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.keys import Identity, delegate
from swarm_peer.swarm.manifest import Manifest
from swarm_peer.swarm.peer import Parts
from swarm_peer.swarm.roster import Member
from swarm_peer.swarm.trainer import Trainer

from tests.chaos.crews import Crews
from tests.chaos.liars import flip_reduction, forge_term, repeat_runs, spoil_gradient, spoil_what_is_over
from tests.chaos.schedules import LEAVE, LOSE, MOVE, RESUME, STANDBY, TRAINER, WRONG_KINDS, Fault, Schedule
from tests.chaos.watched import WatchedBackend
from tests.exact import ORGANIZER, check_counts, exact_manifest, exact_swarm, memory
from tests.exact import TRAINER as TRAINER_IDENTITY

VIRTUAL_SECONDS = 400.0
"""A schedule that takes longer has stuck."""

STANDBY_IDENTITY, ELSEWHERE_IDENTITY = Identity.from_seed("standby"), Identity.from_seed("another machine")
TRAINER_SECONDS = 4.0
"""A killed trainer comes back this much later than its schedule says, when the standby has long taken over."""

QUIET_SECONDS = 10.0
"""After a state went wrong, nothing else happens to that stage for this long: the others must be able to outvote it."""

CODED_BYTES = 8 * WIDTH
"""Of a tensor that a visit on the exact backend sends."""

SLOWDOWN = 10.0
THIN_BYTES_PER_SECOND = 4000.0


def manifest_of(schedule: Schedule) -> Manifest:
    manifest = exact_manifest(
        stages=schedule.stages,
        steps=schedule.steps,
        batch=schedule.batch,
        staleness=schedule.staleness,
        replicas=schedule.replicas,
    )
    settings = manifest.settings
    pace = {"standby": schedule.standby, "patience": schedule.patience}
    pipeline = settings.pipeline.model_copy(update=pace)
    limits = settings.limits
    if schedule.gradients:
        apart = schedule.gradients * ExactBackend(0, 0, schedule.stages).gradient_bytes
        limits = limits.model_copy(update={"gradient_bytes": apart})
    if schedule.visits:
        kept = {"visit_bytes": schedule.visits * CODED_BYTES, "spill_bytes": schedule.spilled * CODED_BYTES}
        limits = limits.model_copy(update=kept)
    return manifest.model_copy(
        update={"settings": settings.model_copy(update={"pipeline": pipeline, "limits": limits})}
    )


def delegations_of(schedule: Schedule, manifest: Manifest) -> Mapping[Identity, bytes]:
    identities = [TRAINER_IDENTITY, STANDBY_IDENTITY] if schedule.standby else [TRAINER_IDENTITY]
    return {identity: delegate(ORGANIZER, manifest.run_id, identity.public_hex) for identity in identities}


def swarm_of(schedule: Schedule, chaos: "Chaos") -> SimulatedSwarm:
    """The swarm of a schedule on the exact backend."""
    manifest = manifest_of(schedule)
    swarm = exact_swarm(
        manifest,
        seed=schedule.seed,
        latency=schedule.latency,
        durations={**DURATIONS, BACKGROUND: schedule.background},
        disk_bytes=schedule.disk * CODED_BYTES if schedule.visits else math.inf,
        delegations=delegations_of(schedule, manifest),
        watch=chaos.watch,
        emit=chaos.emit,
    )
    if schedule.checkpoints:
        swarm.checkpoints = memory(manifest, schedule.checkpoints)
    swarm.parts = Parts(
        backend=lambda manifest, stage: WatchedBackend(manifest.settings.seed, stage, manifest.stages),
        arithmetic=swarm.parts.arithmetic,
    )
    return swarm


@dataclass
class Chaos:
    """One schedule being carried out: a run that takes longer than `limit` virtual seconds has stuck. `done`: the
    faults that could be carried out; `most_open`, `most_kept`: the most visits that any peer had open at once, and
    reductions that it kept."""

    schedule: Schedule
    limit: float = VIRTUAL_SECONDS
    done: list[Fault] = field(default_factory=list)
    finished_at: float = 0.0

    def __post_init__(self) -> None:
        self._waiting = [[fault, fault.trigger.nth] for fault in self.schedule.faults if fault.trigger]
        self._down: dict[str, int] = {}
        self._quiet: dict[int, float] = {}
        self._parted: list[tuple[str, str]] = []
        self._crews = Crews(
            lambda error: self.swarm.fail(error), map(self._name, map("peer {}".format, range(self.schedule.peers)))
        )
        self._noted: list[tuple[float, str, Event | Moment | dict[str, Any]]] = []
        self._spoiled = 0
        self.most_open = self.most_kept = 0
        self.swarm: SimulatedSwarm
        self._conservation: Conservation

    def simulate(self, build: Callable[[Schedule, "Chaos"], SimulatedSwarm] = swarm_of) -> dict[str, Any]:
        """Runs the schedule to its end: the report. Raises what the run raises, also `ConservationError`."""

        async def main() -> dict[str, Any]:
            self.swarm = build(self.schedule, self)
            self._conservation = Conservation(self.swarm)
            self.swarm.directory.delay = self.schedule.directory_delay
            self.swarm.directory.stale = self.schedule.directory_stale
            for fault in self.schedule.faults:
                if fault.trigger is None:
                    self.swarm.later(fault.at, partial(self._carry_out, fault, fault.target))
            report = await self.swarm.run()
            self.finished_at = self.swarm.now
            self._check_that_nobody_is_left_waiting()
            return report

        return run(main(), limit=self.limit)

    @property
    def computed(self) -> int:
        """How many forwards were begun."""
        return sum(isinstance(what, Moment) and what.name == "forward" for _, _, what in self._noted)

    @property
    def log(self) -> list[str]:
        """Everything that has happened, as JSON lines; kept as it comes, made text when it is asked for."""
        return [json.dumps({"t": round(at, 6), "by": source, **_to_json(what)}) for at, source, what in self._noted]

    # ---- what happens

    def emit(self, event: Event) -> None:
        if isinstance(event, WentBack) and self.schedule.standby:
            self._crews.went_back(self.swarm, event)
        if isinstance(event, Stepped if self.schedule.standby else WentBack):
            self._spoil()
        self._note("trainer", event)

    def _spoil(self) -> None:
        """An epoch has begun for good: alone, a trainer never goes on with an earlier one; with a standby, which might,
        not once a majority has made a step in it. What is left of those before may not count from now on."""
        lineage = self._leader.beginning.lineage
        if lineage.number > self._spoiled:
            self._spoiled = lineage.number
            spoil_what_is_over(self.swarm, lineage)

    @property
    def _leader(self) -> Trainer:
        """The trainer of the highest term; with a standby, of those that have begun."""
        begun = [trainer for trainer in self.swarm.trainers if trainer.began]
        return max(begun, key=lambda trainer: trainer.term.number, default=self.swarm.trainer)

    def _check_that_nobody_is_left_waiting(self) -> None:
        """Whoever came while nobody had the state of its stage is taken up when somebody has it again."""
        if not self.swarm.is_led:  # every coordinator was killed when all was over, and has started again
            return
        roster = self.swarm.trainer.roster
        for member in roster.live():
            if member.loaded and not member.sent_away and roster.ready(member.stage):
                raise AssertionError(f"{member.peer} waits for a state of stage {member.stage}, which others have")

    def watch(self, swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        self._note(peer, moment)
        host, reducer = swarm.peers[peer].host, swarm.peers[peer]._reducer
        if moment.name == "queued" and host is not None and reducer is not None:
            check_counts(host.visits)
            self.most_open = max(self.most_open, host.visits.open)
            self.most_kept = max(self.most_kept, len(reducer.kept))
        if moment.name == "applied":
            self._check_update(peer, moment.stage, moment.step + 1)
            if host is not None and self.schedule.standby:
                self._crews.applied(swarm, host, moment.step)
        for entry in list(self._waiting):
            fault, _ = entry
            trigger = fault.trigger
            assert trigger is not None
            if (trigger.name, trigger.stage, trigger.step) == (moment.name, moment.stage, moment.step):
                entry[1] -= 1
                if entry[1] < 0:
                    self._waiting.remove(entry)
                    if fault.kind in WRONG_KINDS:  # at once: what is wrong is in what the moment leaves behind
                        self._go_wrong(fault, fault.target or peer, moment)
                        continue
                    swarm.later(fault.at, partial(self._carry_out, fault, fault.target or peer))

    def _check_update(self, peer: str, stage: int, version: int) -> None:
        """Replicas that the trainer leads make a version of the very same bytes, those of the attempt that their Commit
        names: with floats, equal sums would not be enough. (A Commit that only a few had heard may have been made again
        without them; with floats their digests are judged when they come again.)"""
        led = [member.peer for member in self.swarm.trainer.roster.ready(stage) if member.peer not in self.swarm.killed]
        named, made = self._made_of(peer, stage, version)
        for other in led if peer in led else ():
            its_named, its = self._made_of(other, stage, version)
            if its and its_named == named and its != made:
                self.swarm.fail(AssertionError(f"{peer} and {other} made version {version} of other bytes"))

    def _made_of(self, peer: str, stage: int, version: int) -> tuple[tuple[int, int], tuple[bytes, ...]]:
        """The attempt that the Commit of a version names, and what the version was made of there."""
        host = self.swarm.peers[peer].host
        if host is None or host.stage != stage or not isinstance(host.backend, WatchedBackend):
            return (0, 0), ()
        if host.authority.epoch != self.swarm.trainer.beginning.epoch:
            return (0, 0), ()
        commit = host.recollection.commits.get(version - 1)
        choices = [choice for choice in commit.choices if choice.stage == stage] if commit is not None else []
        named = (choices[0].term, choices[0].attempt) if choices else (0, 0)
        return named, host.backend.made_of.get(version, ())

    def _note(self, source: str, what: Event | Moment | dict[str, Any]) -> None:
        self._noted.append((asyncio.get_running_loop().time(), source, what))
        if self.swarm.peers:
            try:
                self._conservation.check()
            except ConservationError as error:
                self.swarm.fail(error)

    # ---- faults

    def _carry_out(self, fault: Fault, target: str) -> None:
        if not self.swarm.is_led:
            return  # it strikes who leads, or whoever the trainer thinks is not the last of its stage
        name = self._name(target)
        trainer = fault.target == TRAINER
        if self._carried_out(fault, name, trainer):
            self.done.append(fault)
            self._note("chaos", {"event": fault.kind, "peer": name, "other": fault.other, "seconds": fault.seconds})

    def _go_wrong(self, fault: Fault, target: str, moment: Moment) -> None:
        name = self._name(target)
        if not self.swarm.is_led or name in self.swarm.killed or name in self._down or name not in self.swarm.peers:
            return
        if fault.kind == "flip":
            # Nothing else may befall this stage meanwhile: a member that answers alone is believed.
            done = not self._down and flip_reduction(self.swarm, name, moment)
            if done:
                self._quiet[moment.stage] = self.swarm.now + QUIET_SECONDS
        elif fault.kind == "nan":
            done = spoil_gradient(self.swarm, name)
        elif fault.kind == "forge":
            done = forge_term(self.swarm, name)
        else:
            done = repeat_runs(self.swarm, name, fault.seconds)
        if done:
            self.done.append(fault)
            self._note("chaos", {"event": fault.kind, "peer": name, "seconds": fault.seconds})

    def _name(self, target: str) -> str:
        if target == TRAINER:
            return self.swarm.trainer.transport.peer_id
        if target == STANDBY:
            return STANDBY_IDENTITY.peer_id
        return Identity.from_seed(target).peer_id if target.startswith("peer ") else target

    def _carried_out(self, fault: Fault, name: str, trainer: bool) -> bool:
        swarm = self.swarm
        if fault.kind == LOSE:
            return self._lose(fault)
        if fault.kind == RESUME:
            return self._resume(fault, name)
        if fault.kind == "join":
            swarm.start_peer(len(swarm.peers), None)
            return True
        if name in swarm.killed or name not in swarm.network.nodes or name in self._down:
            return False
        if not trainer and self._is_quiet(name):
            return False
        if fault.kind == LEAVE and not swarm.trainer.steps:
            return False  # the run has not begun: it would wait for as many peers as it is to begin with
        if trainer and fault.kind == "kill" and not self._followed():
            return False
        needs_another = fault.kind in ("kill", "freeze", "isolate", "corrupt", "part", LEAVE, MOVE) or (
            fault.kind == "hang" and fault.seconds == math.inf
        )
        if needs_another and not trainer and not self._spare(name, fault.seconds):
            return False
        getattr(self, "_" + fault.kind.replace(" ", "_").replace("-", "_"))(fault, name, trainer)
        return True

    def _is_quiet(self, name: str) -> bool:
        host = self.swarm.peers[name].host
        return host is not None and self.swarm.now < self._quiet.get(host.stage, 0.0)

    def _followed(self) -> bool:
        """Whether another coordinator has followed the run: what is past is known to the coordinators alone."""
        others = [c for name, c in self.swarm.coordinators.items() if c.trainer is not self.swarm.trainer]
        return all(c.transport.peer_id not in (*self.swarm.killed, *self._down) and c.follows for c in others)

    def _spare(self, name: str, seconds: float) -> bool:
        """Whether its stage has another replica that is up to date and well, and stays if `name` is gone for good."""
        member = self.swarm.trainer.roster.by_peer(name)
        if member is None or not member.ready:
            return False
        others = [
            other.peer
            for other in self.swarm.trainer.roster.ready(member.stage)
            if other is not member and not (seconds == math.inf and self._is_going(other))
        ]
        return any(other not in self.swarm.killed and other not in self._down for other in others)

    def _is_going(self, member: Member) -> bool:
        moves = any(peer.replaces == member.number for peer in self.swarm.peers.values())
        return moves or bool(self.swarm.peers[member.peer].leaving)

    def _back(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Undoes a fault after `seconds`; meanwhile the peer counts as down."""
        self._down[name] = 1

        def undo() -> None:
            del self._down[name]
            call()

        if seconds != math.inf:
            self.swarm.later(seconds, undo)

    def _lose(self, fault: Fault) -> bool:
        """Kills all replicas of a stage, which come again one after the other."""
        stage = int(fault.target.removeprefix("stage "))
        found = [name for name in self.swarm.live_at(stage) if name not in self._down]
        for number, name in enumerate(found if self.swarm.trainer.steps else ()):
            self.swarm.kill(name)
            again = partial(self._restart_misloading if fault.other and not number else self._restart, name)
            self._back(name, fault.seconds * (1 + number), again)
        return bool(found) and bool(self.swarm.trainer.steps)

    def _restart(self, name: str) -> None:
        self._come_together(name)
        self.swarm.restart(name)

    def _come_together(self, name: str) -> None:
        """Who is started again reaches those that it could not: it may come to another stage, and be the only one there
        for those that host the stage before."""
        for pair in [pair for pair in self._parted if name in pair]:
            self._parted.remove(pair)
            self.swarm.network.heal(*pair)

    def _restart_misloading(self, name: str) -> None:
        self._restart(name)
        peer = self.swarm.peers[name]

        def misload(stage: int) -> None:
            assert peer.host is not None
            assert isinstance(peer.host.backend, WatchedBackend)
            peer.host.backend.misload_next = True

        peer.placed = misload

    def _resume(self, fault: Fault, name: str) -> bool:
        """Kills the only trainer there is, and has another one begin at the last checkpoint."""
        kept = self.swarm.checkpoints
        assert isinstance(kept, MemoryCheckpoints)
        if name in self.swarm.killed or name in self._down or self.swarm.trainer.over:
            return False
        last = kept.newest(self.swarm.trainer.beginning.lineage)
        if last is None:
            return False
        self.swarm.kill(name)
        resume = partial(self._resume_elsewhere if fault.other else self.swarm.resume, name, last)
        self._back(name, fault.seconds, resume)
        return True

    def _resume_elsewhere(self, name: str, last: Checkpoint) -> None:
        """As `SimulatedSwarm.resume`, by a coordinator who is another one."""
        swarm, run_id = self.swarm, self.swarm.manifest.run_id
        swarm.delegations = {ELSEWHERE_IDENTITY: delegate(ORGANIZER, run_id, ELSEWHERE_IDENTITY.public_hex)}
        del swarm.coordinators[name]
        swarm.killed[swarm.killed.index(name)] = ELSEWHERE_IDENTITY.peer_id
        swarm.resume(ELSEWHERE_IDENTITY.peer_id, last)

    def _move(self, fault: Fault, name: str, trainer: bool) -> None:
        self.swarm.move(name, int(fault.other.removeprefix("stage ")))

    def _kill(self, fault: Fault, name: str, trainer: bool) -> None:
        self.swarm.kill(name)
        seconds = fault.seconds + (TRAINER_SECONDS if trainer else 0.0)
        self._back(name, seconds, lambda: self._restart(name))

    def _leave(self, fault: Fault, name: str, trainer: bool) -> None:
        peer = self.swarm.peers[name]
        peer.leave("enough for today")

        def come_again() -> None:
            if self.swarm.peers[name] is not peer or name in self.swarm.killed:
                return
            if name not in self.swarm.endings:
                self.swarm.later(1.0, come_again)
                return
            self._come_together(name)
            self.swarm.start_peer(*self.swarm.numbers[name])

        self.swarm.later(fault.seconds, come_again)

    def _freeze(self, fault: Fault, name: str, trainer: bool) -> None:
        self.swarm.freeze(name)
        self._back(name, fault.seconds, lambda: self.swarm.thaw(name))

    def _isolate(self, fault: Fault, name: str, trainer: bool) -> None:
        others = [other for other in self.swarm.network.nodes if other != name]
        cut = [other for other in others if not self.swarm.network.is_cut(name, other)]
        for other in cut:
            self.swarm.network.cut(name, other)
        self._back(name, fault.seconds, lambda: [self.swarm.network.heal(name, other) for other in cut] and None)

    def _split(self, fault: Fault, name: str, trainer: bool) -> None:
        """Cuts the swarm in two: the trainer with one replica of every stage, and the rest."""
        stages = range(self.schedule.stages)
        here = [name, *(live[0] for live in map(self.swarm.live_at, stages) if live)]
        there = [other for other in self.swarm.network.nodes if other not in here]
        pairs = [(one, other) for one in here for other in there if not self.swarm.network.is_cut(one, other)]
        for one, other in pairs:
            self.swarm.network.cut(one, other)
        self.swarm.later(fault.seconds, lambda: [self.swarm.network.heal(*pair) for pair in pairs] and None)

    def _cut(self, fault: Fault, name: str, trainer: bool, both: bool = True) -> None:
        other = self._name(fault.other)
        if other != name and not self.swarm.network.is_cut(name, other):
            self.swarm.network.cut(name, other, both=both)
            if fault.seconds != math.inf:
                self.swarm.later(fault.seconds, lambda: self.swarm.network.heal(name, other))

    def _part(self, fault: Fault, name: str, trainer: bool) -> None:
        member = self.swarm.trainer.roster.by_peer(name)
        assert member is not None
        other = next(other for other in self.swarm.trainer.roster.ready(member.stage) if other is not member)
        self.swarm.network.cut(name, other.peer)
        self._parted.append((name, other.peer))

    def _one_way_cut(self, fault: Fault, name: str, trainer: bool) -> None:
        self._cut(fault, name, trainer, both=False)

    def _stall(self, fault: Fault, name: str, trainer: bool) -> None:
        self.swarm.network.stall(name, self._name(fault.other), fault.seconds)

    def _slow(self, fault: Fault, name: str, trainer: bool) -> None:
        device = self.swarm.devices[name]
        device.slowdown = SLOWDOWN
        self.swarm.later(fault.seconds, lambda: setattr(device, "slowdown", 1.0))

    def _hang(self, fault: Fault, name: str, trainer: bool) -> None:
        device = self.swarm.devices[name]
        device.hang()
        if fault.seconds == math.inf:
            self._down[name] = 1
        else:
            self.swarm.later(fault.seconds, device.resume)

    def _thin(self, fault: Fault, name: str, trainer: bool) -> None:
        links = self.swarm.network.links
        links[name] = Link(up=THIN_BYTES_PER_SECOND, down=THIN_BYTES_PER_SECOND)
        self.swarm.later(fault.seconds, lambda: links.pop(name, None) and None)

    def _corrupt(self, fault: Fault, name: str, trainer: bool) -> None:
        host = self.swarm.peers[name].host
        if host is None or len(self.swarm.trainer.roster.ready(host.stage)) < 3 or self._down:
            return
        assert isinstance(host.backend, WatchedBackend)
        host.backend.corrupt_next = True
        self._quiet[host.stage] = self.swarm.now + QUIET_SECONDS


def _to_json(what: Event | Moment | dict[str, Any]) -> dict[str, Any]:
    if isinstance(what, Event):
        return what.to_json()
    if isinstance(what, Moment):
        return {"event": what.name, "stage": what.stage, "step": what.step, "index": what.index}
    return what
