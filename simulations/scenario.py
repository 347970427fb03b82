"""A scenario: a run, the peers that volunteer for it, and what befalls them. One TOML file, checked before it runs.

The run is written as an organizer writes it (`swarm.manifest.Settings`, below `run`); peers come in groups of a kind.
Rates are Mbit/s, latencies milliseconds, everything else seconds, as the field's name says where it is not. A `Spread`
is one number, or two between which each peer draws its own.

Errors: `ScenarioError`, which names file, line and key.
"""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ScenarioError
from ..swarm.manifest import Settings
from .nat import Nat
from .toml_lines import line_of
from .traces import read_trace

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]


COORDINATOR = "coordinator"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _in_order(spread: float | tuple[float, float]) -> float | tuple[float, float]:
    if isinstance(spread, tuple) and spread[0] > spread[1]:
        raise ValueError(f"{list(spread)}: the lower number comes first")
    return spread


Spread = Annotated[NotNegative | tuple[NotNegative, NotNegative], Field()]


class Lifetime(_Frozen):
    """How long something lasts. `weibull` with a shape below 1 and `lognormal` have heavy tails, as volunteers'
    sessions do; `mean` in seconds; `shape`: Weibull's k, or the lognormal's sigma."""

    distribution: Literal["fixed", "exponential", "weibull", "lognormal"] = "exponential"
    mean: Positive
    shape: Positive = 1.0


class Session(_Frozen):
    """That a machine of a group (by number within it) was there: from `begin` until `end`, without it to the end of the
    run. `leaves`: politely. `stage`: where it begins, if not where it is needed most."""

    machine: Annotated[int, Field(ge=0)]
    begin: NotNegative
    end: NotNegative | None = None
    leaves: bool = False
    stage: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if self.end is not None and self.end <= self.begin:
            raise ValueError(f"a session that begins at {self.begin:g} ends at {self.end:g}")
        return self


class Group(_Frozen):
    """Peers of a kind. `teraflops`: useful operations a second of one device; or `forward` and `backward`: seconds of a
    visit; each takes up to the share `noise` longer or shorter. `latency`: from the peer to the middle of the internet,
    one way; `jitter`: at most so much more, drawn for each burst. `loss`: the share of its packets that never come, and
    `buffer`: milliseconds of its link's rate that wait before more are dropped; both of emulated links only
    (`router.py`). `joins`: when it is started; `loads`: how long from its start until it asks for a place, beside what
    every process takes. `stays`: how long until it is gone without a word, as a machine that is switched off (`leaves`
    politely instead); `away`: how long until it comes again, without it for good. `shared`: all peers of the group are
    behind one link. `garbage`: the share of the tensors that it sends which nobody can decode. `relay`: the group of
    peers, or `coordinator`, through one of which each of them is reached and reaches others, as nobody can dial it.
    `nat`: each is behind a router that translates addresses (`nat.py`): nobody calls it, but two connect directly if
    one is public or both their routers are `cone`; else the coordinator relays. `sessions`: when each machine was
    there, in place of `joins`, `stays` and `away`; in a file `trace = "FILE.csv"` reads them from a table
    (`traces.py`)."""

    name: Name
    count: Annotated[int, Field(gt=0, le=100_000)] = 1
    teraflops: Spread | None = None
    noise: Share = 0.05
    forward: Positive | None = None
    backward: Positive | None = None
    up: Spread = 0.0
    down: Spread = 0.0
    latency: Spread = 10.0
    jitter: NotNegative = 0.0
    loss: Share = 0.0
    buffer: Positive = 200.0
    region: Name | None = None
    stage: Annotated[int, Field(ge=0)] | None = None
    joins: Spread = 0.0
    loads: Spread = 0.0
    stays: Lifetime | None = None
    away: Lifetime | None = None
    leaves: bool = False
    shared: bool = False
    garbage: Share = 0.0
    relay: Name | None = None
    nat: Nat | None = None
    sessions: tuple[Session, ...] = ()

    @model_validator(mode="after")
    def _has_a_pace(self) -> Self:
        if (self.forward is None) != (self.backward is None):
            raise ValueError("forward and backward are given together")
        if (self.forward is None) == (self.teraflops is None):
            raise ValueError("either teraflops, or forward and backward, say how fast a peer computes")
        for spread in (self.teraflops, self.up, self.down, self.latency, self.joins, self.loads):
            if spread is not None:
                _in_order(spread)
        if self.away is not None and self.stays is None:
            raise ValueError("away says when a peer comes again that does not stay: stays is missing")
        if self.sessions and (self.stays is not None or self.joins):
            raise ValueError("sessions say when peers are there: there is no place for joins and stays")
        if self.nat is not None and (self.shared or self.relay is not None):
            raise ValueError("nat puts each peer behind a router of its own: there is no place for shared and relay")
        for session in self.sessions:
            if session.machine >= self.count:
                raise ValueError(f"a session is of machine {session.machine}; there are {self.count}, from 0 on")
        return self


class Happening(_Frozen):
    """Something that befalls `peers` (a group's name), of which `share` is hit; or a `region`, a `stage`, the
    `coordinator`. It lasts `seconds`; without them, for good. `every`: seconds until it happens again. Both may be two
    numbers, between which it is drawn anew each time.

    kill, freeze, leave: processes. off: machines are switched off, which nobody is told. isolate: no way to anybody.
    part: `region` is cut off from the rest. degrade: rates are `factor` times as high, latency `latency` more. slow:
    devices are `factor` times as fast. lose: every replica of `stage` is killed. stop: the coordinator is killed, and
    starts again after `seconds`."""

    kind: Literal["kill", "off", "freeze", "leave", "isolate", "part", "degrade", "slow", "lose", "stop"]
    at: NotNegative
    seconds: Positive | tuple[Positive, Positive] | None = None
    every: Positive | tuple[Positive, Positive] | None = None
    peers: Name | None = None
    region: Name | None = None
    stage: Annotated[int, Field(ge=0)] | None = None
    share: Share = 1.0
    factor: Positive = 1.0
    latency: NotNegative = 0.0

    @model_validator(mode="after")
    def _says_whom(self) -> Self:
        wanted = {"lose": "stage", "part": "region"}.get(self.kind)
        if wanted is not None and getattr(self, wanted) is None:
            raise ValueError(f"{self.kind} needs a {wanted}")
        if wanted is None and self.kind != "stop" and self.peers is None and self.region is None:
            raise ValueError(f"{self.kind} needs peers or a region")
        if self.kind in ("freeze", "isolate", "part", "lose", "stop") and self.seconds is None:
            raise ValueError(f"{self.kind} needs seconds")
        for spread in (self.seconds, self.every):
            if spread is not None:
                _in_order(spread)
        return self


class Distance(_Frozen):
    """Between two regions: `latency` one way, beside that of the peers' own links."""

    between: tuple[Name, Name]
    latency: NotNegative


class Coordinator(_Frozen):
    """Where the trainer is. `standby`: another coordinator waits; the run's settings must allow it."""

    up: NotNegative = 0.0
    down: NotNegative = 0.0
    latency: NotNegative = 10.0
    region: Name | None = None
    standby: bool = False
    checkpoint_every: Annotated[int, Field(ge=0)] = 0


class Scenario(_Frozen):
    """`minutes`: of virtual time, at most; the run ends earlier when all its steps are done."""

    title: Annotated[str, Field(min_length=1, max_length=200)]
    about: str = ""
    minutes: Positive
    seed: Annotated[int, Field(ge=0)] = 0
    run: Settings
    peers: Annotated[tuple[Group, ...], Field(min_length=1)]
    coordinator: Coordinator = Coordinator()
    distances: tuple[Distance, ...] = ()
    events: tuple[Happening, ...] = ()

    @model_validator(mode="after")
    def _names_what_there_is(self) -> Self:
        names = [group.name for group in self.peers]
        if len(set(names)) < len(names):
            raise ValueError("two groups of peers have the same name")
        for group in self.peers:
            if group.relay not in (None, COORDINATOR, *names) or group.relay == group.name:
                raise ValueError(f"{group.name} are reached through {group.relay!r}, which is no other group of peers")
        regions = {group.region for group in self.peers} | {self.coordinator.region}
        for event in self.events:
            if event.peers is not None and event.peers not in names:
                raise ValueError(f"an event befalls {event.peers!r}, which is no group of peers: {', '.join(names)}")
            if event.region is not None and event.region not in regions:
                raise ValueError(f"an event befalls the region {event.region!r}, in which nobody is")
            if event.stage is not None and event.stage >= self.run.model.stages:
                raise ValueError(f"an event befalls stage {event.stage} of {self.run.model.stages}")
        for group in self.peers:
            if group.stage is not None and group.stage >= self.run.model.stages:
                raise ValueError(f"{group.name} host stage {group.stage} of {self.run.model.stages}")
            for session in group.sessions:
                if session.stage is not None and session.stage >= self.run.model.stages:
                    raise ValueError(
                        f"a session of {group.name} is at stage {session.stage} of {self.run.model.stages}"
                    )
        if self.coordinator.standby != self.run.pipeline.standby:
            raise ValueError("coordinator.standby and run.pipeline.standby differ: both are true, or neither")
        return self


def parse_scenario(text: str, where: str, changes: Sequence[str] = (), folder: Path | None = None) -> Scenario:
    """Reads a scenario; each of `changes` is a `key=value` (dotted keys, indices, a TOML value) put in its place.
    `folder`: where the files are that it names. Raises `ScenarioError`."""
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{where}: not TOML: {error}") from error
    for change in changes:
        _change(told, change, where)
    _read_traces(told, where, text, folder or Path())
    try:
        return Scenario.model_validate(_tuples(told))
    except ValidationError as error:
        raise ScenarioError("\n".join(_explained(error, text, where))) from error


def load_scenario(path: Path, changes: Sequence[str] = ()) -> Scenario:
    """Reads a file, or by its name one that comes with the package. Raises `ScenarioError`."""
    found = path if path.suffix or path.exists() else FOLDER / f"{path}.toml"
    try:
        text = found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(file.stem for file in known_scenarios())
        raise ScenarioError(f"{found}: cannot be read: {error}; there are also: {known}") from error
    return parse_scenario(text, str(found), changes, found.parent)


FOLDER = Path(__file__).parent / "scenarios"


def known_scenarios() -> list[Path]:
    """The files that come with the package."""
    return sorted(FOLDER.glob("*.toml"))


def _explained(error: ValidationError, text: str, where: str) -> Iterator[str]:
    for problem in error.errors():
        # Of a choice between types pydantic names each; the file has only what is before.
        path = [part for part in problem["loc"] if not (isinstance(part, str) and ("[" in part or part in _TYPES))]
        key = ".".join(str(part) for part in path) or "the whole"
        given = "" if problem["type"] in ("missing", "value_error") else f" (got {problem['input']!r})"
        yield f"{where}:{line_of(text, path)}: {key}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _read_traces(told: dict[str, Any], where: str, text: str, folder: Path) -> None:
    """Puts sessions in the place of the files that groups name."""
    groups = told.get("peers")
    for number, group in enumerate(groups if isinstance(groups, list) else ()):
        if not isinstance(group, dict) or "trace" not in group:
            continue
        name = group.pop("trace")
        if not isinstance(name, str) or "sessions" in group:
            line = line_of(text, ("peers", number, "trace"))
            raise ScenarioError(f"{where}:{line}: peers.{number}.trace: wanted the name of a file, and no sessions")
        group["sessions"] = read_trace(folder / name)
        machines = {session["machine"] for session in group["sessions"]}
        group.setdefault("count", max(machines, default=0) + 1)


_TYPES = frozenset({"float", "int", "str", "constrained-float"})


def _change(told: dict[str, Any], change: str, where: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise ScenarioError(f"{change!r}: wanted key=value, such as run.pipeline.staleness=0")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a word need not be quoted
    at: Any = told
    *parents, last = key.strip().split(".")
    try:
        for part in parents:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        at[int(last) if isinstance(at, list) else last] = parsed
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ScenarioError(f"{where}: {key}: there is no such place to put {value} into") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
