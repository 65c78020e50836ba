"""Pages for everybody: by keyboard, without JavaScript, on a phone, with a screen reader."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ..hub.conftest import HubUnderTest
from .conftest import STATUS, MakePerson, overflow

pytestmark = pytest.mark.browser

PHONE = 360
NAMED = frozenset(
    ["button", "link", "textbox", "radio", "checkbox", "combobox", "meter", "progressbar", "timer", "image"]
)
"""Roles that a screen reader announces by their name."""


def tree(page: Page) -> list[tuple[str, str]]:
    """Role and name of everything in the accessibility tree of the browser."""
    session = page.context.new_cdp_session(page)
    nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return [
        (str(node["role"]["value"]), str(node.get("name", {}).get("value", "")).strip())
        for node in nodes
        if not node["ignored"]
    ]


def heading_levels(page: Page) -> list[int]:
    found: list[int] = page.evaluate(
        """[...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter((one) => one.checkVisibility())
            .map((one) => Number(one.tagName[1]))"""
    )
    return found


def check_names_and_headings(page: Page) -> None:
    nodes = tree(page)
    assert {role for role, _ in nodes} & {"button", "radio"}, "a page without anything to use proves nothing"
    assert [role for role, name in nodes if role in NAMED and not name] == []
    levels = heading_levels(page)
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


def test_the_keyboard_alone_starts_a_session(person: MakePerson, demo: HubUnderTest) -> None:
    ada = person("ada")
    ada.open_form()
    page, press = ada.page, ada.page.keyboard.press
    page.locator("body").focus()
    for _ in range(30):
        press("Tab")
        if page.evaluate("document.activeElement.name") == "profile":
            break
    expect(page.locator("#profile-item-quarter-a100")).to_be_focused()
    press("ArrowDown")
    expect(page.locator("#profile-item-third-a100")).to_be_checked()
    press("ArrowUp")
    expect(page.locator("#profile-item-quarter-a100")).to_be_checked()
    press("Tab")
    page.keyboard.type("Another")
    press("Tab")
    expect(page.get_by_label("Another number")).to_be_focused()
    # What the profile does not allow is refused by the browser, and said in words.
    page.keyboard.type("0")
    press("Enter")
    assert page.get_by_label("Another number").evaluate("field => field.validity.patternMismatch")
    assert demo.lease_of("ada") is None
    ada.shot("pages-form-option")
    press("Backspace")
    page.keyboard.type("3")
    press("Tab")
    expect(page.get_by_role("button", name="Start")).to_be_focused()
    press("Enter")
    ada.lands()
    lease = demo.wait_state("ada", "active")
    assert dict(lease.options)["threads--unlisted-choice"] == "3"


def test_form_and_status_page_are_well_named_and_fit_a_phone(person: MakePerson) -> None:
    grace = person("grace", width=PHONE)
    grace.open_form()
    check_names_and_headings(grace.page)
    assert overflow(grace.page) <= 0
    grace.shot("pages-form-phone")
    grace.ask_for("half-a100")
    expect(grace.page.get_by_role("heading", name="Starting your session")).to_be_visible()
    check_names_and_headings(grace.page)
    assert overflow(grace.page) <= 0
    grace.shot("pages-start-phone")
    grace.lands()
    answer = grace.page.goto(STATUS)
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    expect(grace.page.get_by_role("heading", name="Half an A100")).to_be_visible()
    check_names_and_headings(grace.page)
    roles = [role for role, _ in tree(grace.page)]
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert roles.count(landmark) == 1, landmark
    assert overflow(grace.page) <= 0
    expect(grace.page.locator(".gp-device").first).to_contain_text("simulated")
    grace.shot("pages-status-phone")


def test_a_profile_of_another_group_says_why_it_is_closed(person: MakePerson) -> None:
    alan = person("alan")
    state = alan.open_form()["two-a100"]
    assert state.startswith("not for you") and "vision" in state
    expect(alan.page.locator("#profile-item-two-a100")).to_be_disabled()
    alan.shot("pages-form-closed")


def test_without_javascript(person: MakePerson, demo: HubUnderTest) -> None:
    linus = person("linus", script=False)
    page = linus.page
    linus.ask_for("quarter-a100")
    expect(page.get_by_role("heading", name="Starting your session")).to_be_visible()
    page.wait_for_url("**/user/linus/lab**", wait_until="commit")
    demo.wait_state("linus", "active")

    page.goto(STATUS)
    expect(page.get_by_role("heading", name="Quarter of an A100")).to_be_visible()
    expect(page.locator(".gp-device", has_text="linus (you)")).to_have_count(1)
    cap = page.locator("[data-field=cap]").first
    expect(cap).to_contain_text("3 min")
    linus.shot("pages-status-no-script")
    page.get_by_role("button", name="Extend").click()
    expect(page).to_have_url(re.compile(f"{STATUS}$"))
    expect(cap).to_contain_text("2 min")
    page.get_by_role("button", name="Release now").click()
    demo.wait_gone("linus")
    page.goto(STATUS)
    expect(page.get_by_text("You have no session")).to_be_visible()
