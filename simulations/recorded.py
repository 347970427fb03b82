"""A scenario of a run that has been: who was there when, how fast each was and how it was attached, from the events
that its coordinator kept.

Each peer is a group of its own, at the stage that it hosted; one that moved is two. What the log does not know is said
in the scenario: latencies are measured ones where the run measured any, uplinks what their owners told.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import ScenarioError
from ..swarm import events
from ..swarm.event_log import read_log
from ..swarm.machine import MBIT
from .outcome import MINUTE
from .world import START_SECONDS

DEFAULT_LATENCY = 10.0
LEAST_SESSION = 0.001


@dataclass
class _Stay:
    """A peer from its Joined until it was gone. Seconds since the first event."""

    peer: str
    stage: int
    began: float
    up: int
    down: int
    ended: float | None = None
    politely: bool = False
    unsure: float | None = None
    """Since when it is not known whether it is there: another trainer leads, and it has not come to that."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)


def scenario_of(log: Path) -> str:
    """The scenario (TOML) of a run's event log: a folder, or one file of it. Raises `StorageError`, `ScenarioError`."""
    records = read_log(log).records
    opened = next((record.event for record in records if isinstance(record.event, events.Opened)), None)
    if opened is None:
        raise ScenarioError(f"{log}: it does not hold the beginning of a run, only what came later")
    first, last = records[0].at, records[-1].at
    stays, trips = _stays(records, first)
    usable = [stay for stay in stays if stay.forward]
    if not usable:
        raise ScenarioError(f"{log}: no peer ever said how long a visit takes there")
    typical = (median(f for stay in usable for f in stay.forward), median(b for stay in usable for b in stay.backward))
    whole = {
        "title": f"Run {opened.run_id[:12]} of {opened.model}, as it was",
        "about": f"From the events of a coordinator: {len(stays)} peers in {(last - first) / MINUTE:.1f} minutes.",
        "minutes": max(1.0, round(2 * (last - first) / MINUTE, 2)),
    }
    latency = 1000 * median(trips) / 4 if trips else DEFAULT_LATENCY
    lines = [_entries(whole), "", *_run(opened)]
    for number, stay in enumerate(stays):
        lines += ["", "[[peers]]", _entries(_group(number, stay, typical, latency))]
    return "\n".join(lines) + "\n"


def _stays(records: Sequence[Any], first: float) -> tuple[list[_Stay], list[float]]:
    """Of all members in order, and the round trips that were measured, in seconds."""
    stays: dict[int, _Stay] = {}
    trips: list[float] = []
    for record in records:
        at, event = record.at - first, record.event
        match event:
            case events.Joined():
                before = next((stay for stay in stays.values() if stay.peer == event.peer and stay.ended is None), None)
                if before is not None and before.stage == event.stage:  # the next trainer has given it another number
                    stays[event.member], before.unsure = before, None
                    continue
                if before is not None:
                    before.ended = at
                stays[event.member] = _Stay(event.peer, event.stage, at, event.up, event.down)
            case events.Leads():
                for stay in stays.values():
                    stay.unsure = at
            case events.Left() | events.Lost() if event.member in stays:
                stay = stays[event.member]
                stay.ended, stay.politely = at, isinstance(event, events.Left)
            case events.Pulse():
                for pulse in event.members:
                    if pulse.member in stays and pulse.forward and pulse.backward:
                        stays[pulse.member].forward.append(pulse.forward)
                        stays[pulse.member].backward.append(pulse.backward)
                trips += [link.round_trip for link in event.links if link.round_trip > 0]
    found = list({id(stay): stay for stay in stays.values()}.values())
    for stay in found:
        stay.ended = stay.unsure if stay.ended is None else stay.ended
    return found, trips


def _run(opened: events.Opened) -> list[str]:
    """The tables of the run. A microbatch is one sample here, as long as all of its samples."""
    tokens = opened.step_tokens // opened.microbatches
    tables: dict[str, dict[str, Any]] = {
        "model": {"name": opened.model, "stages": opened.stages, "base": opened.base},
        "train": {"mode": opened.mode, "steps": opened.steps, "batch": opened.microbatches},
        "data": {"sequence_length": tokens},
        "codecs": {"activations": opened.activations, "gradients": opened.gradients},
        "pipeline": {
            "staleness": opened.staleness,
            "min_replicas": opened.min_replicas,
            "slots": opened.slots,
            "rebalance": 0,
        },
    }
    return [line for name, table in tables.items() for line in (f"[run.{name}]", _entries(table), "")][:-1]


def _group(number: int, stay: _Stay, typical: tuple[float, float], latency: float) -> dict[str, Any]:
    forward, backward = (median(stay.forward), median(stay.backward)) if stay.forward else typical
    session: dict[str, Any] = {
        "machine": 0,
        "begin": round(max(0.0, stay.began - START_SECONDS), 3),
        "stage": stay.stage,
    }
    if stay.ended is not None:
        session |= {"end": round(max(stay.ended, stay.began + LEAST_SESSION), 3), "leaves": stay.politely}
    return {
        "name": f"peer-{number}",
        "forward": round(forward, 6),
        "backward": round(backward, 6),
        "up": round(stay.up / MBIT, 3),
        "down": round(stay.down / MBIT, 3),
        "latency": round(latency, 3),
        "sessions": [session],
    }


def _entries(table: dict[str, Any]) -> str:
    return "\n".join(f"{key} = {_value(value)}" for key, value in table.items())


def _value(value: Any) -> str:
    """As TOML has it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)  # texts, numbers, true and false are written alike
