"""Taking part, pausing and taking part again: on virtual time, and a real peer in a real run."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from swarm_peer.errors import StorageError, UnreachableError
from swarm_peer.peer.control import Control
from swarm_peer.peer.control_commands import in_words
from swarm_peer.peer.local_swarm import LISTEN, LocalSwarm
from swarm_peer.peer.owner import Pause, Rules, Seen
from swarm_peer.peer.pausing import LOOK_SECONDS, Lender, Looking
from swarm_peer.peer.traffic import Cap, Traffic
from swarm_peer.protos import api_pb2 as pb
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm.api.client import Client, channel_to
from swarm_peer.swarm.exchange import Meter

from tests.processes import AT_LEISURE, LIMIT_SECONDS, Home, home
from tests.test_control import FOR_FOUR

NIGHT = Pause("it is after 07:00", "until 22:00")
FOR_GOOD = Pause("its data cap is used up", "")


class Member:
    """What `Control` asks of a peer that has no stage yet."""

    host = None

    def __init__(self) -> None:
        self.meter, self.moved = Meter(sent=5, received=7), 20
        self.told: list[str] = []
        self.leaving = asyncio.Event()

    def leave(self, why: str) -> None:
        self.told.append(why)
        self.leaving.set()

    def links(self) -> tuple[()]:
        return ()


@dataclass
class Story:
    """A machine whose only rule says what `when` says of the loop's seconds; its run is over at `over`. Leaving takes
    `leaving` seconds. `log`: (when, what)."""

    when: Callable[[float], Pause | None]
    over: float = 1e6
    leaving: float = 3.0
    error: Exception | None = None
    act: Callable[["Story"], None] = field(default=lambda story: None)
    act_at: float = 1e6
    control: Control = field(default_factory=Control)
    log: list[tuple[float, str]] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        self.log.append((asyncio.get_running_loop().time(), what))

    def show(self) -> None:
        self.note(f"shown: {in_words(self.control.status())}")

    async def look(self) -> Seen:
        now = asyncio.get_running_loop().time()
        if now and self.error is not None:
            raise self.error
        self.states.append(in_words(self.control.status()))
        return Seen(now, now)

    def see(self, seen: Seen) -> Pause | None:
        return self.when(seen.at)

    async def take_part(self) -> str:
        self.note("begins")
        member = Member()
        self.members.append(member)
        self.control.add(member)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self.over):
                await member.leaving.wait()
                await asyncio.sleep(self.leaving)
        except TimeoutError:
            return "the run is over"
        finally:
            self.note("ends")
        assert loop.time() < self.over
        return f"left the run: {member.told[0]}"

    async def _lend(self) -> str:
        lender = Lender(Rules([self]), self.look, self.control, self.note, self.show)
        asyncio.get_running_loop().call_at(self.act_at, self.act, self)
        return await lender.lend(self.take_part)

    def tell(self) -> str:
        return run(self._lend(), limit=1e6)

    def times(self, what: str) -> list[float]:
        return [at for at, said in self.log if said == what]


def night(at: float) -> Pause | None:
    return NIGHT if at % 1000 >= 400 else None


def test_it_leaves_and_comes_again() -> None:
    story = Story(night, over=2222.0)
    assert story.tell() == "the run is over"
    assert story.times("begins") == [0.0, 1000.0, 2000.0]
    assert story.times("ends") == [403.0, 1403.0, 2222.0]
    assert story.times("leaving: it is after 07:00") == [400.0, 1400.0]
    assert story.times("pausing until 22:00: it is after 07:00") == [403.0, 1403.0]
    assert {403.0, 1403.0} <= set(story.times("shown: pausing until 22:00: it is after 07:00"))
    assert story.times("taking part again") == [1000.0, 2000.0]
    assert [member.told for member in story.members] == [["it is after 07:00"], ["it is after 07:00"], []]
    assert story.states.count("pausing until 22:00: it is after 07:00") == 2 * (600 // LOOK_SECONDS)
    assert story.control.moved() == 3 * 20
    assert (story.control.status().sent, story.control.status().received) == (15, 21)


def test_a_reason_that_passes_while_it_leaves_only_costs_the_leaving() -> None:
    story = Story(lambda at: NIGHT if at == 100.0 else None, over=500.0, leaving=60.0)
    assert story.tell() == "the run is over"
    assert story.times("begins") == [0.0, 160.0]
    assert not any(said.startswith("pausing") for _, said in story.log)


def test_a_run_that_ends_while_it_leaves_is_over() -> None:
    story = Story(night, over=402.0)
    assert story.tell() == "the run is over"


def test_it_waits_before_it_takes_part() -> None:
    story = Story(lambda at: NIGHT if at < 300 else None, over=400.0)
    story.tell()
    assert story.times("begins") == [300.0]


def test_what_is_for_good_ends_it() -> None:
    story = Story(lambda at: FOR_GOOD if at >= 100 else None)
    assert story.tell() == "left the run: its data cap is used up"
    story = Story(lambda at: FOR_GOOD)
    assert story.tell() == "not taking part: its data cap is used up"
    assert story.members == []


@pytest.mark.parametrize(
    ("act_at", "leaves"),
    [(700.0, True), (401.0, True), (100.0, True)],
    ids=["while it pauses", "while it leaves for a pause", "while it takes part"],
)
def test_its_owner_ends_it_whenever(act_at: float, leaves: bool) -> None:
    said: list[bool] = []
    story = Story(night, act=lambda story: said.append(story.control.leave("bed time")), act_at=act_at)
    last_word = story.tell()
    assert said == [leaves]  # not at once: politely
    assert (
        last_word
        == {
            700.0: "ended while it was pausing: bed time",
            401.0: "left the run: it is after 07:00",
            100.0: "left the run: bed time",
        }[act_at]
    )
    assert len(story.times("begins")) == 1
    assert not story.control.leave("again")
    assert in_words(story.control.status()).split(":")[0] == ("ended" if act_at == 700.0 else "leaving")


def test_a_member_that_comes_while_the_others_leave_leaves_too() -> None:
    async def main() -> list[str]:
        control = Control()
        assert control.send_home("short of memory")
        assert not control.send_home("short of disk")
        late = Member()
        control.add(late)  # type: ignore[arg-type]
        return late.told

    assert run(main()) == ["short of memory"]


def test_errors_of_either_end_it() -> None:
    with pytest.raises(StorageError, match="no look"):
        Story(night, error=StorageError("no look")).tell()

    async def fails() -> str:
        raise UnreachableError("no trainer")

    story = Story(night)
    with pytest.raises(UnreachableError, match="no trainer"):
        run(Lender(Rules([story]), story.look, story.control, story.note, story.show).lend(fails), limit=100.0)


def test_looks_count_what_was_moved_and_write_it_down(tmp_path: Path) -> None:
    """The rest at the end; a disk that fails later is told of once, and its bytes count all the same."""
    moved, told = [0], list[str]()
    state = tmp_path / "state"
    traffic = Traffic(state, "a")

    async def main() -> list[int]:
        cap = Cap(1000)
        looking = Looking(lambda: moved[0], [tmp_path], time.time, cap, traffic, told.append)
        found = [(await looking()).moved]
        for looking._saved in (0.0, -1e9, -1e9):
            moved[0] += 100
            if looking._saved < 0:
                traffic.folder = tmp_path / "file"
                (tmp_path / "file").write_text("")
            found.append((await looking()).moved)
        traffic.folder = state
        moved[0] += 1
        looking.close()
        return found

    assert asyncio.run(main()) == [0, 100, 200, 300]
    assert len(told) == 1
    assert "it is counted all the same" in told[0]
    assert json.loads((state / "traffic.json").read_text())["runs"] == {"a": 301}


def test_what_cannot_be_read_at_the_start_ends_it(tmp_path: Path) -> None:
    (tmp_path / "traffic.json").write_text("{")
    looking = Looking(lambda: 0, [tmp_path], time.time, Cap(1), Traffic(tmp_path, "a"))
    with pytest.raises(StorageError, match="repair it, or remove it"):
        asyncio.run(looking())
    looking.close()
    assert (tmp_path / "traffic.json").read_text() == "{"


# ---- real processes

ONE_STAGE = FOR_FOUR.replace("stages = 2", "stages = 1").replace("batch = 8", "batch = 32")


def test_a_real_peer_pauses_and_comes_again_and_another_keeps_to_its_cap() -> None:
    """Nothing is lost or counted twice, and the run is told why."""
    with home() as place:
        swarm = place.swarm()
        try:
            swarm.start_coordinator(ONE_STAGE, "--http", "off", "--api", "off")
            Run(place, swarm).play()
        finally:
            swarm.close()
            swarm.folder.leave()


class Run:
    """Three peers in one stage: one that stays, one with a cap, one that pauses while a file is there."""

    def __init__(self, place: Home, swarm: LocalSwarm) -> None:
        self.place, self.swarm = place, swarm
        self.reason = place.folder / "reason"
        self.events = swarm.events(lambda: None)
        self.ready: set[int] = set()

    def until(self, event: str, count: int = 1) -> dict[str, Any]:
        """Reads on to the `count`th event of that kind."""
        for found in self.events:
            if found["event"] == "ready":
                self.ready.add(found["member"])
            # Who comes late to a fast run may be sent away before it takes part.
            assert found["event"] != "lost" or found["member"] not in self.ready, found
            if found["event"] == "settled":
                assert (found["lost"], found["duplicated"]) == (0, 0)
            count -= found["event"] == event
            if not count:
                return found
        raise AssertionError(self.swarm.last_words())

    def start(self, module: str, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            # As the program itself sees to, before it imports gRPC.
            env={**os.environ, **self.place.environment, "GRPC_ENABLE_FORK_SUPPORT": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def status(self, pid: int) -> pb.PeerStatus:
        with channel_to(f"unix:{self.place.folder / 's' / 'control' / f'{pid}.sock'}") as channel:
            status = Client(pb.DESCRIPTOR.services_by_name["Peer"], channel).call("Status", pb.StatusRequest())
        assert isinstance(status, pb.PeerStatus)
        return status

    def until_it_pauses(self, pid: int) -> pb.PeerStatus:
        while (status := self.status(pid)).state != "pausing":
            assert status.state == "leaving", status
            time.sleep(0.2)
        return status

    def play(self) -> None:
        listening = self.until("listening")
        run, addresses = listening["run_id"], listening["addresses"]
        join = ["join", "--model", "tiny", "--run", run, "--initial-peers", *addresses, "--listen", LISTEN]
        join += ["--stages", "1", "--json", "--hours", "0-24", *AT_LEISURE]
        self.swarm.start_peer(0, run, addresses, *AT_LEISURE)
        pausing = self.start("tests.pausing_by_file", str(self.reason), *join)
        self.until("settled", 2)
        capped = self.swarm.start_peer(1, run, addresses, "--data-cap", "1MB/month", *AT_LEISURE)
        why = "its data cap of 1 MB a month is used up"
        left = self.until("left")
        assert (left["peer"], left["why"]) == (capped.peer, why)
        assert self.until_it_pauses(capped.process.pid).waits.startswith("until 20")

        self.reason.write_text("its owner plays a game")
        left = self.until("left")
        assert left["why"] == "its owner plays a game"
        status = self.until_it_pauses(pausing.pid)
        assert in_words(status) == "pausing until that file is gone: its owner plays a game"
        assert min(status.sent, status.received, status.counted, status.visits) > 0
        self.reason.unlink()
        assert self.until("ready")["peer"] == left["peer"]
        self.until("settled", 3)
        self.reason.write_text("its owner plays on")
        assert self.until("left")["why"] == "its owner plays on"

        # Whoever waits is ended at once, by either way, and politely.
        capped.process.send_signal(signal.SIGINT)
        assert capped.process.wait(LIMIT_SECONDS) == 0
        said = capped.log.read_text(encoding="utf-8").splitlines()
        assert f"leaving: {why}" in said
        assert said[-1] == "ended while it was pausing: its owner ends it"
        kept = json.loads((self.place.folder / "s" / "traffic.json").read_text())
        assert kept["runs"][run] == sum(kept["days"].values()) >= 10**6
        self.until_it_pauses(pausing.pid)
        code, output = self.place.run("swarm-peer", "leave", "--pid", str(pausing.pid), "--why", "bed time")
        assert (code, output.strip()) == (0, "ended: bed time")
        told, _ = pausing.communicate(timeout=LIMIT_SECONDS)
        assert pausing.returncode == 0, told
        _read([json.loads(line) for line in told.splitlines()])


def _read(told: list[dict[str, Any]]) -> None:
    """What a script was told of a peer that paused twice."""
    statuses = [event for event in told if event["event"] == "status"]
    states = [state for state, _ in groupby(status["state"] for status in statuses)]
    assert (states.count("pausing"), states.count("working"), states[-1]) == (2, 2, "ended")
    assert "pausing until that file is gone: its owner plays on" in [event.get("text") for event in told]
    assert told[-1]["text"] == "ended while it was pausing: bed time"
    for name in ("counted", "visits", "sent", "received"):
        assert sorted(status[name] for status in statuses) == [status[name] for status in statuses], name
    assert statuses[-1]["counted"] > 0
