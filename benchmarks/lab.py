"""What the extension costs a browser that shows JupyterLab, in shares of a core.

One hub, three sessions, and for each a Chromium of its own, all looked at in the same minute:

  without   the extension is disabled
  idle      nothing happens
  warned    a warning counts down its last two minutes

The main thread's share is its CPU time by the DevTools protocol (TaskDuration).  What JupyterLab takes for
itself is in all three, so the extension's is the difference to the first.  The share of all processes of that
Chromium is shown beside it: it draws without a GPU here, which is the dearest way.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from _hub import ROOT, VERDICTS, Hub, folder, load_note, parser, table, until, verdict

NAME = "jupyterhub-gpupool"
NEWS = "@jupyterlab/apputils-extension:announcements"
METER = ".jp-GPUPool-Meter"
ARMS = ("without", "idle", "warned")
USERS = dict(zip(ARMS, ("ada", "grace", "linus"), strict=True))
LAST = 115
"""Seconds before the end of the warning at which the minute begins."""
CALM = 0.03
"""Share of a core below which a page has come to rest."""

try:
    from playwright.sync_api import Browser, Page, sync_playwright
except ImportError:
    sys.exit("Playwright is not installed (extra `test`): nothing was measured.")


@dataclass
class Open:
    """One page, and how to read its clocks."""

    browser: Browser
    page: Page

    def __post_init__(self) -> None:
        self._thread = self.page.context.new_cdp_session(self.page)
        self._thread.send("Performance.enable", {"timeDomain": "threadTicks"})
        self._all = self.browser.new_browser_cdp_session()

    def clocks(self) -> tuple[float, float]:
        """CPU seconds of the main thread, and of the whole browser."""
        metrics = self._thread.send("Performance.getMetrics")["metrics"]
        (tasks,) = (one["value"] for one in metrics if one["name"] == "TaskDuration")
        found = self._all.send("SystemInfo.getProcessInfo")["processInfo"]
        return float(tasks), float(sum(one["cpuTime"] for one in found))


def configured(folder: Path, *, disabled: bool) -> Path:
    """Make a folder of Jupyter's settings: without the extension, or with it; never with JupyterLab's own news."""
    (folder / "labconfig").mkdir(parents=True)
    without = {NEWS: True, NAME: disabled}
    (folder / "labconfig" / "page_config.json").write_text(json.dumps({"disabledExtensions": without}))
    return folder


@contextmanager
def hub_of(parent: Path) -> Iterator[Hub]:
    """A hub with a session for each arm."""
    jupyter = parent / "jupyter"
    (jupyter / "labextensions").mkdir(parents=True)
    (jupyter / "labextensions" / NAME).symlink_to(ROOT / "jupyterhub_gpupool" / "labextension")
    calm = {"window": 3600, "warn": 600, "extend": 0, "extend_max": 0, "min_age": 0}
    idle = {"without": calm, "idle": calm, "warned": {**calm, "window": 5, "warn": 150}}
    profiles = [
        {
            "slug": arm,
            "display_name": arm,
            "gpu": {"memory": "1/4"},
            "idle": idle[arm],
            "spawner_override": {
                "environment": {
                    "JUPYTER_PATH": str(jupyter),
                    "JUPYTER_CONFIG_PATH": str(configured(parent / arm, disabled=arm == "without")),
                }
            },
        }
        for arm in ARMS
    ]
    service = {"mode": "reclaim", "sweep_interval": 1, "undelivered_max": 3600}
    first = {"GPUPool": {"profiles": profiles}, "GPUPoolService": service}
    with Hub(parent, arm="pool", session="real", first=first) as hub:
        for arm, user in USERS.items():
            hub.api("POST", f"users/{user}")
            answer = hub.api("POST", f"users/{user}/server", json={"user_options": {"profile": arm}})
            if not answer.ok:
                raise SystemExit(f"the session {arm} was not started: {answer.text}")
        yield hub


def open_lab(browser: Browser, hub: Hub, arm: str) -> Open:
    """Log in, and go to the session once it runs."""
    user, url = USERS[arm], f"http://127.0.0.1:{hub.port}"
    asked = f"users/{user}"
    until(lambda: hub.api("GET", asked).json()["servers"].get("", {}).get("ready"), f"session {arm}", 120)
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{url}/hub/login")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill((hub.state / "password").read_text().strip())
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(re.compile("/hub/(home|spawn)|/user/"))
    page.goto(f"{url}/user/{user}/lab")
    page.get_by_role("menuitem", name="Kernel").wait_for()
    return Open(browser, page)


def seconds_left(page: Page) -> int:
    """What the meter says; none where it does not count yet."""
    found = re.search(r"stops in (?:(\d+) min)?\s*(?:(\d+) s)?", page.locator(METER).inner_text())
    return 60 * int(found[1] or 0) + int(found[2] or 0) if found else 0


def rates(opened: dict[str, Open], seconds: float) -> dict[str, tuple[float, float]]:
    """Shares of a core over the same seconds: main thread, whole browser."""
    began, before = time.monotonic(), {arm: one.clocks() for arm, one in opened.items()}
    time.sleep(seconds)
    after, took = {arm: one.clocks() for arm, one in opened.items()}, time.monotonic() - began
    return {
        arm: (
            (after[arm][0] - before[arm][0]) / took,
            (after[arm][1] - before[arm][1]) / took,
        )
        for arm in opened
    }


def settle(opened: dict[str, Open]) -> None:
    """Wait until each page shows what its arm is about, and has come to rest."""
    for arm, one in opened.items():
        if arm == "without":
            if one.page.locator(METER).count():
                raise SystemExit("the extension is not disabled")
            continue
        one.page.locator(METER).wait_for()
    warned = opened["warned"].page
    until(lambda: seconds_left(warned) > 0, "the warning to count", pause=1)
    until(lambda: all(main < CALM for main, _ in rates(opened, 3).values()), "the pages to rest", pause=0)
    until(lambda: seconds_left(warned) <= LAST, "the last two minutes", 180, pause=1)


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--seconds", type=int, default=60, help="how long to look (60, at most 100)")
    options = line.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("Debian's package chromium is not installed: nothing was measured.")
        return
    with folder(options.dir) as parent, hub_of(parent) as hub, ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        opened = {}
        for arm in ARMS:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
            browser = playwright.chromium.launch(executable_path=chromium, args=flags)
            stack.callback(browser.close)
            opened[arm] = open_lab(browser, hub, arm)
        settle(opened)
        found = rates(opened, min(options.seconds, 100))
        if not seconds_left(opened["warned"].page):
            raise SystemExit("the warning did not last until the end of the measurement")
    report(found)


def report(found: dict[str, tuple[float, float]]) -> None:
    lines = [(arm, *(f"{share:.2%}" for share in found[arm])) for arm in ARMS]
    table("lab: share of a core", ("page", "main thread", "whole browser"), lines)
    base = found["without"][0]
    verdicts = [
        verdict(
            f"main thread, {arm}",
            f"{found[arm][0]:.2%}",
            f"{base:.2%}",
            f"{100 * (found[arm][0] - base):+.2f} %",
            "< +1 %",
            found[arm][0] - base < 0.01,
        )
        for arm in ARMS[1:]
    ]
    table("", VERDICTS, verdicts)
    print(load_note())


if __name__ == "__main__":
    main()
