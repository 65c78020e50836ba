"""The main job as people see it: choose, wait, work, be warned, extend, release; and the next one gets it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from ..hub.conftest import HubUnderTest, until
from .conftest import PATIENCE, MakePerson, Person

pytestmark = pytest.mark.browser

TRAINING = """
import time
import tensorflow as tf
x = tf.random.normal((4096, 64), seed=1)
y = tf.reduce_sum(x[:, :8], axis=1, keepdims=True)
model = tf.keras.Sequential([
    tf.keras.layers.Input((64,)), tf.keras.layers.Dense(256, activation="relu"), tf.keras.layers.Dense(1)])
model.compile("adam", "mse")
first = last = model.fit(x, y, verbose=0).history["loss"][0]
end = time.monotonic() + 12
while time.monotonic() < end:
    last = model.fit(x, y, verbose=0).history["loss"][0]
print("learned" if last < first / 2 else f"nothing learned: {first} {last}")
"""


def utilization(page: Page, root: str) -> float:
    """The figure of the first card of this kind, in percent."""
    text = page.locator(f"{root} [data-field=utilization]").first.inner_text()
    return 0 if text == "unknown" else float(text.removesuffix(" %"))


def seconds(text: str) -> int:
    """Read a duration as the pages write it."""
    parts = re.findall(r"(\d+) (min|s)", text)
    return sum(int(number) * (60 if unit == "min" else 1) for number, unit in parts)


def train(ada: Person, status: Page, story: str = "story") -> None:
    """Run the training in JupyterLab, and see the GPU at work, then at rest."""
    ada.write_notebook("train.ipynb", TRAINING)
    output = ada.run_notebook("train.ipynb")
    for root in (".gp-lease", ".gp-device"):
        until(lambda r=root: utilization(status, r) > 10, f"utilization in {root} to rise", 120)  # type: ignore[misc]
    ada.shot(f"{story}-training", status)
    # In containers the image's defaults say their line before.
    expect(output).to_have_text(re.compile(r"(^|\s)learned\s*$"))
    ada.shot(f"{story}-notebook")
    for root in (".gp-lease", ".gp-device"):
        until(lambda r=root: utilization(status, r) < 5, f"utilization in {root} to fall", 60)  # type: ignore[misc]


def extend_to_the_cap(ada: Person, status: Page) -> None:
    """The warning counts down; Extend takes it back until the profile allows no more."""
    warning = status.locator(".gp-warning").first
    expect(warning).to_be_visible(timeout=2 * PATIENCE)
    timer = status.get_by_role("timer")
    before = seconds(timer.inner_text())
    assert 0 < before <= 30
    until(lambda: seconds(timer.inner_text()) < before, "the countdown to run")
    assert "no GPU activity" in warning.inner_text()
    assert "Files in the home folder" in warning.inner_text()
    ada.shot("story-warned", status)
    cap, extend = status.locator("[data-field=cap]").first, status.get_by_role("button", name="Extend")
    extend.click()
    expect(warning).to_be_hidden()
    for left in ("2 min", "1 min"):
        expect(cap).to_contain_text(left)
        extend.click()
    expect(cap).to_contain_text("extended as far as its profile allows")
    expect(extend).to_be_disabled()
    assert extend.get_attribute("aria-describedby") == cap.get_attribute("id")
    ada.shot("story-capped", status)


def wait_in_the_queue(grace: Person, linus: Person, status: Page) -> None:
    """Two wait for what one holds; the place of the second changes while the page is open."""
    assert linus.open_form()["whole-a100"].startswith("none free, wait ")
    linus.ask_for("whole-a100")
    expect(linus.page.locator("#progress-message")).to_contain_text("You are next in the queue")
    free = grace.open_form()
    assert free["whole-a100"].startswith("none free, 1 in the queue, wait ")
    assert free["two-a100"].startswith("none free, wait ")
    assert (free["mig-small"], free["t4"]) == ("2 free", "1 free")
    grace.shot("story-form-none-free")
    grace.ask_for("two-a100")
    message = grace.page.locator("#progress-message")
    expect(message).to_contain_text("You are number 2 in the queue, 1 before you")
    expect(status.locator("[data-list=queue] tr")).to_have_count(2)
    grace.shot("story-waiting")
    linus.page.get_by_role("button", name="Leave the queue").click()
    expect(linus.page).to_have_url(re.compile("/hub/home"))
    expect(message).to_contain_text("You are next in the queue")


def countdowns(page: Page) -> list[str]:
    """What the countdown of the page has said since :func:`watch_countdown`."""
    found: list[str] = page.evaluate("window.countdowns")
    return found


def watch_countdown(page: Page) -> None:
    """Note all that the countdown says: it comes and goes while the test is elsewhere."""
    page.evaluate(
        """() => {
            window.countdowns = [];
            const timer = document.querySelector("[role=timer]"), warning = timer.closest(".gp-warning");
            const note = () => warning.hidden || window.countdowns.push(timer.textContent);
            new MutationObserver(note).observe(timer, {childList: true, characterData: true, subtree: true});
        }"""
    )


def was_taken_back(demo: HubUnderTest, lease: str, warn: float) -> None:
    """The service ended this session, and not before its warning had run out."""
    closed = demo.ledger().lease(lease)
    assert closed is not None and closed.stopped_by == "service"
    events = {event.action: event.at for event in demo.ledger().events(count=1000) if event.lease == lease}
    assert events["stop"] - events["warn"] >= warn


def test_the_main_job(person: MakePerson, demo: HubUnderTest) -> None:
    ada, grace, linus, alan = (person(name) for name in ("ada", "grace", "linus", "alan"))
    # Alan starts a session and forgets it; what becomes of it is seen at the end.
    alan.ask_for("mig-large")
    alan.lands()
    forgotten, alans = demo.wait_state("alan", "active"), alan.status()
    watch_countdown(alans)

    free = ada.open_form()
    assert (free["whole-a100"], free["two-a100"], free["quarter-a100"]) == ("2 free", "1 free", "8 free")
    assert free["mig-large"].startswith("none free, wait ")
    expect(ada.page.get_by_text("The GPUs here are simulated")).to_be_visible()
    expect(ada.page.get_by_text("they are not isolated from each other")).to_be_visible()
    ada.shot("story-form")
    ada.ask_for("two-a100")
    ada.lands()
    status = ada.status()
    wait_in_the_queue(grace, linus, status)
    assert demo.lease_of("linus") is None
    assert demo.wait_state("ada", "active").slices
    waits = demo.wait_state("grace", "queued")

    linus.ask_for("mig-large")
    expect(linus.page.locator("#progress-message")).to_contain_text("in the queue")
    train(ada, status)
    extend_to_the_cap(ada, status)

    # Nobody touched Alan's session: it was warned, stopped, and Linus has its slice, without a click.
    linus.lands()
    was_taken_back(demo, forgotten.id, warn=30)
    assert demo.wait_state("linus", "active").slices == forgotten.slices
    said = [seconds(text) for text in countdowns(alans)]
    assert said == sorted(said, reverse=True) and said[0] <= 30 and said[-1] < 5
    expect(alans.get_by_text("You have no session")).to_be_visible()

    # Releasing gives the GPUs to the one who waits, who lands in JupyterLab, without a click too.
    status.get_by_role("button", name="Release now").click()
    expect(grace.page.locator("#progress-log")).to_contain_text("Granted: 2 whole GPUs, 80 GiB each")
    expect(grace.page.get_by_role("button", name="Cancel the start")).to_be_visible()
    grace.shot("story-launching")
    grace.lands()
    assert demo.wait_state("grace", "active").id == waits.id
    expect(status.get_by_text("You have no session")).to_be_visible()
    expect(status.locator(".gp-device").first).not_to_contain_text("(you)")
