"""People with browsers, in front of the demo as it is shipped: its own configuration, JupyterLab, TensorFlow."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    expect,
    sync_playwright,
)

from ..hub.conftest import ROOT, HubUnderTest

SCREENSHOTS = Path(__file__).parent / "screenshots"
STATUS = "/services/gpupool/"
PATIENCE = 60_000
"""Milliseconds that a page may need on a busy machine with two cores."""

FLAGS = [
    "--no-sandbox",  # the tests may run as root, where Chromium's sandbox refuses to start
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-sync",
    "--disable-component-update",
    "--disable-quic",
]


class Person:
    """One of the demo's users with a browser of their own."""

    def __init__(self, browser: Browser, hub: HubUnderTest, name: str, *, script: bool, width: int) -> None:
        self.hub, self.name = hub, name
        self.context: BrowserContext = browser.new_context(
            base_url=hub.url, java_script_enabled=script, viewport={"width": width, "height": 900}
        )
        self.context.set_default_timeout(PATIENCE)
        self.refused: list[str] = []  # what the content security policy did not let through
        self.page = self.tab()

    def tab(self) -> Page:
        page = self.context.new_page()
        page.on("console", self._listen)
        return page

    def _listen(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            self.refused.append(message.text)

    def log_in(self) -> None:
        self.page.goto("/hub/login")
        self.page.get_by_label("Username").fill(self.name)
        self.page.get_by_label("Password").fill(self.hub.password)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page).not_to_have_url(re.compile("/hub/login"))

    def open_form(self) -> dict[str, str]:
        """Go to the profile form; what it says of each profile, by slug."""
        self.page.goto("/hub/spawn")
        return offered(self.page)

    def ask_for(self, profile: str) -> None:
        """Choose a profile on the form and press the button."""
        self.open_form()
        self.page.locator(f"#profile-item-{profile}").check()
        self.page.get_by_role("button", name="Start").click()

    def lands(self, page: Page | None = None) -> None:
        """The page ends up in JupyterLab by itself."""
        page = page or self.page
        page.wait_for_url(f"**/user/{self.name}/lab**", wait_until="commit")
        expect(page.get_by_role("menuitem", name="Kernel")).to_be_visible()

    def status(self) -> Page:
        """The status page in a tab of its own."""
        page = self.tab()
        page.goto(STATUS)
        return page

    def shot(self, name: str, page: Page | None = None) -> None:
        """Keep a picture of the whole page, to be looked at."""
        page = page or self.page
        window = page.viewport_size
        assert window is not None
        # As in a window that is long enough: what sticks to its edge stands at the end of the page.
        whole = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size({**window, "height": max(window["height"], whole)})
        page.screenshot(path=SCREENSHOTS / f"{name}.png")
        page.set_viewport_size(window)

    def write_notebook(self, name: str, source: str) -> None:
        """Put a notebook with one cell into the home through the contents API, with the page's own rights."""
        cell = {"cell_type": "code", "id": "one", "metadata": {}, "outputs": [], "execution_count": None}
        notebook = {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
            "cells": [{**cell, "source": source}],
        }
        base = urlsplit(self.page.url).path.partition("/lab")[0]
        status = self.page.evaluate(
            """async ([url, body]) => {
                const token = document.cookie.match(/_xsrf=([^;]*)/)[1];
                const headers = {"X-XSRFToken": token, "Content-Type": "application/json"};
                return (await fetch(url, {method: "PUT", headers, body})).status;
            }""",
            [f"{base}/api/contents/{name}", json.dumps({"type": "notebook", "content": notebook})],
        )
        assert status in (200, 201)

    def run_notebook(self, name: str) -> Locator:
        """Open a notebook in JupyterLab and run all of it from the menu; where its output appears."""
        base = self.page.url.partition("/lab")[0]
        self.page.goto(f"{base}/lab/tree/{name}")
        expect(self.page.locator(".jp-NotebookPanel .jp-CodeCell")).to_be_visible()
        # What is run before the kernel is connected may be lost.
        expect(self.page.locator("#jp-main-statusbar")).to_contain_text("Python 3 (ipykernel) | Idle")
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        return self.page.locator(".jp-NotebookPanel .jp-OutputArea-output").last


def offered(page: Page) -> dict[str, str]:
    """What a form says is free and in the queue, by profile."""
    found: dict[str, str] = {}
    for state in page.locator(".gpupool-state").all():
        slug = (state.get_attribute("id") or "").removeprefix("profile-state-")
        found[slug] = state.inner_text()
    return found


def overflow(page: Page) -> int:
    """Pixels by which a page is wider than its window."""
    found: int = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return found


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    # The end of this scope also ends Playwright's event loop, which no asynchronous test may meet.
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE)
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubUnderTest]:
    """The demo, running, for the tests of one module."""
    hub = HubUnderTest(tmp_path_factory.mktemp("demo") / "state", config=ROOT / "jupyterhub_config.py")
    hub.start()
    yield hub
    broken = hub.ledger().verify()
    hub.clean()
    assert broken == []


MakePerson = Callable[..., Person]


@pytest.fixture
def person(browser: Browser, demo: HubUnderTest, request: pytest.FixtureRequest) -> Iterator[MakePerson]:
    """Make people; nothing of theirs is left open after the test, and no policy may have refused anything."""
    made: list[Person] = []

    def make(name: str, *, script: bool = True, width: int = 1200, log_in: bool = True) -> Person:
        one = Person(browser, demo, name, script=script, width=width)
        made.append(one)
        if log_in:
            one.log_in()
        return one

    yield make
    refused = [text for one in made for text in one.refused]
    if request.node.stash.get(FAILED, False):
        print(f"--- hub log ---\n{demo.tail(60)}")
        for one in made:
            for number, page in enumerate(one.context.pages):
                one.shot(f"failed-{request.node.name}-{one.name}-{number}", page)
    for one in made:
        one.context.close()
    assert refused == []


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    if outcome.get_result().failed:
        item.stash[FAILED] = True
