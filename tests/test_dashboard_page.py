"""The dashboard in a real browser, beside a real coordinator and real peers: what a person sees of join, kill and
recovery, of a coordinator that is killed and comes again, and of the run when it is past (`browser.py`)."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from tests.browser import SECONDS, Page, needs_browser
from tests.processes import AT_LEISURE, Home, home

pytestmark = needs_browser

MANIFEST = """
[model]
name = "tiny"
stages = 3
[train]
mode = "lora"
steps = 100000
batch = 4
microbatch = 1
[data]
texts = ["shakespeare"]
heldout = ["hamlet"]
sequence_length = 32
[pipeline]
standby = true
min_replicas = 2
"""

NAMES = ["attic", "basement", "night owl", "lab 4", "küche", "zoë's (old)"]
REMEMBER_LABELS = """
const button = document.querySelector("#needs .copy");
window.labels = [];
new MutationObserver(() => labels.push(button.textContent)).observe(button, { childList: true, subtree: true });
"""

SHOWN = [*NAMES[:-1], "zoës (old)"]
"""What the trainer lets through of them."""


class Run:
    """A coordinator, and a thread that hears it."""

    def __init__(self, place: Home) -> None:
        self.swarm = place.swarm()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.http = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{self.http}/"
        self.listening = threading.Event()
        self.said: dict[str, Any] = {}
        self.swarm.start_coordinator(MANIFEST, "--http", self.http)
        threading.Thread(target=self._hear, daemon=True).start()
        assert self.listening.wait(SECONDS), self.swarm.last_words()

    def _hear(self) -> None:
        for event in self.swarm.events(lambda: None):
            if event["event"] == "listening" and not self.said:
                self.said.update(event)
                self.listening.set()

    def start_peer(self, number: int) -> None:
        self.swarm.start_peer(number, self.said["run_id"], self.said["addresses"], "--name", NAMES[number], *AT_LEISURE)

    def start_again(self) -> None:
        """The coordinator that was killed, by the command that it had printed."""
        self.swarm.start_standby(self.said["run_id"], self.said["addresses"], "--http", self.http, name="coordinator")


@contextmanager
def running(place: Home) -> Iterator[Run]:
    run = Run(place)
    try:
        yield run
    finally:
        run.swarm.close()
        run.swarm.folder.leave()


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


def test_what_a_person_sees_of_a_run(place: Home) -> None:
    with Page() as page:
        with running(place) as run:
            page.open(run.url)
            _gathers(run, page)
            _trains(run, page)
            victim = _loses_a_peer(run, page)
            _sees_one_peer(page, victim)
            _loses_its_coordinator(run, page)
            _is_read_by_everyone(run, page)
            assert page.errors() == []
        _is_looked_back_at(place, page)
        assert page.errors() == []


def steps_done(page: Page) -> int:
    return int((page.text("#progress-words").split() or ["Step", "0"])[1].replace(",", ""))


def seats(page: Page) -> list[tuple[str, str]]:
    """(name, state) of every peer in the stage map, lane by lane."""
    found: list[tuple[str, str]] = page.run(
        "return [...document.querySelectorAll('#stages .seat .name')].map((node) =>"
        " [node.firstChild.textContent, node.lastChild.textContent])"
    )
    return found


def _gathers(run: Run, page: Page) -> None:
    """Nobody is there yet: the page says what it waits for, and how to help."""
    page.wait(lambda: "waiting for peers: stage 0 has 0 of 2" in page.text("#sentence"), "the wait for peers")
    page.wait(lambda: page.text("#connection") == "live", "the feed")
    assert page.text("#phase") == "gathering"
    assert page.text("#no-peers") == "No peer has joined yet."
    assert page.texts("#stages .tag") == ["no replica yet"] * 3
    assert "--run " + run.said["run_id"] in page.text("#needs code")
    assert page.text("#spoken").startswith("Gathering: ")


def _trains(run: Run, page: Page) -> None:
    for number in range(6):
        run.start_peer(number)
    page.wait(lambda: page.text("#phase") == "training", "the first step")
    page.wait(lambda: [state for _, state in seats(page)] == ["ready"] * 6, "six peers at work")
    assert sorted(name for name, _ in seats(page)) == sorted(SHOWN)
    assert page.text("#spoken").startswith("Training: ")

    assert [text[:7] for text in page.texts("#stages h3")] == ["Stage 0", "Stage 1", "Stage 2"]
    page.wait(lambda: page.texts("#stages [data-slowest] .tag") == ["bottleneck"], "a bottleneck")
    page.wait(lambda: "faster" in page.text("#needs dl") or "safer" in page.text("#needs dl"), "what is needed")
    assert page.text("#needs .need").startswith("One more machine at stage ")
    page.run(REMEMBER_LABELS)  # what the button says is gone soon, perhaps before somebody looks again
    page.click("#needs .copy")
    page.wait(lambda: {"Copied", "Selected"} & set(page.run("return labels")), "the command in the clipboard")

    page.wait(lambda: steps_done(page) >= 3, "some steps")
    assert page.named("image", "Loss over the steps")
    assert page.named("image", "Tokens a second over the steps")
    page.wait(
        lambda: page.run("return document.querySelectorAll('#loss .line.loss, #loss .point').length") == 2, "loss"
    )
    assert page.text("#loss-words").startswith("Training loss ")
    page.wait(lambda: "%" in page.figure("Of ideal links"), "the pace beside the ideal one")
    assert "tokens learned" in page.figure("Tokens a second")
    page.wait(lambda: page.figure("Saved by compression", "#wire")[:2] not in ("", "0 "), "bytes saved")
    assert page.texts("#promise .badge") == ["lost 0", "duplicated 0"]
    assert "in its update exactly once" in page.text("#promise .told")
    assert page.text("#no-faults").startswith("No peer has been lost")


def _loses_a_peer(run: Run, page: Page) -> str:
    """One is killed: it is found, its work rerouted, nothing lost; then it comes again. Its peer id."""
    link = "#stages > li:nth-child(2) .seat"
    victim = run.swarm.child_of(str(page.run("return document.querySelector(arguments[0]).hash", link)).split("=")[1])
    number = int(victim.name.removeprefix("peer-"))
    run.swarm.kill(victim)
    page.wait(lambda: page.texts("#faults th") == [SHOWN[number]], "the fault")
    assert page.text("#faults td").split(",")[0].startswith(("after ", "at once"))
    assert "microbatch" in page.text("#faults td:nth-child(3)")
    page.wait(lambda: f"{SHOWN[number]} of stage 1 is lost" in page.text("#notes"), "the note")
    page.wait(lambda: len(page.texts("#stages > li:nth-child(2) .seat")) == 1, "stage 1 with one replica")
    page.wait(lambda: "1 peer was lost on the way" in page.text("#promise"), "the count of losses")
    assert page.texts("#promise .badge") == ["lost 0", "duplicated 0"]
    page.shoot("fault")
    run.start_peer(number)
    page.wait(lambda: [state for _, state in seats(page)] == ["ready"] * 6, "six peers again")
    return victim.peer


def _sees_one_peer(page: Page, peer: str) -> None:
    """The board finds it, its page tells of both its lives, and leads back."""
    page.write("#search", peer[-6:])
    page.wait(lambda: len(page.texts("#peers tr")) == 1, "the peer that is looked for")
    page.click(f'#peers a[href="#peer={peer}"]')
    page.wait(lambda: page.text("#peer-id") == peer, "the peer's page")
    assert page.text("#peer-title") in SHOWN
    assert page.run("return document.activeElement.id") == "peer-title"
    page.wait(lambda: page.figure("Work accepted", "#peer-figures")[:1] not in ("", "0"), "work that was accepted")
    page.wait(lambda: "visits/s" in page.figure("Throughput", "#peer-figures"), "its throughput")
    assert "lost once" in page.figure("Online", "#peer-figures")
    assert "rank " in page.figure("Credit", "#peer-figures")
    assert page.text("#peer-waits").startswith("It ")
    assert "is lost at step" in page.text("#peer-notes")
    assert page.texts("#overview h2") == []
    page.shoot("peer")
    page.click("#back")
    page.wait(lambda: page.texts("#overview h2"), "the whole run")
    page.write("#search", "nobody is called that")
    page.wait(lambda: page.text("#no-peers").startswith("No peer is called that"), "no peer")
    page.write("#search", "stage 2")
    page.wait(lambda: len(page.texts("#peers tr")) == 2, "the peers of a stage")
    page.write("#search", " ")
    page.wait(lambda: len(page.texts("#peers tr")) == 6, "all peers")
    assert page.run("return document.querySelector('#board-head [aria-sort]').textContent") == "Credit↓"
    page.click("#board-head [data-key=name] button")
    page.wait(lambda: page.texts("#peers th") == sorted(SHOWN, key=str.lower), "the peers by their names")
    page.click("#board-head [data-key=credit] button")

    # The peers have measured their links by now.
    page.wait(lambda: "ms" in page.text("#cuts") and "bit/s" in page.text("#cuts"), "measured links")
    assert "direct" in page.text("#cuts")
    page.click("#links-summary")
    page.wait(lambda: "bit/s" in page.text("#links"), "every link")
    page.click("#links-summary")


def _loses_its_coordinator(run: Run, page: Page) -> None:
    """It is killed and started again: the page comes back by itself, with all that was."""
    steps, fault = steps_done(page), page.text("#faults")
    run.swarm.kill(run.swarm.children["coordinator"])
    page.wait(lambda: page.text("#connection").startswith("reconnecting since"), "the loss of the connection")
    assert page.text("#faults") == fault
    run.start_again()
    page.wait(lambda: page.text("#connection") == "live", "the connection")
    page.wait(lambda: page.text("#phase") == "training", "the run that goes on")
    page.wait(lambda: steps_done(page) > steps, "a step more")
    assert fault in page.text("#faults")
    assert "is lost at step" in page.text("#notes")
    assert page.texts("#promise .badge") == ["lost 0", "duplicated 0"]


def _is_read_by_everyone(run: Run, page: Page) -> None:
    """In both themes, on a phone, by keyboard and by a screen reader."""
    page.open(run.url)
    page.wait(lambda: "faster" in page.text("#needs dl") or "safer" in page.text("#needs dl"), "what is needed now")
    page.wait(lambda: "bit/s" in page.text("#cuts"), "links under the new trainer")
    page.shoot("light")
    for role, name in (("banner", ""), ("main", ""), ("navigation", "Parts of this page"), ("region", "Stages")):
        assert len(page.named(role, name)) == 1, (role, name)
    assert page.named("progressbar", "Steps done")
    assert page.named("searchbox", "Find a peer")
    assert {"Peer", "Credit", "Found, rerouted", "Round trip"} <= set(page.named("columnheader"))
    headings = [int(name[1]) for name in page.run(
        "return [...document.querySelectorAll('h1, h2, h3')].filter((node) => node.checkVisibility())"
        ".map((node) => node.tagName)"
    )]  # fmt: skip
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert "" not in [*page.named("button"), *page.named("link"), *page.named("combobox"), *page.named("searchbox")]

    page.run("document.activeElement.blur(); scrollTo(0, 0)")
    page.press("TAB")
    assert page.run("return document.activeElement.textContent") == "Skip to the run"
    page.press("ENTER", "TAB")
    assert page.run("return document.querySelector('main').contains(document.activeElement)")

    assert page.named("button", "Use the dark theme")
    page.click("#theme")
    assert page.named("button", "Use the light theme")
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    page.open(run.url)
    assert page.run("return getComputedStyle(document.body).backgroundColor") == background, "the theme is forgotten"
    page.wait(lambda: page.run("return document.querySelectorAll('#loss .line').length") >= 1, "the page")
    page.wait(lambda: len(seats(page)) == 6, "its peers")
    page.shoot("dark")

    page.be_a_phone()
    page.wait(lambda: page.run("return innerWidth") == 360, "the narrow window")
    page.wait(lambda: page.width() <= 360, "a page that is no wider than a phone")
    page.shoot("phone")
    page.run("location.hash = document.querySelector('#peers a').hash")
    page.wait(lambda: page.text("#peer-title"), "a peer's page")
    assert page.width() <= 360
    page.shoot("phone-peer")


def _is_looked_back_at(place: Home, page: Page) -> None:
    """The same run when it is past, from its log."""
    log = next((place.folder / "s" / "events").rglob("*.events")).parent
    replaying = place.start("swarm-coordinator", "replay", str(log))
    try:
        assert replaying.stdout is not None
        said = replaying.stdout.readline()
        url = next((word for word in said.split() if word.startswith("http://")), "")
        assert url, said
        page.be_a_desktop()
        page.open(url)
        page.wait(lambda: page.text("#moment"), "the slider")
        assert page.text("#connection") == "a past run"
        assert page.texts("#faults tr")
        assert page.named("slider", "Moment of the run")
        ended = steps_done(page)

        page.run("document.querySelector('#slider').focus()")
        page.press("HOME")
        page.wait(lambda: page.text("#phase") == "gathering" and not page.texts("#faults tr"), "the beginning")
        page.press("ARROW_RIGHT")
        page.wait(lambda: not page.text("#moment").split("·")[-1].strip().startswith("0 ms"), "a moment later")

        # From one notable event to the next, until the peer is lost.
        stops = page.run("return [...document.querySelector('#stops').options].map((stop) => stop.textContent)")
        lost = next(number for number, text in enumerate(stops) if " is lost " in text)
        page.run(
            "const stops = document.querySelector('#stops'); stops.selectedIndex = arguments[0];"
            "stops.dispatchEvent(new Event('change'))",
            lost - 1,
        )
        page.wait(lambda: page.run("return document.querySelector('#stops').selectedIndex") == lost - 1, "the stop")
        assert not page.texts("#faults tr")
        page.click("#after")
        page.wait(lambda: page.texts("#faults tr"), "the moment of the fault")
        assert 0 < steps_done(page) < ended
        page.shoot("replay")

        page.run("const speed = document.querySelector('#speed'); speed.selectedIndex = speed.options.length - 1")
        page.click("#play")
        page.wait(lambda: steps_done(page) == ended, "the run played to its end")
        page.wait(lambda: page.named("button", "Play"), "its end")
    finally:
        replaying.terminate()
        replaying.communicate(timeout=60)
