"""The dashboard in a real browser, beside the real server and an invented run: states that are rare, many peers, names
that mean no good, downloads (`browser.py`)."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvloop
from swarm_peer.swarm import events
from swarm_peer.swarm.chronicle import Chronicle
from swarm_peer.swarm.dashboard.server import serve_live
from swarm_peer.swarm.events import Event

from tests.browser import SECONDS, Page, needs_browser
from tests.watched_run import beginning, pulse, stepped, told

pytestmark = needs_browser

EVIL = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


class Shown:
    """A chronicle that is served on a loop of its own thread."""

    def __init__(self, chronicle: Chronicle) -> None:
        self.chronicle = chronicle
        self.url = ""
        self._serving = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._serving.wait(SECONDS)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with serve_live(self.chronicle, "127.0.0.1:0") as self.url:
            self._serving.set()
            await self._over.wait()

    def emit(self, *story: Event) -> None:
        for event in story:
            self._loop.call_soon_threadsafe(self.chronicle.emit, event)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(SECONDS)


@contextmanager
def shown(*story: Event) -> Iterator[Shown]:
    served = Shown(told(*story))
    try:
        yield served
    finally:
        served.close()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with Page() as opened:
        yield opened


def test_each_state_of_a_run_has_its_look(page: Page) -> None:
    kept = events.Kept("adapter", 7, "/nowhere", (("adapter_model.safetensors", 1_500_000, "ab" * 32),))
    with shown() as run:
        page.open(run.url)
        page.wait(lambda: "nothing is known of this run yet" in page.text("#sentence"), "a run without an event")
        assert all(page.text(f"#no-{part}") for part in ("stages", "peers", "notes", "kept"))
        run.emit(*beginning())
        page.wait(lambda: page.text("#phase") == "training", "the run")
        looks = {"training": page.run("return getComputedStyle(document.querySelector('#run')).borderTopColor")}
        for event, phase in (
            (events.Paused(), "paused"),
            (events.Resumed(), "training"),
            (events.Waiting(1), "waiting"),
            (events.Follows("peer9", 2), "standby"),
            (events.Leads(3), "gathering"),
            (events.Concluded("no peer came"), "stopped"),
        ):
            run.emit(event)
            page.wait(lambda phase=phase: page.text("#phase") == phase, phase)  # type: ignore[misc]
            assert page.run("return document.querySelector('#phase-mark use').getAttribute('href')") == f"#i-{phase}"
            looks[phase] = page.run("return getComputedStyle(document.querySelector('#run')).borderTopColor")
            assert page.run("return document.querySelector(arguments[0]) !== null", f"symbol#i-{phase}")
        assert looks["training"] != looks["paused"] != looks["waiting"] != looks["standby"]
        assert page.text("#sentence") == "it cannot go on: no peer came"
        page.shoot("stopped")
        run.emit(kept, events.Concluded(""))
        page.wait(lambda: page.text("#phase") == "finished", "the end")
        assert "Nothing any more" in page.text("#needs")
        assert page.run("return document.querySelector('#kept a').getAttribute('href')") == (
            "/files/0/adapter_model.safetensors"
        )
        assert page.text("#kept .size") == "1.5 MB · adapter of version 7"
        assert page.text("#kept code") == "ab" * 32
        # The same folder again, behind another one: its files are the second's now.
        other = events.Kept("checkpoint", 8, "/elsewhere", (("checkpoint.tar", 10, "cd" * 32),))
        run.emit(other, kept)
        page.wait(lambda: len(page.texts("#kept a")) == 2, "both downloads")
        hrefs = "return [...document.querySelectorAll('#kept a')].map((node) => node.getAttribute('href')).sort()"
        page.wait(
            lambda: page.run(hrefs) == ["/files/0/checkpoint.tar", "/files/1/adapter_model.safetensors"], "their order"
        )
        assert page.errors() == []


def test_a_loss_as_it_happens(page: Page) -> None:
    """What comes after the page is open comes as patches, which cannot say that something is null."""
    idle = events.Lost(1, "peer1", 0, 1, "gone", 10.0)
    busy = events.Lost(2, "peer2", 1, 1, "silent", 11.0, silent=2.0, rerun=3)
    with shown(*beginning()) as run:
        page.open(run.url)
        page.wait(lambda: page.text("#phase") == "training", "the run")
        run.emit(idle)
        page.wait(lambda: "at once, nothing was open" in page.text("#faults"), "a loss without work")
        run.emit(busy)
        page.wait(lambda: "after 2.0 s, not yet" in page.text("#faults"), "a loss whose work is to be run again")
        run.emit(events.Rerouted(2, "peer2", 1, 0, 11.5))
        page.wait(lambda: "after 2.0 s, in 500 ms" in page.text("#faults"), "its work, run again")
        assert page.errors() == []


def test_an_ideal_below_the_pace_is_not_shown(page: Page) -> None:
    """Right after a loss, or when peers turn slow, the pace is still that of before."""
    with shown(*beginning(), stepped(1)) as run:
        page.open(run.url)
        page.wait(lambda: "on ideal links" in page.text("#pace-legend"), "the ideal beside the pace")
        run.emit(events.Pulse(tuple(pulse(number, seconds=20.0) for number in range(1, 7)), (), 0, 3, 12, 5000))
        page.wait(lambda: "on ideal links" not in page.text("#pace-legend"), "the pace alone")
        assert page.figure("Of ideal links").startswith("–")
        assert page.errors() == []


def test_what_is_lost_is_said_outright(page: Page) -> None:
    with shown(*beginning(), stepped(1), events.Settled(1, ((1, 2),), 4, 1, 2, 0, 0)) as run:
        page.open(run.url)
        page.wait(lambda: page.texts("#promise .badge") == ["lost 1", "duplicated 2"], "what is lost")
        assert page.run("return [...document.querySelectorAll('#promise .badge')].map((n) => n.dataset.tone)") == [
            "bad",
            "bad",
        ]


def test_names_are_text_wherever_they_stand(page: Page) -> None:
    """Names are cleaned before they are told; the page does not count on that."""
    story = [
        *beginning(),
        events.Joined(7, "peer7", 1, name=EVIL, device=EVIL, version=EVIL),
        events.Ready(7, "peer7", 1),
        events.Pulse((pulse(7),), (events.LinkPulse(7, "peer1", 0.1, 10**6),), 0, 3, 12, 1),
        events.Lost(7, "peer7", 1, 1, EVIL, 9.0, 1.0, 2),
    ]
    with shown(*story) as run:
        page.open(run.url + "#peer=peer7")
        page.wait(lambda: page.text("#peer-title") == EVIL, "the peer's page")
        assert EVIL in page.text("#peer-machine")
        page.click("#back")
        page.wait(lambda: page.text("#faults th") == EVIL, "the fault")
        assert all(EVIL in page.text(place) for place in ("#faults td.words", "#notes", "#peers"))
        assert page.run("return document.querySelectorAll('main img, main script').length") == 0
        assert "owned" not in page.run("return document.title")
        page.open(run.url + "#peer=%3Cimg%20src=x%3E")
        page.wait(lambda: page.texts("#overview h2"), "the run, for an address that is none of a peer")
        assert page.errors() == []


def test_a_thousand_peers(page: Page) -> None:
    """Lanes become fields of squares, tables show their first rows, and news changes what is there."""
    number = 1000
    story = beginning()[:3]
    story += [events.Joined(n, f"peer{n}", n % 3, name=f"box {n}") for n in range(1, number + 1)]
    story += [events.Ready(n, f"peer{n}", n % 3) for n in range(1, number) if n % 50]
    story += [events.Evaluated(0, 5.0)]
    with shown(*story) as run:
        page.open(run.url)
        page.wait(lambda: page.run("return document.querySelectorAll('#stages .square').length") == number, "all")
        assert page.text("#stages .sums").startswith("333 peers: ")
        assert "loading" in page.text("#stages .sums")
        assert len(page.texts("#peers tr")) == 25
        page.click("#peers-more")
        page.wait(lambda: len(page.texts("#peers tr")) == 125, "more peers")
        page.write("#search", "box 777")
        page.wait(lambda: page.texts("#peers th") == ["box 777"], "the one that is looked for")
        page.write("#search", " ")
        first = page.run("return document.querySelector('#stages .square')")
        page.run(
            "window.made = 0; new MutationObserver((list) => list.forEach((change) => {"
            " window.made += [...change.addedNodes].filter((node) => node.nodeType === 1).length; }))"
            ".observe(document.querySelector('#stages'), {childList: true, subtree: true})"
        )
        for second in range(1, 4):
            pulses = tuple(pulse(n, version=second) for n in range(1, number))
            run.emit(events.Pulse(pulses, (), second, 3, 12, 5000), stepped(second - 1))
            page.wait(lambda second=second: f"version {second}" in page.text("#stages .sums"), "news")  # type: ignore[misc]
        assert page.run("return [arguments[0].isConnected, window.made]", first) == [True, 0], "drawn anew"
        page.shoot("thousand")
        page.be_a_phone()
        page.wait(lambda: page.width() <= 360, "a page that is no wider than a phone")
        page.be_a_desktop()
        assert page.errors() == []
