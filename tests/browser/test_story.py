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


def train(ada: Person, status: Page) -> None:
    """Run the training in JupyterLab, and see the GPU at work, then at rest."""
    ada.write_notebook("train.ipynb", TRAINING)
    output = ada.run_notebook("train.ipynb")
    for root in (".gp-lease", ".gp-device"):
        until(lambda r=root: utilization(status, r) > 20, f"utilization in {root} to rise", 60)  # type: ignore[misc]
    ada.shot("story-training", status)
    expect(output).to_have_text("learned", timeout=PATIENCE)
    ada.shot("story-notebook")
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
    assert "files in the home folder" in warning.inner_text()
    ada.shot("story-warned", status)
    extend = status.get_by_role("button", name="Extend")
    extend.click()
    expect(warning).to_be_hidden()
    for left in ("2 min", "1 min"):
        expect(status.locator("[data-field=cap]").first).to_contain_text(left)
        extend.click()
    expect(status.locator("[data-field=cap]").first).to_contain_text("extended as far as its profile allows")
    expect(extend).to_be_disabled()
    assert extend.get_attribute("aria-describedby") == status.locator("[data-field=cap]").first.get_attribute("id")
    ada.shot("story-capped", status)


def test_two_people_and_one_pair_of_gpus(person: MakePerson, demo: HubUnderTest) -> None:
    ada, grace, linus = person("ada"), person("grace"), person("linus")
    free = ada.open_form()
    assert (free["whole-a100"], free["two-a100"], free["quarter-a100"]) == ("2 free", "1 free", "8 free")
    expect(ada.page.get_by_text("The GPUs here are simulated")).to_be_visible()
    expect(ada.page.get_by_text("they are not isolated from each other")).to_be_visible()
    ada.shot("story-form")
    ada.ask_for("two-a100")
    ada.lands()
    status = ada.status()

    # The next person sees what is left, and a place that changes while waiting.
    assert linus.open_form()["whole-a100"] == "none free"
    linus.ask_for("whole-a100")
    expect(linus.page.locator("#progress-message")).to_contain_text("You are next in the queue")
    free = grace.open_form()
    assert free["whole-a100"] == "none free, 1 in the queue"
    assert (free["two-a100"], free["t4"]) == ("none free", "1 free")
    grace.shot("story-form-none-free")
    grace.ask_for("two-a100")
    message = grace.page.locator("#progress-message")
    expect(message).to_contain_text("You are number 2 in the queue, 1 before you")
    expect(status.locator("[data-list=queue] tr")).to_have_count(2)
    grace.shot("story-waiting")

    # Leaving ends that wait and no other.
    linus.page.get_by_role("button", name="Leave the queue").click()
    expect(linus.page).to_have_url(re.compile("/hub/home"))
    expect(message).to_contain_text("You are next in the queue")
    assert demo.lease_of("linus") is None
    assert [demo.wait_state(name, state).state for name, state in (("ada", "active"), ("grace", "queued"))]

    train(ada, status)
    extend_to_the_cap(ada, status)

    # Releasing gives the GPUs to the one who waits, who lands in JupyterLab without a click.
    waited = demo.wait_state("grace", "queued")
    grace.page.evaluate("window.keep = true")
    status.get_by_role("button", name="Release now").click()
    expect(message).to_contain_text("notebook server")
    log = grace.page.locator("#progress-log")
    expect(log).to_contain_text("Granted")
    grace.shot("story-launching")
    grace.lands()
    assert demo.wait_state("grace", "active").id == waited.id
    expect(status.locator("#no-own")).to_be_visible()
    expect(status.locator(".gp-device").first).not_to_contain_text("(you)")


def test_an_idle_session_is_taken_back_and_the_next_gets_it(person: MakePerson, demo: HubUnderTest) -> None:
    alan, linus = person("alan"), person("linus")
    alan.ask_for("mig-large")
    alan.lands()
    linus.ask_for("mig-large")
    expect(linus.page.locator("#progress-message")).to_contain_text("You are next in the queue")
    held, waits = demo.wait_state("alan", "active"), demo.wait_state("linus", "queued")
    status = alan.status()
    expect(status.locator(".gp-warning").first).to_be_visible(timeout=3 * PATIENCE)
    expect(status).to_have_title("(!) GPU pool: a session will be stopped")
    linus.page.wait_for_url("**/user/linus/lab**", timeout=2 * PATIENCE, wait_until="commit")
    assert demo.wait_state("linus", "active").id == waits.id
    closed = demo.ledger().lease(held.id)
    assert closed is not None and closed.stopped_by == "service"
    expect(status.locator("#no-own")).to_be_visible()
