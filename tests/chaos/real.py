"""Carries out a seeded fault schedule on real processes, and says whether the run kept its promises.

A swarm as `demo --model tiny --replicas 3` starts it, and a standby; every link goes through a loopback proxy, whose
addresses are the only ones that anybody announces. What goes wrong and when is drawn from the seed (`real_faults.py`);
whom it hits is decided when the time has come, from those whom it may hit: never the last up-to-date replica of a stage
(but where all of them are to be lost), and a trainer only while another coordinator follows it. Who was killed or has
left is started again under its identity, a trainer as standby; a machine that joined in the middle leaves for good. The
trainer moves machines from stage to stage as it sees fit: `rebalance` is short here. Wall-clock time: the same seed
draws the same faults, not the same run.

Fails with `StuckError` when the run does not end in time, and with `AssertionError` for a promise that it broke. A
process that ends with an error of its own breaks one.
"""

import heapq
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from swarm_peer.errors import StuckError
from swarm_peer.peer.local_swarm import Child, LocalSwarm, child_environment
from swarm_peer.peer.reference import run_reference
from swarm_peer.peer.watching import Watching
from swarm_peer.peer.zygote import Zygote, is_possible
from swarm_peer.simulations.loopback_proxy import ProxyNet
from swarm_peer.swarm.flags import EXIT_ERROR
from swarm_peer.swarm.freezing import prepare
from swarm_peer.swarm.manifest import parse_settings
from swarm_peer.swarm.shared_folder import SharedFolder

from tests.chaos.real_faults import JOIN, KILL, LEAVE, LOSE, TRAINER_KILL, Pace, RealFault, draw_real

STAGES, REPLICAS = 3, 3
BATCH = 64
STEPS_A_MINUTE = 12
LEAST_STEPS = 8
"""A microbatch that crosses links of `DELAY_SECONDS` takes over a second and 19 may be in flight, so a step takes about
five seconds on any machine that computes faster than that. Long steps, because few can be compared: the reference
itself, its learning rate changed by 3e-7, is 6e-6 away from itself in loss after 60 steps and 3e-3 after 92."""

DELAY_SECONDS = 0.2
LOSS_TOLERANCE = 1e-3

THIN_BYTES_PER_SECOND = 20_000.0
SLOW_DELAY_SECONDS = 0.5
CHECKPOINT_EVERY = 5
PATIENCE_SECONDS = 5.0
REBALANCE_SECONDS = 20.0
MOST_JOINED = 2
"""How many machines more than the run began with there may be at once."""

PORTS = 2
"""A machine that moves to another stage hosts two for a while."""

NOBODY_ANSWERED, STARTS_IN_VAIN = "initial peers answer", 10
"""What a program says that was started and reached nobody, and how many times in a run that is no fault."""

RETRY_SECONDS, RETRIES = 0.5, 60
"""How often, and how many times, a fault that may hit nobody now is tried again."""


MOVES = "it moves to stage"
"""Why a member leaves whose machine does not."""

LEARNING_RATE = 3e-3


def manifest_toml(
    seed: int, steps: int, learning_rate: float = LEARNING_RATE, batch: int = BATCH, mode: str = "full"
) -> str:
    return f"""
seed = {seed}
[model]
name = "tiny"
stages = {STAGES}
[train]
mode = "{mode}"
steps = {steps}
batch = {batch}
[data]
sequence_length = 64
[optimizer]
learning_rate = {learning_rate}
warmup_steps = 3
[pipeline]
standby = true
min_replicas = {REPLICAS}
patience = {PATIENCE_SECONDS}
rebalance = {REBALANCE_SECONDS}
"""


@dataclass
class RealChaos:
    """One run. `log`: what happened, JSON lines; `done`: the faults carried out; `happened`: how often the swarm itself
    moved, went back and the like; `tell` is given lines for people; `look` sees the processes, and is told who leads,
    every `look_seconds` until the last fault; `spared`: a peer that is neither killed nor asked to leave; `forked`:
    processes begin with their imports made."""

    seed: int
    seconds: float
    tell: Callable[[str], None]
    pace: Pace = field(default_factory=Pace)
    look: Callable[[LocalSwarm, str], None] | None = None
    look_seconds: float = 5.0
    spared: str = ""
    learning_rate: float = LEARNING_RATE
    batch: int = BATCH
    mode: str = "full"
    steps_a_minute: int = STEPS_A_MINUTE
    environment: dict[str, str] = field(default_factory=dict)
    logs: Path | None = None
    forked: bool = True
    log: list[str] = field(default_factory=list)
    done: list[dict[str, Any]] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.faults = draw_real(self.seed, self.seconds, self.pace)
        steps = max(LEAST_STEPS, round(self.seconds / 60 * self.steps_a_minute))
        self.toml = manifest_toml(self.seed, steps, self.learning_rate, self.batch, self.mode)
        self.report: dict[str, Any] | None = None
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._began = time.monotonic()
        self._started = False
        self._watching = Watching()
        self._down: set[str] = set()
        self._fallen: set[int] = set()
        self._departed: set[int] = set()
        self._look_at = self._began
        self._followers: dict[str, float] = {}
        self._first: dict[str, Any] = {}
        self._addresses: dict[str, list[str]] = {}
        self._net: ProxyNet
        self.swarm: LocalSwarm

    # ---- the run

    def run(self) -> dict[str, Any]:
        """To the end of the run and of its processes: the report, to be given to `check`."""
        folder = SharedFolder.temporary()
        with ProxyNet(delay=DELAY_SECONDS, ports=PORTS) as self._net:
            state = {"SWARM_PEER_STATE": str(folder.path / "state")}
            zygote = None
            if self.forked and is_possible():
                zygote = Zygote(child_environment(), folder.path / "zygote.log")
            self.swarm = LocalSwarm("tiny", folder, {**self.environment, **state}, zygote)
            self._later(120.0, self._overdue)
            try:
                self.swarm.start_coordinator(self.toml, *self._coordinator_flags("coordinator"))
                for event in self.swarm.events(self._act, pause=0.05):
                    self._see(event)
                    if self.report is not None:
                        break
            finally:
                for child in self.swarm.children.values():
                    self._thaw(child)
                self.swarm.close()
                if zygote:
                    zygote.close()
                self._keep_logs(folder.path)
                folder.leave()
        assert self.report is not None, "every coordinator ended, and none has a report"
        return self.report

    def _flags(self, name: str) -> tuple[str, ...]:
        return ("--listen", self._net.listen_for(name), "--announce", self._net.address_for(name))

    def _coordinator_flags(self, name: str) -> tuple[str, ...]:
        return (*self._flags(name), "--checkpoint-every", str(CHECKPOINT_EVERY))

    def _keep_logs(self, folder: Path) -> None:
        if self.logs is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.log"):
                shutil.copy(path, self.logs)
            (self.logs / "events.jsonl").write_text("\n".join(self.log) + "\n", encoding="utf-8")

    def check(self, report: dict[str, Any]) -> None:
        """P1 and P2: each microbatch counted once, equal states, the reference's loss at every step."""
        settings = parse_settings(self.toml)
        torch.set_num_threads(1)  # more of them only wait for each other at this size
        prepared = prepare(settings, organizer="0" * 64, nonce="0" * 32)
        expected = run_reference(prepared.manifest, prepared.corpus, prepared.heldout, prepared.folder)
        ledger = report["ledger"]
        assert (ledger["lost"], ledger["duplicated"]) == (0, 0)
        assert ledger["microbatches"] == settings.train.steps * self.batch
        assert len(report["steps"]) == settings.train.steps
        for ours, theirs in zip(report["steps"], expected["steps"], strict=True):
            assert (ours["step"], ours["version"]) == (theirs["step"], theirs["version"])
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=LOSS_TOLERANCE), f"step {ours['step']}"
        for replica in report["replicas"]:
            assert replica["version"] == settings.train.steps
            assert len(set(replica["digests"].values())) == 1, f"stage {replica['stage']}: the states differ"

    # ---- time

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._due, (time.monotonic() + seconds, self._number, call))

    def _act(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()
        if self.look is not None and self._look_at <= time.monotonic() and self._time() <= self.seconds:
            self._look_at = time.monotonic() + self.look_seconds
            self.look(self.swarm, self._watching.leader)
        for child in self.swarm.children.values():
            self._see_end(child)

    def _see_end(self, child: Child) -> None:
        """Nobody goes of its own accord: who was killed or asked to leave is `down`. At the end of the run all go, with
        nothing to complain of. Who was started when it could reach nobody (a cut, a dead coordinator, a machine too
        busy to answer) is started again, as whoever looks after such a program does."""
        code, process = child.process.poll(), child.process.pid
        if code is None or child.name in self._down or process in self._fallen:
            return
        self._fallen.add(process)
        words = self.swarm.last_words(child.name)
        self._note({"event": "ended", "target": child.name, "code": code, "words": words})
        in_vain = code == EXIT_ERROR and NOBODY_ANSWERED in _error_of(child)
        if in_vain and self.happened["start in vain"] < STARTS_IN_VAIN:
            self.happened["start in vain"] += 1
            self._start_again(child)
        elif code:
            raise AssertionError(f"{child.name} ended with exit code {code}:\n{words}")

    def _overdue(self) -> None:
        words = "\n".join(f"--- {name}:\n{self.swarm.last_words(name)[-500:]}" for name in self.swarm.children)
        raise StuckError(f"the run is not at its end after {self._time():.0f} s\n{words}")

    # ---- what the coordinators say

    def _see(self, event: dict[str, Any]) -> None:
        kind, by = event["event"], event["by"]
        leads = self._watching.see(event)
        if kind != "visited":
            self._note({key: value for key, value in event.items() if key != "report"})
        if kind == "listening":
            self._addresses[by] = event["addresses"]
        if kind == "listening" and not self._first:
            self._first = event
            self.swarm.start_standby(event["run_id"], event["addresses"], *self._coordinator_flags("standby"))
            for number in range(STAGES * REPLICAS):
                self._start_peer(number)
        elif kind == "leads":
            self._followers.clear()
            self.happened["term"] += 1
        elif kind in ("moved", "went-back", "left") and leads and not event.get("error"):
            self.happened[kind] += kind != "left" or self._is_departure(event)
            told = {key: event[key] for key in ("stage", "target", "step") if key in event}
            self.tell(f"{self._time():6.1f} s  {kind} {told}")
        elif kind == "follows":
            self._followers[by] = time.monotonic()
        elif kind == "ended":
            assert event["error"] == "", event["error"]
            self.report = event["report"]
        elif kind == "stepped" and leads:
            self.tell(f"{self._time():6.1f} s  step {event['step']}: loss {event['loss']:.4f}")
            if not self._started:
                self._start_faults()

    def _is_departure(self, left: dict[str, Any]) -> bool:
        """Whether a machine leaves, and is not counted yet: one that moves stays, and as long as it moves it has two
        members, both of which leave with it."""
        process = self.swarm.child_of(left["peer"]).process.pid
        if MOVES in left["why"] or process in self._departed:
            return False
        self._departed.add(process)
        return True

    def _start_faults(self) -> None:
        """The schedule's time begins with the first step; so does that by which the run must be at its end."""
        self._started = True
        self._due.clear()
        self._later(4 * self.seconds + 120.0, self._overdue)
        for fault in self.faults:
            self._later(fault.at, lambda fault=fault: self._carry_out(fault))

    def _start_peer(self, number: int) -> None:
        self.swarm.start_peer(number, self._first["run_id"], self._known(), *self._flags(f"peer-{number}"))

    def _known(self) -> list[str]:
        """What a newcomer is told: each coordinator, for one of them may be dead."""
        return [address for addresses in self._addresses.values() for address in addresses]

    # ---- faults

    def _carry_out(self, fault: RealFault, tries: int = 0) -> None:
        target = self._target(fault)
        if target is not None:
            what = self._strike(fault, target)
            self.done.append({**asdict(fault), "target": target, **what})
            self._note({"event": "chaos", **self.done[-1]})
            self.tell(f"{self._time():6.1f} s  {fault.kind} {target} {what or ''}")
        elif tries < RETRIES:
            self._later(RETRY_SECONDS, lambda: self._carry_out(fault, tries + 1))

    def _target(self, fault: RealFault) -> str | None:
        """The name of the process that it hits, of the stage that is lost; None if it may hit nobody now."""
        if fault.kind == TRAINER_KILL:
            return self._leader_that_is_followed()
        if fault.kind == JOIN:
            joined = [child for child in self._machines() if child.alive and self._has_joined(child)]
            return f"peer-{len(self._machines())}" if len(joined) < MOST_JOINED else None
        if fault.kind == LOSE:
            stages = [stage for stage in range(STAGES) if self.spared not in self._hosting(stage)]
            well = not self._down and all(self._hosting(stage) for stage in range(STAGES))
            return str(stages[int(fault.choice * len(stages))]) if well else None
        down = {
            peer
            for child in self._machines()
            if child.name in self._down or not child.alive
            for peer in self.swarm.peers_of(child)
        }
        peers = self._watching.may_fail(down, lambda peer: self.swarm.child_of(peer).name)
        names = [self.swarm.child_of(peer).name for peer in peers]
        if fault.kind in (KILL, LEAVE):
            names = [name for name in names if name != self.spared]
        if fault.kind == LEAVE:  # else a swarm would only ever grow
            names = [name for name in names if self._has_joined(self.swarm.children[name])] or names
        return names[int(fault.choice * len(names))] if names else None

    def _leader_that_is_followed(self) -> str | None:
        well = [name for name in self._followers if name not in self._down and self.swarm.children[name].alive]
        followed = any(time.monotonic() > self._followers[name] + 2.0 for name in well)
        leader = self._watching.leader
        return leader if followed and leader not in self._down else None

    def _machines(self) -> list[Child]:
        return [child for child in self.swarm.children.values() if child.peer]

    def _has_joined(self, child: Child) -> bool:
        """Whether it came in the middle of the run."""
        return _number_of(child) >= STAGES * REPLICAS

    def _strike(self, fault: RealFault, name: str) -> dict[str, Any]:
        if fault.kind == JOIN:
            self._start_peer(len(self._machines()))
            return {}
        if fault.kind == LOSE:
            hosts = self._hosting(int(name))
            for host in hosts:
                self._kill(self.swarm.children[host], fault.seconds)
            return {"killed": hosts}
        child = self.swarm.children[name]
        if fault.kind in (KILL, TRAINER_KILL):
            self._kill(child, fault.seconds)
            return {}
        if fault.kind == LEAVE:
            self._down.add(name)
            self.swarm.ask_to_leave(child)
            self._see_off(child, fault.seconds)
            return {}
        if fault.kind == "freeze":
            self.swarm.freeze(child)
            self._back(name, fault.seconds, lambda: self._thaw(child))
            return {}
        return self._spoil_link(fault, name)

    def _hosting(self, stage: int) -> list[str]:
        """The machines that host a stage, up to date or not, as far as the trainer knows."""
        peers = {peer for peer, at in self._watching.stages.items() if at == stage}
        return [child.name for child in self._machines() if child.alive and peers & self.swarm.peers_of(child)]

    def _kill(self, child: Child, seconds: float) -> None:
        self.swarm.kill(child)
        self._back(child.name, seconds, lambda: self._start_again(child))

    def _see_off(self, child: Child, seconds: float) -> None:
        """Starts a machine again when it has left; one that had joined in the middle has gone for good."""
        code = child.process.poll()
        if code is None:
            self._later(RETRY_SECONDS, lambda: self._see_off(child, seconds))
            return
        assert code == 0, f"{child.name} left with exit code {code}:\n{self.swarm.last_words(child.name)}"
        self._note({"event": "gone", "target": child.name})
        self._fallen.add(child.process.pid)
        if self._has_joined(child):
            self._down.discard(child.name)
        else:
            self._back(child.name, seconds, lambda: self._start_again(child))

    def _spoil_link(self, fault: RealFault, name: str) -> dict[str, Any]:
        others = [other for other in self.swarm.children if other != name]
        other = others[int(fault.other * len(others))]
        if fault.kind in ("cut", "one-way cut"):
            self._net.cut(name, other, both=fault.kind == "cut")
            self._back(name, fault.seconds, lambda: self._net.heal(name, other))
        elif fault.kind == "stall":
            self._net.stall(name, other, fault.seconds)
        elif fault.kind == "thin":
            self._net.thin(name, other, THIN_BYTES_PER_SECOND)
            self._later(fault.seconds, lambda: self._net.thin(name, other, 0.0))
        else:
            self._net.delay(name, other, SLOW_DELAY_SECONDS)
            self._later(fault.seconds, lambda: self._net.delay(name, other, DELAY_SECONDS))
        return {"link_to": other}

    def _back(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Undoes a fault after `seconds`; meanwhile the process counts as down."""
        self._down.add(name)

        def undo() -> None:
            self._down.discard(name)
            call()

        self._later(seconds, undo)

    def _start_again(self, child: Child) -> None:
        self._note({"event": "started again", "target": child.name})
        if child.peer:
            self._start_peer(_number_of(child))
        else:
            flags = self._coordinator_flags(child.name)
            self.swarm.start_standby(self._first["run_id"], self._known(), *flags, name=child.name)

    def _thaw(self, child: Child) -> None:
        if child.alive:
            self.swarm.thaw(child)

    def _time(self) -> float:
        return time.monotonic() - self._began

    def _note(self, what: dict[str, Any]) -> None:
        self.log.append(json.dumps({"t": round(self._time(), 3), **what}))


def _error_of(child: Child) -> str:
    """What a program has said last, after its name."""
    return child.log.read_text(encoding="utf-8", errors="replace").rpartition("\nswarm-")[2]


def _number_of(child: Child) -> int:
    return int(child.name.removeprefix("peer-"))
