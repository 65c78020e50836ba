"""Those who run the pool, with a browser: limits with a preview, drains, the books; and what people see of it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jupyterhub_gpupool.__main__ import main
from jupyterhub_gpupool.model import Lease

from ..hub.conftest import HubUnderTest, until
from .conftest import STATUS, MakePerson, Person, overflow
from .test_pages import PHONE, check_names_and_headings

pytestmark = pytest.mark.browser

EVIL = "<script>document.title='owned'</script><b>bold</b>"
EXTENSIONS = 3
"""What the demo's profiles allow: enough for a session to be left alone while a test looks elsewhere."""


@pytest.fixture(autouse=True)
def as_configured(demo: HubUnderTest) -> Iterator[None]:
    """Whatever a test did, the next one finds the limits as they are configured and every GPU in service."""
    yield
    url = ["--database-url", f"sqlite:///{demo.state / 'ledger.sqlite'}"]
    for scope in demo.ledger().limits():
        assert main(["limits", "clear", scope, *url]) == 0
    assert main(["undrain", "pool", *url]) == 0


def holds(person: Person, demo: HubUnderTest, profile: str) -> Lease:
    """A session of this person that is not idle for a while."""
    person.ask_for(profile)
    person.lands()
    lease = demo.wait_state(person.name, "active")
    for _ in range(EXTENSIONS):
        demo.ledger().extend(lease.id, person.name)
    return lease


def go(page: Page, name: str) -> None:
    """Follow a link of the pool's own navigation."""
    page.goto(STATUS)
    page.get_by_role("navigation").get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()


def open_limit(page: Page, scope: str) -> None:
    """Come from the list of limits to the form of one, whether it has a limit or not."""
    go(page, "Limits")
    page.get_by_label("Scope", exact=True).fill(scope)
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_role("heading", level=1, name=f"Limit of {scope}")).to_be_visible()


def line_of(page: Page, scope: str, label: str) -> list[str]:
    """What the table of limits says of a key: configured, edited, in force, now."""
    group = page.locator("tbody", has=page.get_by_text(scope, exact=True))
    found: list[str] = group.get_by_role("row").filter(has_text=label).locator("td").all_inner_texts()
    return found


def fits(page: Page) -> None:
    page.wait_for_load_state()
    check_names_and_headings(page)
    assert overflow(page) <= 0


def test_a_limit_is_edited_with_a_preview_and_who_waits_follows(
    person: MakePerson, demo: HubUnderTest
) -> None:
    ada, linus, admin = person("ada"), person("linus"), person("admin")
    page = admin.page
    holds(ada, demo, "quarter-a100")
    open_limit(page, "pool")
    page.get_by_label("GPU-equivalents at once").fill("0.25")
    page.get_by_label("GPU-hours", exact=True).fill("100")
    fits(page)
    admin.shot("admin-limit-form")
    page.get_by_role("button", name="Preview", exact=True).click()
    expect(page.get_by_text("Nothing is changed yet.")).to_be_visible()
    expect(page.get_by_text("Nobody would be put over a limit.")).to_be_visible()
    assert demo.ledger().limits() == {}
    page.get_by_label("Why").fill(EVIL)
    fits(page)
    admin.shot("admin-limit-preview")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("What is in force for pool is shown below.")).to_be_visible()
    assert line_of(page, "pool", "GPU-equivalents") == ["no limit", "0.25", "0.25", "0.25"]
    assert line_of(page, "pool", "Requests that may wait") == ["50", "50", "50", "0"]
    # What was typed is shown as it was typed, and does nothing.
    expect(page.get_by_text(EVIL)).to_be_visible()
    assert "owned" not in page.title()
    admin.shot("admin-limits")

    linus.ask_for("quarter-a100")
    message = linus.page.locator("#progress-message")
    expect(message).to_contain_text("the pool holds 0.25 of its 0.25 GPUs")
    status = linus.status()
    expect(status.locator("[data-list=own] [data-field=reason]")).to_contain_text("the pool holds 0.25")
    expect(status.locator("[data-list=own] [data-field=wait]")).not_to_be_empty()
    expect(status.get_by_text("100 GPU-hours left (the pool, in any 7 days)")).to_be_visible()
    linus.shot("admin-waits", status)

    # Nothing is restarted and nobody clicks: the way back lets the one who waits in.
    page.get_by_role("link", name="Edit pool").click()
    page.get_by_role("button", name="Preview the way back").click()
    expect(page.get_by_text("The configured limit would hold again.")).to_be_visible()
    admin.shot("admin-limit-back")
    page.get_by_role("button", name="Back to the configured limit").click()
    linus.lands()
    assert demo.ledger().limits() == {}  # what is configured, this ledger of the test does not know
    expect(status.locator("[data-list=own] [data-field=state]")).to_have_text("active")
    expect(status.locator("#budget")).to_be_hidden()
    status.get_by_role("button", name="Release now").click()
    demo.wait_gone("linus")
    assert [event.actor for event in demo.ledger().events(count=1000) if event.action == "limit"] == [
        "admin"
    ] * 2


def test_whom_a_limit_puts_over_it_is_said_before_and_after(person: MakePerson, demo: HubUnderTest) -> None:
    alan, admin = person("alan"), person("admin", width=PHONE)
    page = admin.page
    lease = holds(alan, demo, "half-a100")
    status = alan.status()
    open_limit(page, "group:students")
    page.get_by_label("GPU-equivalents at once").fill("0.1")
    page.get_by_role("button", name="Preview", exact=True).click()
    touched = page.locator(".gp-touched")
    expect(touched).to_contain_text("alan: Over limit: group students holds 0.5 of its 0.1 GPUs.")
    fits(page)
    admin.shot("admin-limit-preview-phone")
    page.get_by_label("Why").fill("less for now")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("Over limit: group students holds 0.5 of its 0.1 GPUs.")).to_be_visible()
    assert overflow(page) <= 0
    admin.shot("admin-limits-phone")
    # Nothing is ended, and Alan is told on the page that he has open.
    expect(status.locator("#over")).to_contain_text("Over limit: group students holds 0.5 of its 0.1 GPUs.")
    expect(status.locator("[data-list=own] [data-field=group]")).to_have_text("students")
    alan.shot("admin-over-limit", status)
    linus = person("linus")  # of the same group
    assert linus.open_form()["half-a100"].startswith("not for you: reason ")
    expect(linus.page.locator("#gpupool-why-1")).to_contain_text("allowed 0.1 GPUs at once")
    expect(linus.page.get_by_text("Over limit: group students holds 0.5 of its 0.1 GPUs.")).to_be_visible()
    linus.shot("admin-form-over-limit")
    left = demo.lease_of("alan")
    assert left is not None and left.id == lease.id and left.state == "active"
    page.get_by_role("link", name="Edit group:students").click()
    page.get_by_role("button", name="Preview the way back").click()
    expect(page.get_by_text("group:students would no longer be over its limit.")).to_be_visible()
    page.get_by_role("button", name="Back to the configured limit").click()
    expect(status.locator("#over")).to_be_empty()


@pytest.mark.parametrize("script", [True, False])
def test_a_bad_value_is_said_beside_its_field_and_changes_nothing(
    person: MakePerson, demo: HubUnderTest, script: bool
) -> None:
    admin = person("admin", script=script, width=PHONE)
    page = admin.page
    before = demo.ledger().limits()
    open_limit(page, f"user:{EVIL}")
    page.get_by_label("Sessions at once").fill("two")
    page.get_by_label("Longest session").fill("12 h")
    page.get_by_role("button", name="Preview", exact=True).click()
    field = page.get_by_label("Sessions at once")
    expect(field).to_have_value("two")
    expect(field).to_have_attribute("aria-invalid", "true")
    wrong = page.locator("#wrong-sessions")
    expect(wrong).to_be_visible()
    expect(wrong).to_contain_text("Sessions is 'two'; it must be a whole number")
    assert "wrong-sessions" in str(field.get_attribute("aria-describedby"))
    expect(page.get_by_label("Longest session")).to_have_value("12 h")
    fits(page)
    admin.shot(f"admin-limit-wrong-phone{'' if script else '-no-script'}")
    page.goto(f"{STATUS}limits/edit?scope=everybody")
    expect(page.get_by_text("is not a scope")).to_be_visible()
    assert demo.ledger().limits() == before


def test_others_are_told_that_this_is_for_admins(person: MakePerson) -> None:
    grace = person("grace")
    for path in ("limits", "limits/edit?scope=pool", "drain"):
        answer = grace.page.goto(f"{STATUS}{path}")
        assert answer is not None and answer.status == 403
        expect(grace.page.get_by_text("This is for admins.")).to_be_visible()
    grace.shot("admin-forbidden")


def test_a_gpu_is_drained_and_put_back(person: MakePerson, demo: HubUnderTest) -> None:
    grace, admin = person("grace"), person("admin")
    page = admin.page
    lease = holds(grace, demo, "t4")
    (device,) = (part.device for part in lease.slices)
    status = grace.status()
    card = page.locator(f'.gp-device[data-key="{device}"]')
    page.goto(STATUS)
    card.get_by_role("link", name="Take out of service…").click()
    expect(page.locator(".gp-sessions")).to_contain_text("grace: A whole T4, active since")
    page.get_by_label("Sessions end at (UTC)").fill("2999-01-01T00:00")
    page.locator("#why").fill("new fan <i>today</i>")
    page.get_by_role("button", name="Take this GPU out of service").click()
    expect(page.locator("#at-wrong")).to_contain_text("A drain begins at a time of the next ten years.")
    expect(page.locator("#why")).to_have_value("new fan <i>today</i>")
    fits(page)
    admin.shot("admin-drain")
    page.get_by_label("Sessions end at (UTC)").fill("")
    page.get_by_role("button", name="Take this GPU out of service").click()
    expect(card).to_contain_text("ok, drained")
    expect(card).to_contain_text(re.compile(r"Sessions end from .* on, by admin: new fan <i>today</i>"))
    admin.shot("admin-drained")

    # Grace is warned with the reason, on the page that is open; Extend does not work, and says so.
    warning = status.locator("[data-list=own] .gp-warning")
    expect(warning).to_be_visible()
    expect(warning).to_contain_text("Because its GPU is taken out of service.")
    expect(warning).to_contain_text("new fan <i>today</i>")
    expect(status.locator("[data-list=own] [data-field=cap]")).to_contain_text(
        "Extend does not put this end off"
    )
    expect(status.locator("[data-list=own] [data-field=extend]")).to_be_disabled()
    expect(status.locator(f'.gp-device[data-key="{device}"] [data-show=drained]')).to_be_visible()
    grace.shot("admin-drain-warned", status)

    card.get_by_role("link", name="Back into service…").click()
    fits(page)
    admin.shot("admin-undrain")
    page.get_by_role("button", name="Put back into service").click()
    expect(card).not_to_contain_text("drained")
    expect(warning).to_be_hidden()
    expect(status.locator(f'.gp-device[data-key="{device}"] [data-show=drained]')).to_be_hidden()
    left = demo.lease_of("grace")
    assert left is not None and left.id == lease.id


def test_the_whole_pool_is_drained_on_a_phone_without_javascript(
    person: MakePerson, demo: HubUnderTest
) -> None:
    admin = person("admin", script=False, width=PHONE)
    page = admin.page
    page.goto(STATUS)
    page.get_by_role("link", name="The whole pool: out of service, or back…").click()
    fits(page)
    admin.shot("admin-drain-phone")
    page.get_by_label("Sessions end at (UTC)").fill("2035-01-01T00:00")
    page.locator("#why").fill("moving house")
    page.get_by_role("button", name="Take the whole pool out of service").click()
    expect(page.locator(".gp-device").first).to_contain_text("drained")
    assert overflow(page) <= 0
    admin.shot("admin-drained-phone")
    assert all(device.drained for device in demo.ledger().snapshot().devices)
    page.get_by_role("link", name="The whole pool: out of service, or back…").click()
    page.get_by_role("button", name="Put back into service").click()
    expect(page.locator(".gp-device").first).not_to_contain_text("drained")
    assert not any(device.drained for device in demo.ledger().snapshot().devices)


def test_the_books_are_shown_and_come_as_csv(person: MakePerson, demo: HubUnderTest, tmp_path: Path) -> None:
    ada, admin = person("ada", width=PHONE), person("admin")
    if demo.lease_of("ada") is None:
        holds(ada, demo, "quarter-a100")
    users = {row.key for row in demo.ledger().usage("user", 0, 4e9)}
    page = admin.page
    go(page, "Use")
    totals = page.locator("#totals tbody tr")
    until(lambda: page.reload() and totals.count() >= len(users), "all who used something")
    assert set(totals.locator("th").all_inner_texts()) >= users
    fits(page)
    admin.shot("admin-use")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert re.fullmatch(r"gpu-hours-by-user-[-\d]+\.csv", path.name)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["user"] for row in rows} >= users and set(rows[0]) == {
        "user",
        "day",
        "used",
        "idle",
        "waiting",
    }
    page.get_by_label("By").select_option("profile")
    page.get_by_label("From").fill("2026-01-01")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#totals")).to_contain_text("Quarter of an A100")
    with page.expect_response(lambda answer: "api/usage" in answer.url) as answer:
        page.get_by_role("link", name="JSON").click()
    assert answer.value.status == 200 and answer.value.json()["by"] == "profile"
    page.goto(f"{STATUS}use?from=soon")
    expect(page.locator("#from-wrong")).to_contain_text("From is 'soon'")

    page = ada.page
    go(page, "Use")
    expect(page.locator("#totals tbody th")).to_have_text(["ada"])
    fits(page)
    ada.shot("admin-use-phone")
