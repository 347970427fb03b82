"""The dashboard in a real browser, beside a real coordinator and real peers: what a person sees of join, kill and
recovery, of a coordinator that is killed and comes again, and of the run when it is past.

Needs Chromium and its driver (Debian: `apt install chromium chromium-driver`); skipped where they are not installed.
`SWARM_PEER_SCREENSHOTS` names a folder for screenshots.
"""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from swarm_peer.peer.local_swarm import LocalSwarm
from swarm_peer.swarm.process import SharedFolder

from tests.processes import Home, home

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 120.0
"""Longest that is waited for what must come; nothing depends on how soon it does."""

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

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="chromium and chromium-driver are not installed"),
    # Selenium's, of sockets that it leaves to the interpreter.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Page:
    """A browser, and what a person would find in it."""

    def __init__(self, dark: bool = False) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1240,1500"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        self.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
        )

    def text(self, selector: str) -> str:
        """What is written there, whether or not it is in view."""
        found: str = self.browser.execute_script(
            "const node = document.querySelector(arguments[0]); return node ? node.textContent : ''", selector
        )
        return found

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector
        )
        return found

    def click(self, selector: str) -> None:
        self.browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        try:
            return WebDriverWait(self.browser, SECONDS, poll_frequency=0.1).until(lambda _: condition())
        except TimeoutException:
            raise AssertionError(f"{what} did not come; the page says: {self.text('#sentence')!r}") from None

    def errors(self) -> list[str]:
        """What the page's scripts complain of, but for connections that are cut."""
        log = self.browser.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE" and "ERR_" not in entry["message"]]

    def shoot(self, name: str) -> None:
        folder = os.environ.get("SWARM_PEER_SCREENSHOTS")
        if folder:
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))

    def be_a_phone(self) -> None:
        metrics = {"width": 360, "height": 1800, "deviceScaleFactor": 1, "mobile": True}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def width(self) -> int:
        found: int = self.browser.execute_script("return document.documentElement.scrollWidth")
        return found


class Run:
    """A coordinator and six peers, and a thread that hears the coordinator."""

    def __init__(self, place: Home) -> None:
        self.place = place
        self.swarm = LocalSwarm("tiny", SharedFolder.temporary(), place.environment)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.http = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{self.http}/"
        self.listening = threading.Event()
        self.said: dict[str, Any] = {}
        self.swarm.start_coordinator(MANIFEST, "--http", self.http)
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()
        assert self.listening.wait(SECONDS), self.swarm.last_words()

    def _hear(self) -> None:
        for event in self.swarm.events(lambda: None):
            if event["event"] == "listening" and not self.said:
                self.said.update(event)
                self.listening.set()

    def start_again(self) -> None:
        """The coordinator that was killed, by the command that it had printed."""
        self.swarm.start_standby(self.said["run_id"], self.said["addresses"], "--http", self.http, name="coordinator")

    def close(self) -> None:
        self.swarm.close()
        self.swarm.folder.leave()


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


def test_what_a_person_sees_of_a_run(place: Home) -> None:
    run = Run(place)
    page = Page()
    try:
        _watch(run, page)
        assert page.errors() == []
    finally:
        page.browser.quit()
        run.close()
    _look_back(place)


def _watch(run: Run, page: Page) -> None:
    swarm = run.swarm
    page.browser.get(run.url)

    # Nobody is there yet: the page says what it waits for.
    page.wait(lambda: "waiting for peers: stage 0 has 0 of 2" in page.text("#sentence"), "the wait for peers")
    assert page.text("#no-peers") == "No peer has joined yet."
    assert page.text("#connection") == "live"
    assert "--run " + run.said["run_id"] in page.text("#needs code")

    swarm.start_peers(6, run.said["run_id"], run.said["addresses"])
    page.wait(lambda: page.text("#phase") == "training", "the first step")
    page.wait(lambda: page.texts("#stages .seat .tag") == ["ready"] * 6, "six peers at work")
    assert [text[:7] for text in page.texts("#stages h3")] == ["Stage 0", "Stage 1", "Stage 2"]
    page.wait(lambda: page.texts("#stages [data-slowest=true]"), "a bottleneck")
    page.wait(lambda: "stage" in page.text("#needs .need") and "faster" in page.text("#needs dl"), "what is needed")
    page.wait(lambda: page.texts("#loss .line") and len(page.texts("#loss .point")) == 1, "the loss")
    page.wait(lambda: "of what ideal links would give" in page.text("#figures"), "the pace beside the ideal one")
    page.wait(lambda: "0 B" not in page.text("#wire div:nth-child(2) dd"), "bytes saved")
    assert page.texts("#promise .tag") == ["lost 0", "duplicated 0"]
    assert page.text("#no-faults").startswith("No peer has been lost")

    # A peer is killed: it is found, its work rerouted, nothing lost.
    victim = next(child for child in swarm.children.values() if child.peer and page_stage(page, child.peer) == 1)
    swarm.kill(victim)
    page.wait(lambda: page.texts("#faults tr"), "the fault")
    row = page.wait(lambda: [cell for cell in page.texts("#faults td") if " microbatch" in cell], "what is run again")
    assert row
    assert victim.peer[-8:] in page.text("#faults")
    page.wait(lambda: f"{victim.peer[-8:]} of stage 1 is lost" in page.text("#notes"), "the note")
    page.wait(lambda: page.text("#stages li:nth-child(2) .name").count("ready") == 1, "stage 1 with one replica")
    page.shoot("fault")

    # It comes again under its identity, and its page tells of both lives.
    number = int(victim.name.removeprefix("peer-"))
    swarm.start_peer(number, run.said["run_id"], run.said["addresses"])
    page.wait(lambda: page.texts("#stages .seat .tag") == ["ready"] * 6, "six peers again")
    page.click(f'#peers a[href="#peer={victim.peer}"]')
    page.wait(lambda: page.text("#peer-title") == victim.peer[-8:], "the peer's page")
    assert "lost once" in page.text("#peer-page")
    page.wait(lambda: page.text("#peer-page dd").split()[0] not in ("", "0"), "work that was accepted")
    page.shoot("peer")

    # The peers have measured their links by now.
    page.wait(lambda: "ms" in page.text("#links") and "bit/s" in page.text("#links"), "measured links")
    assert "direct" in page.text("#links")

    # The coordinator is killed and started again: the page comes back by itself, with all that was.
    steps = int(page.text("#figures dd").split(" ")[0].replace(",", ""))
    faults = page.text("#faults")
    swarm.kill(swarm.children["coordinator"])
    page.wait(lambda: page.text("#connection").startswith("reconnecting since"), "the loss of the connection")
    run.start_again()
    page.wait(lambda: page.text("#connection") == "live", "the connection")
    page.wait(lambda: page.text("#phase") == "training", "the run that goes on")
    page.wait(lambda: int(page.text("#figures dd").split(" ")[0].replace(",", "")) > steps, "a step more")
    assert faults in page.text("#faults")
    assert f"{victim.peer[-8:]} of stage 1 is lost" in page.text("#notes")
    assert page.texts("#promise .tag") == ["lost 0", "duplicated 0"]

    page.browser.get(run.url)
    page.wait(lambda: page.texts("#loss .line"), "the page")
    page.wait(lambda: "faster" in page.text("#needs dl") or "safer" in page.text("#needs dl"), "what is needed now")
    page.shoot("light")
    page.click("#theme")
    assert page.browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    page.shoot("dark")
    page.be_a_phone()
    page.wait(lambda: page.width() <= 360, "a page that is no wider than a phone")
    page.shoot("phone")
    _is_usable_by_keyboard(page)


def page_stage(page: Page, peer: str) -> int:
    """The stage in whose lane a peer is shown."""
    stages: int = page.browser.execute_script(
        "const seat = document.querySelector(`a.seat[href='#peer=${arguments[0]}']`);"
        "return seat ? [...document.querySelectorAll('#stages > li')].indexOf(seat.closest('li')) : -1",
        peer,
    )
    return stages


def _is_usable_by_keyboard(page: Page) -> None:
    """The first stop of the tabulator leads past the head; everything that can be pressed has a name."""
    page.browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    ActionChains(page.browser).send_keys(Keys.TAB).perform()
    assert page.browser.execute_script("return document.activeElement.textContent") == "Skip to the run"
    nameless = page.browser.execute_script(
        "return [...document.querySelectorAll('button, a, input, select')].filter((node) =>"
        " !(node.textContent.trim() || node.getAttribute('aria-label') || node.closest('label'))).length"
    )
    assert nameless == 0
    headings = [int(name[1]) for name in page.browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')].map((node) => node.tagName)"
    )]  # fmt: skip
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


def _look_back(place: Home) -> None:
    """The same run when it is past, from its log."""
    log = next((place.folder / "s" / "events").rglob("*.events")).parent
    replaying = place.start("swarm-coordinator", "replay", str(log))
    page = Page(dark=True)
    try:
        assert replaying.stdout is not None
        url = next(word for word in replaying.stdout.readline().split() if word.startswith("http://"))
        page.browser.get(url)
        page.wait(lambda: page.text("#moment"), "the slider")
        assert page.browser.execute_script("return document.documentElement.dataset.theme") == "dark"
        assert page.text("#connection") == "replay"
        assert page.texts("#faults tr")
        page.browser.execute_script(
            "const slider = document.querySelector('#slider'); slider.value = 3;"
            "slider.dispatchEvent(new Event('input'))"
        )
        page.wait(lambda: page.text("#moment").endswith(f"event 3 of {page.text('#moment').split()[-1]}"), "the start")
        page.wait(lambda: not page.texts("#faults tr"), "a moment before the fault")
        page.wait(lambda: page.text("#phase") == "gathering", "the beginning")
        page.browser.execute_script(
            "const stops = document.querySelector('#stops');"
            "stops.value = [...stops.options].find((stop) => stop.textContent.includes('is lost')).value;"
            "stops.dispatchEvent(new Event('change'))"
        )
        page.wait(lambda: page.texts("#faults tr"), "the moment of the fault")
        page.shoot("replay")
        page.click("#play")
        page.wait(lambda: page.text("#play") == "Pause", "the run playing")
        assert page.errors() == []
    finally:
        page.browser.quit()
        replaying.terminate()
        replaying.communicate(timeout=60)
