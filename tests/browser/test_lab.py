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
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from .. import installed
from ..hub.conftest import HubUnderTest, free_port, until
from .conftest import PATIENCE, MakePerson
from .test_pages import NAMED, tree
from .test_story import seconds

pytestmark = pytest.mark.browser

METER = ".jp-GPUPool-Meter"
TOAST = ".Toastify__toast"
PLUGIN = "jupyterhub-gpupool:plugin"


@pytest.fixture(scope="module")
def jupyter_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What an install shows to Jupyter: the extension is there for these tests only where a user gets it."""
    project = installed.make_project(tmp_path_factory.mktemp("project"))
    done = installed.install(project, "hub")
    assert done.returncode == 0, done.stderr
    return str(installed.jupyter_path(project))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, jupyter_path: str) -> Iterator[HubUnderTest]:
    """The hub of this module, under the name that the people's fixture asks for."""
    state = tmp_path_factory.mktemp("lab") / "state"
    hub = HubUnderTest(state, config=Path(__file__).parent / "lab_config.py", jupyter_path=jupyter_path)
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


def home(demo: HubUnderTest, user: str) -> Path:
    (path,) = (demo.state / "homes").glob(f"{user}-*")
    return path


def edit(page: Page, path: Path, text: str) -> Locator:
    """Open a new file of the home in the editor and change it, without saving."""
    path.write_text("before\n")
    page.evaluate("name => jupyterapp.commands.execute('docmanager:open', {path: name})", path.name)
    content = page.locator(".jp-FileEditor .cm-content")
    expect(content).to_contain_text("before")
    content.click()
    page.keyboard.type(text)
    return content


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
    text_file = home(demo, "ada") / "text.txt"
    editor = edit(page, text_file, "changed by hand ")

    # The notification: whoever types goes on typing; what the service hears of it, what it says, and that it counts.
    expect(warned(page)).to_be_visible(timeout=2 * PATIENCE)
    expect(editor).to_be_focused()
    page.keyboard.type("more ")
    expect(editor).to_contain_text("more")
    expect(page.locator(".jp-Dialog")).to_have_count(0)
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
    # It was read out when it appeared, and is not read out again each second.
    expect(warned(page).locator("[role=alert]")).to_have_attribute("aria-live", "off")
    ada.shot("lab-warned")
    assert [role for role, name in tree(page) if role in NAMED - {"textbox", "image"} and not name] == []

    # Extend, until the profile allows no more; then the button is gone and the details say why.
    for by_keyboard in (True, False):
        expect(warned(page)).to_be_visible(timeout=2 * PATIENCE)
        if by_keyboard:
            command(page, "GPU pool: extend this session")
        else:
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

    # Nobody does anything: the end is said aloud when it is near, what was changed is saved, the session is stopped,
    # and the open page says why.
    expect(page.get_by_role("status").filter(has_text=re.compile(r"will be stopped in \d+ s"))).to_have_count(
        1
    )
    demo.wait_gone("ada", seconds=90)
    note = toast(page, "This session has ended.")
    expect(note).to_be_visible()
    expect(note).to_contain_text(re.compile("[Nn]o GPU activity"))
    expect(note).to_contain_text("1 document was saved.")
    queue_again = note.get_by_role("button", name="Queue again")
    queue_again.hover()  # waits until it has slid in
    ada.shot("lab-ended")
    assert "changed by hand" in text_file.read_text()
    closed = demo.ledger().lease(first.id)
    assert closed is not None and closed.stopped_by == "service"

    # One click asks for the same again, options and all; JupyterLab's own question does not lie over it.
    queue_again.click()
    ada.lands()
    again = demo.wait_state("ada", "active")
    assert (again.profile, dict(again.options)["note"]) == ("short", "b") and again.id != first.id
    expect(page.locator(METER)).to_be_visible()


def test_two_tabs_and_two_servers_survive_a_hub_that_is_killed_and_see_the_release(
    person: MakePerson, demo: HubUnderTest
) -> None:
    grace = person("grace")
    grace.ask_for("calm")
    grace.lands()
    other = grace.tab()
    other.goto("/hub/spawn/grace/two")
    other.locator("#profile-item-quarter").check()
    other.get_by_role("button", name="Start").click()
    second = grace.tab()
    second.goto("/user/grace/lab")
    other.wait_for_url("**/user/grace/two/lab**", wait_until="commit")
    notebook = grace.tab()
    notebook.goto("/user/grace/two/tree")

    # Each page shows the lease of its own server; so does Notebook 7, where it has no status bar.
    memory = {grace.page: "40.0", second: "40.0", other: "20.0", notebook: "20.0"}
    meters_show(memory)
    expect(notebook.locator(f"#top-panel-wrapper {METER}")).to_be_visible()
    grace.shot("lab-notebook-7", notebook)
    for page in memory:
        settle(page)
    assert "GPU utilization" in (second.locator(METER).get_attribute("aria-label") or "")
    with grace.context.expect_page() as opened:
        second.locator(METER).click()
    expect(opened.value).to_have_url(re.compile("/services/gpupool/$"))
    opened.value.close()

    demo.kill()
    for page in memory:
        expect(page.locator(METER)).to_have_text("GPU: unknown", timeout=2 * PATIENCE)
    grace.shot("lab-hub-away")
    demo.start()
    meters_show(memory)

    # A warning that cannot be put off reaches all of them, with what an admin has written, as it was written.
    demo.ledger().drain(None, actor="admin", why="<b>new</b>")
    for page in memory:
        expect(warned(page)).to_contain_text("<b>new</b>", timeout=2 * PATIENCE)
        expect(warned(page).locator("b")).to_have_count(0)
        expect(warned(page).get_by_role("button", name="Extend")).to_have_count(0)
    grace.shot("lab-notebook-7-warned", notebook)
    demo.ledger().undrain(None, actor="admin", why="")
    for page in memory:
        expect(warned(page)).to_be_hidden(timeout=2 * PATIENCE)

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
    for page in (grace.page, second):
        toast(page, "This session has ended.").get_by_role("button", name="Queue again").hover()
        expect(page.locator(METER)).to_be_hidden()
    grace.shot("lab-released", second)
    meters_show({other: "20.0", notebook: "20.0"})
    assert demo.wait_state("grace", "active", "two")


def meters_show(memory: dict[Page, str]) -> None:
    for page, size in memory.items():
        expect(page.locator(METER)).to_contain_text(f"of {size} GiB", timeout=2 * PATIENCE)


@pytest.fixture
def alone(tmp_path: Path, jupyter_path: str) -> Iterator[str]:
    """JupyterLab as a user gets it, outside any hub; its address."""
    port = free_port()
    options = [
        f"--ServerApp.port={port}",
        "--ServerApp.token=",
        "--ServerApp.open_browser=False",
        "--ServerApp.allow_remote_access=True",  # by other names than localhost
        "--LabApp.expose_app_in_browser=True",
        "--allow-root",
    ]
    path = str(Path(sys.executable).parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        cwd=tmp_path,
        env={"PATH": path, "HOME": str(tmp_path), "JUPYTER_PATH": jupyter_path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/api"), "JupyterLab to answer", 90)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_where_no_pool_can_be_asked_nothing_is_shown(browser: Browser, alone: str, tmp_path: Path) -> None:
    hub = {"hubPrefix": "/hub/", "hubUser": "alan", "hubServerUser": "alan", "hubHost": ""}
    context = browser.new_context()
    asked, wrong = ask(context, tmp_path, alone, {})
    assert (asked, wrong) == ([], []), "outside a hub"

    # What hubs tell their pages; the one question is answered by 404, and the browser itself says so.
    asked, wrong = ask(context, tmp_path, alone, hub)
    assert asked == [f"{alone}/services/gpupool/api/session"], "on a hub without the service"
    assert len(wrong) == 1 and "404" in wrong[0]

    port = alone.rpartition(":")[2]
    domain = {**hub, "hubHost": f"http://localhost:{port}"}
    asked, wrong = ask(context, tmp_path, f"http://alan.localhost:{port}", domain)
    assert (asked, wrong) == ([], []), "on a hub with a domain for each user"
    context.close()


def ask(
    context: BrowserContext, folder: Path, address: str, options: dict[str, str]
) -> tuple[list[str], list[str]]:
    """Load JupyterLab with these options of its page; what the extension asked, and what the console says of it."""
    config = folder / ".jupyter" / "labconfig" / "page_config.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(options))
    page = context.new_page()
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda one: asked.append(one.url) if "/services/" in one.url else None)
    page.on("pageerror", lambda problem: wrong.append(str(problem)))
    page.on("console", lambda line: wrong.append(f"{line.type}: {line.text} {line.location['url']}"))
    page.goto(f"{address}/lab")
    expect(page.get_by_role("menuitem", name="Kernel")).to_be_visible()
    activated = "async name => { await jupyterapp.restored; return jupyterapp.isPluginActivated(name); }"
    assert page.evaluate(activated, PLUGIN), "the install has brought no extension"
    given = page.evaluate("JSON.parse(document.getElementById('jupyter-config-data').textContent)")
    assert {name: given.get(name) for name in options} == options
    if options and not options["hubHost"]:
        until(lambda: page.title() and wrong_of(wrong), "the answer to the one question")
    expect(page.locator(METER)).to_have_count(0)
    page.close()
    return asked, wrong_of(wrong)


def wrong_of(lines: list[str]) -> list[str]:
    """What has to do with the pool, but not how long JupyterLab took to load it."""
    return [line for line in lines if "gpupool" in line.lower() and " to activate" not in line]


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
