"""When a machine takes no part: hours of any clock, days of noise, months of data, all of them invented."""

import random
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm_peer.errors import UsageError
from swarm_peer.peer.cli import main
from swarm_peer.peer.hours import DAY, Hours, clock_at
from swarm_peer.peer.owner import (
    BUSY_PERCENT,
    DISK_RESERVE,
    MEMORY_RESERVE,
    WELL_SECONDS,
    InHours,
    Pause,
    Rule,
    Rules,
    Seen,
    WhileQuiet,
    Wishes,
    WithinCap,
    WithMemory,
    parse_busy,
    rules_of,
)
from swarm_peer.peer.traffic import Cap
from swarm_peer.swarm.machine import Ticks

LOOK = 5.0
BERLIN = ZoneInfo("Europe/Berlin")


def shown_in(zone: ZoneInfo, at: float) -> time.struct_time:
    return datetime.fromtimestamp(at, zone).timetuple()


def berlin(at: float) -> time.struct_time:
    return shown_in(BERLIN, at)


def at(text: str, *, again: bool = False) -> float:
    """Unix seconds when the clock in Berlin shows this; the second time it does, `again`."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=again).timestamp()


# ---- hours


@pytest.mark.parametrize(
    ("text", "spans", "written"),
    [
        ("22-7", ((1320, 420),), "22:00-07:00"),
        ("22:30-07:05", ((1350, 425),), "22:30-07:05"),
        (" 22-7 , 12-13:30 ", ((1320, 420), (720, 810)), "22:00-07:00, 12:00-13:30"),
        ("0-24", ((0, 1440),), "00:00-24:00"),
        ("18-0", ((1080, 1440),), "18:00-24:00"),
        ("24-6", ((0, 360),), "00:00-06:00"),
    ],
)
def test_hours_as_people_write_them(text: str, spans: tuple[tuple[int, int], ...], written: str) -> None:
    hours = Hours.parse(text)
    assert (hours.spans, str(hours)) == (spans, written)


@pytest.mark.parametrize(
    "text",
    ["", "22", "22-", "-7", "25-7", "7-24:01", "22:60-7", "22-7,", "7-7", "0-0", "24-0", "a-b", "22-7-9", "7--9"],
)
def test_what_are_no_hours(text: str) -> None:
    with pytest.raises(UsageError, match="hours are"):
        Hours.parse(text)


minutes = st.integers(0, DAY - 1)
spans = st.tuples(minutes, minutes).filter(lambda span: span[0] != span[1])


@given(st.lists(spans, min_size=1, max_size=4), minutes, st.sampled_from(["Europe/Berlin", "Asia/Kolkata", "UTC"]))
def test_hours_read_back_cover_what_they_say(written: list[tuple[int, int]], minute: int, zone: str) -> None:
    text = ",".join(f"{a // 60}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for a, b in written)
    hours = Hours.parse(text)
    assert Hours.parse(str(hours).replace(" ", "")) == hours
    covered = {at % DAY for a, b in written for at in range(a, b if b > a else b + DAY)}
    place = ZoneInfo(zone)
    now = datetime(2026, 6, 10, minute // 60, minute % 60, 30, tzinfo=place).timestamp()
    local = lambda when: shown_in(place, when)  # noqa: E731
    assert hours.cover(now, local) == (minute in covered)
    if minute not in covered:
        begins = hours.next_begin(now, local)
        waited = next(count for count in range(1, DAY + 1) if (minute + count) % DAY in covered)
        assert begins == now - 30 + 60 * waited
        assert hours.cover(begins, local)
        ended = hours.ended(now, local)
        since = next(count for count in range(DAY) if (minute - count - 1) % DAY in covered)
        assert (int(ended[:2]) * 60 + int(ended[3:])) % DAY == (minute - since) % DAY


@given(text=st.text(alphabet="0123456789:-, x", max_size=12))
def test_any_text_is_hours_or_is_refused(text: str) -> None:
    try:
        hours = Hours.parse(text)
    except UsageError:
        return
    assert Hours.parse(str(hours)) == hours


def test_a_night_when_the_clock_is_put_forward() -> None:
    """2026-03-29: 02:00 becomes 03:00."""
    night = InHours(Hours.parse("22-2:30"), berlin)
    assert night.see(seen(at("2026-03-29 01:59"))) is None
    found = night.see(seen(at("2026-03-29 01:59") + 60))
    assert found == Pause("it is after 02:30: its owner lends this machine 22:00-02:30", "until 22:00")
    # Hours that are passed over are there the next day.
    gone = Hours.parse("2:15-2:45")
    assert gone.next_begin(at("2026-03-28 12:00"), berlin) == at("2026-03-30 02:15")
    # Half of them: they begin when the clock shows what is left.
    half = Hours.parse("2:30-4")
    assert clock_at(half.next_begin(at("2026-03-29 01:00"), berlin), berlin) == "03:00"


def test_a_night_when_the_clock_is_put_back() -> None:
    """2026-10-25: 03:00 becomes 02:00."""
    hours = Hours.parse("22-2:30")
    assert hours.cover(at("2026-10-25 02:15"), berlin)
    assert not hours.cover(at("2026-10-25 02:45"), berlin)
    assert hours.next_begin(at("2026-10-25 02:45"), berlin) == at("2026-10-25 02:00", again=True)
    assert hours.cover(at("2026-10-25 02:15", again=True), berlin)
    assert not hours.cover(at("2026-10-25 02:45", again=True), berlin)


# ---- looks at a machine


def seen(now: float = 0.0, **others: object) -> Seen:
    return Seen(now, now, **others)  # type: ignore[arg-type]


class Day:
    """A machine of four cores whose other programs use what `load(second)` says, of 1; looked at every 5 s."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.now = 0.0
        self.every = self.ran = self.own = 0
        self.pauses: list[tuple[float, str]] = []
        """When it was said to pause (the reason) or not to (empty)."""

    def spend(self, seconds: float, load: float, own: float = 0.0) -> None:
        ends = self.now + seconds
        while self.now < ends:
            self.now += LOOK
            ticks = int(LOOK * 400)
            # Both want cores that there are only once.
            mine = 0.0 if self.pausing else min(own, max(1.0 - load, own / (own + load) if own + load else 0.0))
            others = min(load, 1.0 - mine)
            self.every += ticks
            self.own += int(mine * ticks)
            self.ran += int(mine * ticks) + int(others * ticks)
            pause = self.rule.see(seen(self.now, ticks=Ticks(self.every, self.ran, self.own)))
            if (pause is not None) != self.pausing:
                self.pauses.append((self.now, "" if pause is None else pause.why))

    @property
    def pausing(self) -> bool:
        return bool(self.pauses and self.pauses[-1][1])


def test_its_own_work_is_no_reason() -> None:
    day = Day(WhileQuiet(0.25))
    day.spend(3600, load=0.1, own=1.0)
    assert day.pauses == []


def test_a_busy_machine_is_left_after_a_minute_and_comes_back_when_it_has_been_quiet() -> None:
    day = Day(WhileQuiet(0.25))
    day.spend(600, load=0.05, own=0.5)
    day.spend(40, load=0.9)  # a moment's work: less than a quarter of a minute's average comes of it only at its end
    busy_from = day.now
    day.spend(300, load=0.9)
    (left,) = day.pauses
    assert left[0] <= busy_from + 60
    assert left[1].startswith("this machine is busy with other work: ")
    quiet_from = day.now
    day.spend(WELL_SECONDS + 120, load=0.05)
    assert [bool(why) for _, why in day.pauses] == [True, False]
    assert quiet_from + WELL_SECONDS <= day.pauses[1][0] <= quiet_from + WELL_SECONDS + 60 + LOOK


def test_it_says_how_busy() -> None:
    day = Day(WhileQuiet(0.5))
    day.spend(65, load=0.83)
    assert day.pauses == [(65.0, "this machine is busy with other work: 83 % of its cores")]


def test_two_that_want_all_cores_are_told_apart() -> None:
    """A peer that keeps every core busy beside a program that would: half of them is more than a quarter."""
    day = Day(WhileQuiet(BUSY_PERCENT / 100))
    day.spend(120, load=1.0, own=1.0)
    assert day.pauses


def test_between_the_two_bounds_nothing_changes() -> None:
    """Less than makes it leave, more than lets it come again."""
    day = Day(WhileQuiet(0.25))
    day.spend(3600, load=0.22)
    assert day.pauses == []
    day.spend(120, load=0.5)
    day.spend(3600, load=0.22)
    assert len(day.pauses) == 1


@pytest.mark.parametrize("seed", range(8))
def test_a_noisy_day_does_not_make_it_flap(seed: int) -> None:
    """A day of compiling, films and nothing, each for seconds or minutes: an hour has few pauses, whatever it has."""
    chance = random.Random(seed)
    day = Day(WhileQuiet(0.25))
    while day.now < 24 * 3600:
        day.spend(chance.choice((5, 20, 60, 200, 400, 900)), chance.choice((0.0, 0.05, 0.2, 0.3, 0.6, 1.0)), own=0.8)
    begins = [when for when, why in day.pauses if why]
    ends = [when for when, why in day.pauses if not why]
    assert begins
    for begin, end in zip(begins, ends, strict=False):
        assert end - begin >= WELL_SECONDS
    for hour in range(24):
        assert sum(hour * 3600 <= begin < (hour + 1) * 3600 for begin in begins) <= 4
    # The next pause within the hour is twice as long at the least, up to an hour.
    waits = [WELL_SECONDS]
    for (before, end), begin in zip(pairwise([0.0, *ends]), begins[1:], strict=False):
        assert before <= end
        waits.append(min(3600.0, 2 * waits[-1]) if begin - end <= 3600 else WELL_SECONDS)
    for begin, end, wait in zip(begins, ends, waits, strict=False):
        assert end - begin >= wait


def test_where_nobody_says_how_busy_it_is_nothing_is_said() -> None:
    rule = WhileQuiet(0.25)
    assert [rule.see(seen(now, ticks=None)) for now in range(0, 600, 5)] == [None] * 120


# ---- data


def test_a_cap_holds_until_its_period_ends() -> None:
    month = WithinCap(Cap.parse("50GB/month"), berlin)
    assert month.see(seen(at("2026-05-31 23:59"), moved=50 * 10**9 - 1)) is None
    found = month.see(seen(at("2026-05-31 23:59"), moved=50 * 10**9))
    assert found == Pause("its data cap of 50 GB a month is used up", "until 2026-06-01")
    assert month.see(seen(at("2026-06-01 00:00"), moved=0)) is None
    assert month.cap.until(at("2026-12-24 12:00"), berlin) == "until 2027-01-01"
    day = WithinCap(Cap.parse("1.5GB/day"), berlin).see(seen(moved=10**10))
    assert day == Pause("its data cap of 1.5 GB a day is used up", "until midnight")
    run = WithinCap(Cap.parse("200MB"), berlin).see(seen(moved=10**10))
    assert run == Pause("its data cap of 200 MB is used up", "")


# ---- memory and disk


def looks(rule: Rule, count: int, begin: float, **others: object) -> Iterator[Pause | None]:
    return (rule.see(seen(begin + LOOK * number, **others)) for number in range(count))


def test_memory_must_be_short_for_some_looks_in_a_row() -> None:
    rule = WithMemory(MEMORY_RESERVE)
    for begin in range(0, 100, 20):
        assert list(looks(rule, 2, begin, room=5 << 30, held=(5 << 30) - 100)) == [None, None]
        assert list(looks(rule, 1, begin + 10, room=5 << 30, held=1 << 30)) == [None]
    found = list(looks(rule, 3, 200.0, room=5 << 30, held=(5 << 30) - 210_000_000))
    assert found == [
        None,
        None,
        Pause("this machine is short of memory: 210 MB left", "until there is memory again"),
    ]


def test_what_it_gives_back_itself_is_no_reason_to_come_again() -> None:
    """It held 4 of 5 GiB when another program took the last. Alone it has 4 GiB free, and would be short again."""
    rule = WithMemory(1 << 28)
    assert not any(looks(rule, 10, 0.0, room=5 << 30, held=4 << 30))
    assert list(looks(rule, 3, 50.0, room=(4 << 30) + 1000, held=4 << 30))[-1] is not None
    assert all(looks(rule, 1000, 65.0, room=(4 << 30) + 1000, held=1 << 28))
    assert all(looks(rule, 1000, 5065.0, room=(4 << 30) + (1 << 28), held=1 << 28))
    back = list(looks(rule, 100, 10_065.0, room=(4 << 30) + (2 << 28), held=1 << 28))
    assert back.index(None) == WELL_SECONDS / LOOK
    assert not any(back[back.index(None) :])


def test_a_disk_that_runs_full() -> None:
    rules = rules_of(Wishes(), 1 << 30)
    found = [rules.see(seen(LOOK * number, disk=300_000_000)) for number in range(4)]
    pause = Pause("this machine is short of disk: 300 MB left", "until 1.07 GB of disk are free again")
    assert found == [None, None, pause, pause]
    assert rules.see(seen(20.0, disk=2 * DISK_RESERVE)) == pause
    assert rules.see(seen(20.0 + WELL_SECONDS, disk=2 * DISK_RESERVE)) is None


def test_the_reserve_of_memory_is_a_part_of_a_large_one() -> None:
    rules = rules_of(Wishes(), 100 << 30)
    found = [rules.see(seen(LOOK * number, room=50 << 30, held=49 << 30)) for number in range(3)]
    assert found[-1] is not None
    small = rules_of(Wishes(), 1 << 30)
    assert not any(small.see(seen(LOOK * number, room=50 << 30, held=49 << 30)) for number in range(3))


# ---- all together


class Says:
    def __init__(self, pause: Pause | None) -> None:
        self.pause = pause
        self.looks = 0

    def see(self, seen: Seen) -> Pause | None:
        self.looks += 1
        return self.pause


def test_every_rule_sees_every_look_and_what_is_for_good_comes_first() -> None:
    rules = [Says(None), Says(Pause("for now", "until then")), Says(Pause("over", "")), Says(Pause("later", "until x"))]
    assert Rules(rules).see(seen()) == Pause("over", "")
    assert Rules(rules[:2] + rules[3:]).see(seen()) == Pause("for now", "until then")
    assert Rules(rules[:1]).see(seen()) is None
    assert [rule.looks for rule in rules] == [3, 2, 1, 2]


# ---- the flags


def test_flags_stand_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWARM_PEER_CONFIG", str(tmp_path))
    monkeypatch.setenv("SWARM_PEER_STATE", str(tmp_path))
    join = ["join", "--model", "tiny", "--folder", str(tmp_path / "f")]
    (tmp_path / "swarm-peer.toml").write_text('[join]\nhours = "7-7"\n')
    assert main(join) == 2
    assert "7-7 is no time at all" in capsys.readouterr().err
    assert main([*join, "--hours", "22-7", "--data-cap", "50%"]) == 2
    assert "data cap is '50%'; wanted such as" in capsys.readouterr().err
    monkeypatch.setenv("SWARM_PEER_JOIN_PAUSE_WHEN_BUSY", "0.5")
    assert main([*join, "--hours", "22-7"]) == 2
    assert "wanted a percentage from 1% to 99%" in capsys.readouterr().err
    (tmp_path / "swarm-peer.toml").write_text('[join]\npause-when-busy = true\nhours = "22-7"\n')
    monkeypatch.delenv("SWARM_PEER_JOIN_PAUSE_WHEN_BUSY")
    for flags in ([], ["--pause-when-busy"], ["--pause-when-busy", "40%", "--data-cap", "2GB/day"]):
        assert main([*join, *flags]) == 2
        assert "no run of 'tiny' leads from this machine" in capsys.readouterr().err


def test_shares_of_the_cores() -> None:
    assert [parse_busy(text) for text in ("40%", "40", "true", "false", "True")] == [40, 40, BUSY_PERCENT, None, 25]
    for text in ("0%", "100%", "101", "40GB", "much", ""):
        with pytest.raises(UsageError, match="share of the cores"):
            parse_busy(text)
