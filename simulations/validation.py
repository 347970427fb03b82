"""Is the simulator right? Closed forms, and the same scenarios with real processes over an emulated internet.

`validate` runs everything and gives what `VALIDATION.md` is made of (`validation_page.py`). The cases are in
`validation.toml`. Errors: those of `Study.run` and `Emulation.run`.
"""

import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from ..errors import EmulationError, UsageError
from ..swarm.events import Event, Pulse
from ..swarm.host import Moment
from ..swarm.sizes import traffic
from ..swarm.window import WINDOW_SHARE
from .cast import manifest_of
from .emulation import Emulation
from .outcome import Outcome
from .scenario import Scenario, parse_scenario
from .study import Study
from .swarm import SimulatedSwarm
from .tcp import WIRE

CASES = Path(__file__).with_name("validation.toml")
FORWARD, BACKWARD = 0.1, 0.2
VISIT = FORWARD + BACKWARD
SIMULATIONS = 3
"""Of each case."""

EQUAL = f"""
title = "Equal peers"
minutes = 60

[run.model]
name = "tiny"
stages = 4

[run.train]
steps = 12
batch = 8

[run.pipeline]
staleness = 0
rebalance = 0
slots = 16

[coordinator]
latency = 0

[[peers]]
name = "equal"
count = 4
forward = {FORWARD}
backward = {BACKWARD}
latency = 0
noise = 0
"""
"""What closed forms are about: nothing happens, nothing is drawn."""


@dataclass(frozen=True, slots=True)
class Form:
    """One closed form: what it is about, what it gives and what the simulation gave, in `unit`."""

    what: str
    formula: str
    due: float
    simulated: float
    unit: str

    @property
    def off(self) -> float:
        """By which share the simulation differs."""
        return self.simulated / self.due - 1


def equal_peers(*changes: str) -> Scenario:
    return parse_scenario(EQUAL, "equal peers", changes)


def closed_forms() -> Iterator[Form]:
    """Every one of them."""
    for stages, batch in ((2, 4), (4, 8), (4, 16), (6, 8), (3, 12)):
        yield bubble(stages, batch)
    for rate in (20.0, 50.0):
        yield slow_uplink(rate)
    for slots in (1, 4, 8):
        yield queue(slots)
    yield from little()


def bubble(stages: int, batch: int) -> Form:
    """GPipe's and 1F1B's schedules alike take M + S - 1 visits a step (Huang et al. 2019, section 2.3)."""
    scenario = equal_peers(f"run.model.stages={stages}", f"peers.0.count={stages}", f"run.train.batch={batch}")
    due = (batch + stages - 1) * VISIT
    return Form(f"{stages} stages, {batch} microbatches", "(M + S - 1) v", due, Study(scenario).run().step_seconds, "s")


def slow_uplink(rate: float) -> Form:
    """One peer of a pipeline whose uplink is slow (Mbit/s): its stage sends an activation and a gradient a visit."""
    text = EQUAL.replace("count = 4", f"count = 1\nstage = 1\nup = {rate}")
    text += EQUAL[EQUAL.index("[[peers]]") :].replace("equal", "others").replace("count = 4", "count = 3\njoins = 1")
    changes = ("run.data.sequence_length=512", "run.pipeline.staleness=1", "run.train.steps=40")
    scenario = parse_scenario(text, "one slow uplink", ('run.model.name="llama-7b"', *changes))
    sent = traffic(manifest_of(scenario, 0), range(1, 2)).sent
    times = [at for at, _ in Study(scenario).run().steps][5:-5]
    took = (times[-1] - times[0]) / (len(times) - 1)
    formula = "M (activation + gradient) / rate, with headers"
    return Form(f"one uplink of {rate:g} Mbit/s", formula, 8 * 8 * WIRE * sent / (rate * 1e6), took, "s")


def queue(slots: int) -> Form:
    """One stage, one peer: a closed queue of the k microbatches that the trainer has in flight for so many slots, each
    of which is away for a round trip between two times at the device."""
    away, window = 1.5, max(1, int(WINDOW_SHARE * slots))
    where = (
        "run.model.stages=1",
        "peers.0.count=1",
        f"run.pipeline.slots={slots}",
        f"peers.0.latency={1000 * away / 2}",
    )
    outcome = Study(equal_peers(*where, "run.pipeline.staleness=1", "run.train.batch=64", "run.train.steps=6")).run()
    due = min(1 / VISIT, window / (VISIT + away))
    visits = 64 * outcome.tokens_per_second / outcome.steps[0][1]
    return Form(f"{window} in flight to one peer {away:g} s away", "min(1 / v, k / (v + t))", due, visits, "visits/s")


@dataclass
class _Watched(Study):
    """A study that notes when visits come to a stage and when they are over, and how many are open there as peers
    say."""

    came: dict[tuple[str, int, int], float] = field(default_factory=dict)
    stayed: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    open: list[tuple[float, int, int]] = field(default_factory=list)
    """(time, member, visits)."""

    hosts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By peer: its member and its stage."""

    def _watch(self, swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        super()._watch(swarm, peer, moment)
        host = swarm.peers[peer].host
        if host is not None:
            self.hosts[peer] = host.member, host.stage
        key = (peer, moment.step, moment.index)
        if moment.name == "queued":
            self.came[key] = swarm.now
        elif moment.name == "held" and key in self.came:
            began = self.came.pop(key)
            self.stayed.setdefault(peer, []).append((swarm.now, swarm.now - began))

    def _saw(self, event: Event) -> None:
        super()._saw(event)
        if isinstance(event, Pulse):
            self.open += [(self._swarm.now, pulse.member, pulse.open) for pulse in event.members]


def little() -> Iterator[Form]:
    """Of every stage: the visits that are open, as its peer says every second, are those that come a second times how
    long they stay (Little 1961), as is seen of each."""
    scenario = equal_peers("run.pipeline.staleness=1", "run.train.steps=60", "peers.0.noise=0.2", "peers.0.latency=40")
    study = _Watched(scenario)
    outcome = study.run()
    first, last = outcome.steps[10][0], outcome.steps[-10][0]
    for peer, stays in study.stayed.items():
        number, stage = study.hosts[peer]
        within = [seconds for at, seconds in stays if first <= at < last]
        due = len(within) / (last - first) * fmean(within)
        seen = fmean(count for at, member, count in study.open if member == number and first <= at < last)
        yield Form(f"stage {stage}", "open = rate x time", due, seen, "visits")


# ---- emulation


@dataclass(frozen=True, slots=True)
class Case:
    """A scenario that is simulated and emulated; `fitted`: whether the simulator was adjusted to it."""

    name: str
    fitted: bool
    scenario: Scenario


@dataclass(frozen=True, slots=True)
class Compared:
    """The same scenario both ways."""

    case: Case
    simulated: tuple[Outcome, ...]
    emulated: tuple[Outcome, ...]

    @property
    def rates(self) -> tuple[float, float]:
        """Tokens a second, simulated and emulated."""
        return _rate(self.simulated), _rate(self.emulated)

    @property
    def recoveries(self) -> tuple[float, float] | None:
        """Seconds, the median of all losses, both ways; None unless both had any."""
        found = [
            [seconds for outcome in outcomes for seconds in outcome.recoveries]
            for outcomes in (self.simulated, self.emulated)
        ]
        return (median(found[0]), median(found[1])) if all(found) else None


def _rate(outcomes: Sequence[Outcome]) -> float:
    return fmean(outcome.tokens_per_second for outcome in outcomes)


def cases() -> list[Case]:
    """All of them, in the order of the file."""
    text = CASES.read_text(encoding="utf-8")
    base = text[: text.index("[[cases]]")]
    return [
        Case(told["name"], told.get("fitted", False), parse_scenario(base, CASES.name, told.get("changes", [])))
        for told in tomllib.loads(text)["cases"]
    ]


def compare(case: Case, emulations: int, tcp: str) -> Compared:
    """Emulates with several seeds, and simulates with more; the same befalls the machines at the same times in both."""
    seeds = range(max(SIMULATIONS, emulations))
    simulated = tuple(Study(case.scenario, seed, befalls=seed % emulations).run() for seed in seeds)
    emulated = tuple(Emulation(case.scenario, seed, tcp=tcp).run() for seed in range(emulations))
    return Compared(case, simulated, emulated)


def compare_all(names: Sequence[str], emulations: int, tcp: str, tell: Callable[[str], None]) -> list[Compared]:
    """Every case whose name holds one of `names`; all of them if there are none. One that cannot be emulated is told of
    and left out. `tcp`: as in `enter_namespace`. Raises `UsageError` if there is no such case."""
    wanted = [case for case in cases() if not names or any(name in case.name for name in names)]
    if not wanted:
        raise UsageError(f"no case is called like {', '.join(names)}: there are {', '.join(c.name for c in cases())}")
    found = []
    for case in wanted:
        try:
            compared = compare(case, emulations, tcp)
        except EmulationError as error:
            tell(f"{case.name}: {error}")
            continue
        found.append(compared)
        simulated, emulated = compared.rates
        rates = f"{simulated:,.0f} tokens/s simulated, {emulated:,.0f} emulated"
        times = compared.recoveries
        tell(f"{case.name}: {rates}" + (f"; recovery {times[0]:.2f} and {times[1]:.2f} s" if times else ""))
    return found
