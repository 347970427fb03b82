"""The log of events: whatever is cut off, its fold is what was seen live."""

import asyncio
import os
import time
from pathlib import Path

import msgpack
import pytest
from swarm_peer.errors import StorageError
from swarm_peer.simulations.swarm import SimulatedSwarm
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import events
from swarm_peer.swarm.chronicle import Chronicle, prune
from swarm_peer.swarm.event_log import FORMAT, LOGGED, EventLog, read_log, segments, state_fields, state_of
from swarm_peer.swarm.events import Event
from swarm_peer.swarm.host import Moment
from swarm_peer.swarm.run_state import MAX_STEPS, RunState, fold

from tests.exact import exact_manifest, exact_swarm


def recorded(folder: Path, **sizes: int) -> list[RunState]:
    """The states seen live, one an event, of a run in which peers are killed, come again and leave; its log."""
    states: list[RunState] = []
    log = EventLog(folder, **sizes)
    done: list[int] = []

    def watch(swarm: SimulatedSwarm, peer: str, moment: Moment) -> None:
        if moment.name == "forward" and moment.step not in done:
            done.append(moment.step)
            if moment.step in (1, 3):
                victim = swarm.live_at(moment.step % 3)[0]
                swarm.kill(victim)
                swarm.later(1.0, lambda: swarm.restart(victim))
            if moment.step == 5:
                swarm.peers[swarm.live_at(2)[0]].leave("enough")
                swarm.trainer.steering.pause()
                swarm.later(3.0, lambda: swarm.trainer.steering.resume())

    def emit(event: Event) -> None:
        chronicle.emit(event)
        if event.kind in LOGGED:
            states.append(chronicle.state)

    chronicle = Chronicle(log, lambda: asyncio.get_running_loop().time(), lambda event: None)
    run(exact_swarm(exact_manifest(steps=9), watch=watch, emit=emit).run(), limit=300.0)
    chronicle.close()
    return states


def test_any_prefix_of_a_log_is_what_was_seen_live_then(tmp_path: Path) -> None:
    states = recorded(tmp_path)
    replay = read_log(tmp_path)
    assert len(replay.records) == len(states) > 50
    kinds = {type(record.event) for record in replay.records}
    assert {events.Lost, events.Rerouted, events.Left, events.Paused, events.Pulse, events.Settled} <= kinds
    state = replay.start
    for record, live in zip(replay.records, states, strict=True):
        state = fold(state, record)
        assert state == live
    for sequence in (0, 1, 17, len(states)):
        assert replay.state_at(sequence) == (states[sequence - 1] if sequence else RunState())
    ended = states[-1]
    assert (ended.phase, ended.ledger.lost, ended.ledger.duplicated) == ("finished", 0, 0)
    assert ended.ledger.microbatches == 9 * 4
    for stage in range(3):
        assert sum(peer.counted.get(stage, 0) for peer in ended.peers.values()) == 9 * 4


def test_segments_begin_with_the_state_and_the_oldest_go(tmp_path: Path) -> None:
    states = recorded(tmp_path, segment=4096, limit=20000)
    kept = segments(tmp_path)
    assert kept[0].name != "000001.events"
    assert sum(path.stat().st_size for path in kept) < 40000
    replay = read_log(tmp_path)
    assert replay.start == states[replay.start.sequence - 1]
    assert replay.state_at(10**9) == states[-1]
    alone = read_log(kept[-1])
    assert alone.state_at(10**9) == states[-1]
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)


@pytest.mark.parametrize("cut", [1, 2, 5, 40])
def test_what_a_dying_process_left_unfinished_is_cut_off(tmp_path: Path, cut: int) -> None:
    states = recorded(tmp_path)
    path = segments(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-cut])
    log = EventLog(tmp_path)
    assert log.state == states[log.state.sequence - 1]
    assert len(states) - 3 <= log.state.sequence < len(states)
    log.append(events.Concluded("again"), 1e6)
    log.close()
    assert read_log(tmp_path).state_at(10**9).why == "again"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "does not begin with"),
        (b"something else", "does not begin with"),
        (FORMAT + b"\xc1", "damaged at byte"),
        (FORMAT + msgpack.packb(["1", 1.0, "paused", {}]), "no event"),
        (FORMAT + msgpack.packb([1, 1.0, "explode", {}]), "no event of this version"),
        (FORMAT + msgpack.packb([1, 1.0, "waiting", {"stage": "many"}]), "no event of this version"),
        (FORMAT + msgpack.packb([1, 1.0, "waiting", {}]), "no event of this version"),
        (FORMAT + msgpack.packb([7, 1.0, "paused", {}]), "does not go on"),
        (FORMAT + msgpack.packb({"a": 1}), "no event"),
        (FORMAT + msgpack.packb([0, 1.0, "state", {"notes": []}]) + msgpack.packb([5, 1.0, "paused", {}]), "not go on"),
        (FORMAT + msgpack.packb([0, 1.0, "state", {"notes": [], "members": 3}]), "no event of this version"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "000001.events"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=said):
        read_log(path)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no events are in"):
        read_log(tmp_path)
    with pytest.raises(StorageError, match="cannot be read"):
        read_log(tmp_path / "none.events")


def test_a_state_is_the_same_when_it_comes_back(tmp_path: Path) -> None:
    state = recorded(tmp_path)[-1]
    assert state_of(msgpack.unpackb(msgpack.packb(state_fields(state)), strict_map_key=False)) == state


def test_a_full_disk_costs_the_log_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path)
    chronicle = Chronicle(log, lambda: 5.0, lambda event: None)
    log._file.close()  # as a disk that fails: every write raises
    log._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    chronicle.emit(events.Waiting(2))
    chronicle.emit(events.Paused())
    assert (chronicle.state.waiting_for, chronicle.state.paused, chronicle.state.sequence) == (2, True, 2)
    assert [record.message for record in caplog.records if "no longer written" in record.message]
    assert chronicle.log is None


def test_logs_of_old_runs_are_removed_and_fresh_ones_stay(tmp_path: Path) -> None:
    for age, name in ((90000, "oldest"), (80000, "older"), (7200, "old"), (0, "fresh")):
        path = tmp_path / name / "coordinator" / "000001.events"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1000))
        then = time.time() - age
        os.utime(path, (then, then))
    prune(tmp_path, 4000)
    assert len(list(tmp_path.iterdir())) == 4
    prune(tmp_path, 2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "old"]
    prune(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["fresh"]
    prune(tmp_path / "none", 0)


def test_of_a_long_run_older_steps_are_thinned_and_the_sums_are_kept() -> None:
    state = RunState()
    count = MAX_STEPS + 3000
    for step in range(count):
        stepped = events.Stepped(step, 1.5, 0.1, 10, 1.0, step, (1,), 0, 1)
        state = fold(state, events.Record(2 * step + 1, float(step), stepped))
        settled = events.Settled(step, (), 4, 0, 0, 0, 0)
        state = fold(state, events.Record(2 * step + 2, float(step), settled))
    assert len(state.steps) <= MAX_STEPS
    assert (0 in state.steps, state.last_step) == (True, count - 1)
    assert (state.ledger.steps, state.ledger.microbatches, state.closed) == (count, 4 * count, count)
