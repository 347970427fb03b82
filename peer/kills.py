"""`--kill STAGE@STEP`: which peer the demo kills, and when.

At the moment when the first visit of STEP begins computing at STAGE, the live peer of that stage with the most open
visits of that step dies (ties: the lowest peer id). Errors: `UsageError` for a kill that would empty a stage or never
come.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..swarm.manifest import Settings

ENDED_PHASES = ("HELD", "ENDED")


@dataclass(frozen=True, slots=True)
class Kill:
    stage: int
    step: int


def parse_kills(texts: Sequence[str] | None, settings: Settings, replicas: int) -> list[Kill]:
    """The kills of a command line; one in the middle of the run if none is given and a stage can spare a peer."""
    stages, steps = settings.model.stages, settings.train.steps
    if texts is None:
        return [Kill(min(1, stages - 1), steps // 2)] if replicas > 1 else []
    kills = []
    for text in texts:
        stage, separator, step = text.partition("@")
        if not separator or not stage.isdecimal() or not step.isdecimal():
            raise UsageError(f"--kill {text}: expected STAGE@STEP, two numbers counted from 0")
        kill = Kill(int(stage), int(step))
        if kill.stage >= stages:
            raise UsageError(f"--kill {text}: there are stages 0 to {stages - 1}")
        if kill.step >= steps:
            raise UsageError(f"--kill {text}: the run ends with step {steps - 1}")
        kills.append(kill)
    for stage_number, count in Counter(kill.stage for kill in kills).items():
        if count >= replicas:
            raise UsageError(
                f"--kill: {count} kills of stage {stage_number} would leave it empty; it has {replicas} replicas "
                "(raise --replicas)"
            )
    return kills


class KillPlan:
    """Carries out kills as events come. `kill` sends the signal and says when."""

    def __init__(self, kills: Sequence[Kill], kill: Callable[[str], float]) -> None:
        self._pending = list(kills)
        self._kill = kill
        self._phases: dict[tuple[int, int, int], tuple[str, str]] = {}
        self._peers: dict[str, int] = {}
        self.killed: dict[str, float] = {}
        self._rerouted: dict[str, float] = {}

    def see(self, event: dict[str, Any]) -> None:
        if event["event"] == "joined":
            self._peers[event["peer"]] = event["stage"]
        elif event["event"] == "lost":
            self._peers.pop(event["peer"], None)
        elif event["event"] == "rerouted":
            self._rerouted[event["peer"]] = event["at"]
        elif event["event"] == "visited":
            self._phases[event["step"], event["stage"], event["index"]] = (event["peer"], event["phase"])
            if event["phase"] not in ENDED_PHASES:
                self._strike(event["stage"], event["step"])

    def _strike(self, stage: int, step: int) -> None:
        for kill in [kill for kill in self._pending if (kill.stage, kill.step) == (stage, step)]:
            self._pending.remove(kill)
            live = sorted(peer for peer, at in self._peers.items() if at == stage and peer not in self.killed)
            if len(live) < 2:
                continue
            open_visits = Counter(
                peer
                for (of_step, of_stage, _), (peer, phase) in self._phases.items()
                if (of_step, of_stage) == (step, stage) and phase not in ENDED_PHASES
            )
            victim = max(live, key=lambda peer: open_visits[peer])
            self.killed[victim] = self._kill(victim)

    def complete(self, report: dict[str, Any]) -> dict[str, Any]:
        """The report with what only the killer knows: which losses were kills, and the time since the signal."""
        for fault in report["faults"]:
            if fault["peer"] in self.killed:
                fault["kind"] = "kill"
                at = self._rerouted.get(fault["peer"])
                fault["rerouted_s"] = None if at is None else max(0.0, at - self.killed[fault["peer"]])
        return report
