"""What people see in JupyterLab and Notebook 7: the meter, a warning and its buttons, the end and the way back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Locator, Page, expect

from ..hub.conftest import HubUnderTest, free_port, until
from .conftest import PATIENCE, MakePerson, Person
from .test_pages import NAMED, tree
from .test_story import seconds

pytestmark = pytest.mark.browser

METER = ".jp-GPUPool-Meter"
TOAST = ".Toastify__toast"
BUILT = Path(__file__).parents[2] / "jupyterhub_gpupool" / "labextension"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubUnderTest]:
    """The hub of this module, under the name that the people's fixture asks for."""
    hub = HubUnderTest(
        tmp_path_factory.mktemp("lab") / "state", config=Path(__file__).parent / "lab_config.py"
    )
    hub.start()
    yield hub
    broken = hub.ledger().verify()
    hub.clean()
    assert broken == []


def toast(page: Page, text: str | re.Pattern[str]) -> Locator:
    return page.locator(TOAST).filter(has_text=text)


def warned(page: Page) -> Locator:
    return toast(page, re.compile("This session (will stop|stops in)"))


def settle(page: Page) -> None:
    """JupyterLab's questions of a first visit are answered, so that they lie over nothing."""
    for label in ("No", "Dismiss"):
        button = page.locator(TOAST).get_by_role("button", name=label, exact=True)
        if button.count():
            button.first.click()


def command(page: Page, label: str) -> None:
    """Run a command by the palette, with the keyboard alone."""
    field = page.locator(".lm-CommandPalette-input")

    def opened() -> bool:
        # While the hub is away JupyterLab asks, whenever it likes, whether it should restart the server.
        unreachable = page.get_by_role("dialog").filter(has_text="Server unavailable or unreachable")
        if unreachable.is_visible():
            unreachable.get_by_role("button", name="Dismiss").click()
        page.keyboard.press("Control+Shift+C")
        try:
            expect(field).to_be_visible(timeout=5000)
        except AssertionError:
            return False
        return True

    until(opened, "the palette to open")
    field.fill(label)
    expect(page.locator(".lm-CommandPalette-item.lm-mod-active")).to_contain_text(label)
    page.keyboard.press("Enter")


def edit(ada: Person, name: str, text: str) -> None:
    """Open a new file in the editor and change it, without saving."""
    page = ada.page
    ada.write_notebook("other.ipynb", "1")
    base = page.url.partition("/lab")[0]
    status = page.evaluate(
        """async ([url, body]) => {
            const token = document.cookie.match(/_xsrf=([^;]*)/)[1];
            const headers = {"X-XSRFToken": token, "Content-Type": "application/json"};
            return (await fetch(url, {method: "PUT", headers, body})).status;
        }""",
        [
            f"{base}/api/contents/{name}",
            json.dumps({"type": "file", "format": "text", "content": "before\n"}),
        ],
    )
    assert status in (200, 201)
    page.goto(f"{base}/lab/tree/{name}")
    content = page.locator(".jp-FileEditor .cm-content")
    expect(content).to_contain_text("before")
    content.click()
    page.keyboard.type(text)


def read(demo: HubUnderTest, user: str, name: str) -> str:
    (path,) = (demo.state / "homes").glob(f"{user}-*/{name}")
    return path.read_text()


def test_a_warning_is_shown_extended_and_in_the_end_comes_true(
    person: MakePerson, demo: HubUnderTest
) -> None:
    ada = person("ada")
    page = ada.page
    ada.open_form()
    page.locator("#profile-item-short").check()
    page.get_by_label("A note").select_option("b")
    page.get_by_role("button", name="Start").click()
    ada.lands()
    first = demo.wait_state("ada", "active")
    meter = page.locator(METER)
    expect(meter).to_be_visible()
    expect(meter).to_contain_text("simulated")
    expect(meter).to_contain_text("of 80.0 GiB")
    settle(page)
    edit(ada, "text.txt", "changed by hand ")

    # The notification: what the service hears of it, what it says, that it counts, and that nothing is blocked.
    expect(warned(page)).to_be_visible(timeout=2 * PATIENCE)
    text = warned(page).locator(".jp-toast-message")
    expect(text).to_contain_text(re.compile("in [0-9]+ s"))
    lease = demo.wait_state("ada", "active")
    assert lease.delivered_by == "jupyterlab"
    expect(text).to_contain_text(re.compile("[Nn]o GPU activity"))
    expect(text).to_contain_text("Files stay, memory is lost")
    expect(meter).to_contain_text("stops in")
    expect(meter).to_have_attribute("data-mood", "warned")
    before = seconds(text.inner_text().splitlines()[0])
    until(lambda: seconds(text.inner_text().splitlines()[0]) < before, "the countdown to run")
    ada.shot("lab-warned")
    page.locator(".jp-FileEditor .cm-content").click()
    page.keyboard.type("more ")
    expect(page.locator(".jp-FileEditor .cm-content")).to_contain_text("more")
    expect(page.locator(".jp-Dialog")).to_have_count(0)
    assert [role for role, name in tree(page) if role in NAMED - {"textbox", "image"} and not name] == []

    # Extend, until the profile allows no more; then the button is gone and the details say why.
    for _ in range(2):
        expect(warned(page)).to_be_visible(timeout=2 * PATIENCE)
        warned(page).get_by_role("button", name="Extend").click()
        expect(toast(page, "The session was extended.")).to_be_visible()
        expect(warned(page)).to_be_hidden()
    expect(warned(page)).to_be_visible(timeout=2 * PATIENCE)
    expect(warned(page).get_by_role("button", name="Extend")).to_have_count(0)
    warned(page).get_by_role("button", name="Details").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("extended as far as its profile allows")
    expect(dialog).to_contain_text("Lost:")
    ada.shot("lab-details")
    dialog.get_by_role("button", name="Close").click()

    # Nobody does anything: what was changed is saved, the session is stopped, and the open page says why.
    demo.wait_gone("ada", seconds=90)
    note = toast(page, "This session has ended.")
    expect(note).to_be_visible()
    expect(note).to_contain_text("1 document was saved.")
    queue_again = note.get_by_role("button", name="Queue again")
    queue_again.hover()  # waits until it has slid in
    ada.shot("lab-ended")
    assert "changed by hand" in read(demo, "ada", "text.txt")
    closed = demo.ledger().lease(first.id)
    assert closed is not None and closed.stopped_by == "service"

    # One click asks for the same again, options and all; JupyterLab's own question does not lie over it.
    queue_again.click()
    ada.lands()
    again = demo.wait_state("ada", "active")
    assert (again.profile, dict(again.options)["note"]) == ("short", "b") and again.id != first.id
    expect(page.locator(METER)).to_be_visible()


def test_two_tabs_survive_a_hub_that_is_killed_and_see_the_release(
    person: MakePerson, demo: HubUnderTest
) -> None:
    grace = person("grace")
    grace.ask_for("calm")
    grace.lands()
    second = grace.tab()
    second.goto("/user/grace/lab")
    pages = [grace.page, second]
    for page in pages:
        expect(page.locator(METER)).to_contain_text("of 40.0 GiB")
        settle(page)
    assert "GPU utilization" in (second.locator(METER).get_attribute("aria-label") or "")
    with grace.context.expect_page() as opened:
        second.locator(METER).click()
    expect(opened.value).to_have_url(re.compile("/services/gpupool/$"))
    opened.value.close()

    demo.kill()
    for page in pages:
        expect(page.locator(METER)).to_have_text("GPU: unknown", timeout=2 * PATIENCE)
    grace.shot("lab-hub-away")
    demo.start()
    for page in pages:
        expect(page.locator(METER)).to_contain_text("of 40.0 GiB", timeout=2 * PATIENCE)

    # Asked once, by the keyboard alone; Escape is no.
    page = grace.page
    page.bring_to_front()
    command(page, "GPU pool: release this session")
    dialog = page.get_by_role("dialog").filter(has_text="Release this session?")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert demo.wait_state("grace", "active")
    command(page, "GPU pool: release this session")
    dialog.get_by_role("button", name="Release").click()
    demo.wait_gone("grace")
    for page in pages:
        toast(page, "This session has ended.").get_by_role("button", name="Queue again").hover()
        expect(page.locator(METER)).to_be_hidden()
    grace.shot("lab-released", second)


def test_each_of_two_servers_shows_its_own_lease(person: MakePerson, demo: HubUnderTest) -> None:
    linus = person("linus")
    linus.ask_for("calm")
    linus.lands()
    expect(linus.page.locator(METER)).to_contain_text("of 40.0 GiB")
    other = linus.tab()
    other.goto("/hub/spawn/linus/two")
    other.locator("#profile-item-quarter").check()
    other.get_by_role("button", name="Start").click()
    other.wait_for_url("**/user/linus/two/lab**", wait_until="commit")
    expect(other.locator(METER)).to_contain_text("of 20.0 GiB")
    until(lambda: demo.lease_of("linus", "two") is not None, "the second lease")
    linus.page.bring_to_front()
    expect(linus.page.locator(METER)).to_contain_text("of 40.0 GiB")

    # Notebook 7 shows it too, where it has no status bar.
    tree_page = linus.tab()
    tree_page.goto("/user/linus/two/tree")
    expect(tree_page.locator(f"#top-panel-wrapper {METER}")).to_contain_text("of 20.0 GiB")
    linus.shot("lab-notebook-7", tree_page)


def test_where_the_service_is_missing_nothing_is_shown(person: MakePerson, demo: HubUnderTest) -> None:
    alan = person("alan")
    asked: list[str] = []

    def missing(route: object, request: object) -> None:
        asked.append(request.url)  # type: ignore[attr-defined]
        route.fulfill(status=404, content_type="text/html", body="Not Found")  # type: ignore[attr-defined]

    alan.context.route("**/services/gpupool/**", missing)
    wrong: list[str] = []
    alan.page.on("pageerror", lambda problem: wrong.append(str(problem)))
    alan.ask_for("quarter")
    alan.lands()
    # A call to the page lets Playwright answer its requests.
    until(lambda: alan.page.title() and asked, "the one question")
    expect(alan.page.locator(METER)).to_have_count(0)
    assert asked == [f"{demo.url}/services/gpupool/api/session"]
    assert [text for text in wrong if "gpupool" in text.lower()] == []


def test_without_a_hub_nothing_is_asked(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "labextensions").mkdir()
    (tmp_path / "labextensions" / "jupyterhub-gpupool").symlink_to(BUILT)
    port = free_port()
    options = [
        f"--ServerApp.port={port}",
        "--ServerApp.token=",
        "--ServerApp.open_browser=False",
        "--allow-root",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        cwd=tmp_path,
        env={
            "PATH": str(Path(sys.executable).parent),
            "HOME": str(tmp_path),
            "JUPYTER_PATH": str(tmp_path),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/api"), "JupyterLab to answer", 90)
        context = browser.new_context()
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/lab")
        expect(page.get_by_role("menuitem", name="Kernel")).to_be_visible()
        enabled = page.evaluate("JSON.parse(document.getElementById('jupyter-config-data').textContent)")
        assert "jupyterhub-gpupool" in [one["name"] for one in enabled["federated_extensions"]]
        expect(page.locator(METER)).to_have_count(0)
        assert [url for url in asked if "services" in url] == []
        context.close()
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
