"""A browser for tests of the dashboard, and what a person would find in a page: by what is written, by role and by name.

Needs Chromium and its driver (`make browser`; Debian: `apt install chromium chromium-driver`). `SWARM_PEER_SCREENSHOTS`
names a folder for screenshots.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 120.0
"""Longest that is waited for what must come; nothing depends on how soon it does."""

needs_browser = [
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="Chromium is not here: run `make browser`, or install the packages chromium and chromium-driver",
    ),
    # Selenium's, of sockets that it leaves to the interpreter.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Page:
    """One window of Chromium."""

    def __init__(self, dark: bool = False) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1600"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *error: object) -> None:
        self.browser.quit()

    def _command(self, name: str, /, **arguments: Any) -> Any:
        return self.browser.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def open(self, url: str) -> None:
        self.browser.get(url)

    # ---- what is there

    def texts(self, selector: str) -> list[str]:
        """What is written in each of them, where it is not hidden, with plain spaces."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].filter((node) => node.checkVisibility())"
            ".map((node) => node.textContent.replaceAll('\\u00a0', ' '))",
            selector,
        )
        return found

    def text(self, selector: str) -> str:
        """What is written in the first of them, or ""."""
        return next(iter(self.texts(selector)), "")

    def figure(self, name: str, place: str = "#figures") -> str:
        """The value and the note of a figure."""
        return next((text[len(name) :] for text in self.texts(f"{place} > div") if text.startswith(name)), "")

    def named(self, role: str, name: str = "") -> list[str]:
        """The names of what assistive technology finds in this role, all or those of this name."""
        document = self._command("DOM.getDocument", depth=0)["root"]["nodeId"]
        wanted = {"role": role, **({"accessibleName": name} if name else {})}
        found = self._command("Accessibility.queryAXTree", nodeId=document, **wanted)["nodes"]
        return [node.get("name", {}).get("value", "") for node in found if not node.get("ignored")]

    def width(self) -> int:
        found: int = self.run("return document.documentElement.scrollWidth")
        return found

    def errors(self) -> list[str]:
        """What the scripts and the content policy complain of, but for connections that are cut."""
        log = self.browser.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE" and "ERR_" not in entry["message"]]

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        try:
            return WebDriverWait(self.browser, SECONDS, poll_frequency=0.1).until(lambda _: condition())
        except TimeoutException:
            said = f"{self.text('#connection')!r}, {self.text('#phase')!r}, {self.text('#sentence')!r}"
            raise AssertionError(f"{what} did not come; the page says {said}") from None

    # ---- what a person does

    def click(self, selector: str) -> None:
        """Clicks the first of them where it is in view, as a person would; what covers it is a failure."""
        from selenium.webdriver.common.by import By

        found = self.browser.find_element(By.CSS_SELECTOR, selector)
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", found)
        found.click()

    def write(self, selector: str, text: str) -> None:
        from selenium.webdriver.common.by import By

        found = self.browser.find_element(By.CSS_SELECTOR, selector)
        found.clear()
        found.send_keys(text)

    def press(self, *keys: str) -> None:
        """Names of Selenium's `Keys`, to whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        for key in keys:
            ActionChains(self.browser).send_keys(getattr(Keys, key)).perform()

    def be_a_phone(self) -> None:
        self._command("Emulation.setDeviceMetricsOverride", width=360, height=1800, deviceScaleFactor=1, mobile=True)

    def be_a_desktop(self) -> None:
        self._command("Emulation.clearDeviceMetricsOverride")

    def shoot(self, name: str) -> None:
        folder = os.environ.get("SWARM_PEER_SCREENSHOTS")
        if folder:
            self.run("document.activeElement.blur(); scrollTo({top: 0, behavior: 'instant'})")
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))
