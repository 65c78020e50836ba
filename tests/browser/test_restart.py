"""The hub dies while people wait: their open pages go on by themselves, and nobody loses a place."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from ..hub.conftest import HubUnderTest
from .conftest import MakePerson

pytestmark = pytest.mark.browser


def test_the_open_page_goes_on_after_the_hub_was_killed(person: MakePerson, demo: HubUnderTest) -> None:
    ada, grace, linus = person("ada"), person("grace"), person("linus")
    ada.ask_for("t4")
    ada.lands()
    for one, words in ((grace, "You are next in the queue"), (linus, "You are number 2 in the queue")):
        one.ask_for("t4")
        expect(one.page.locator("#progress-message")).to_contain_text(words)
    before = {name: demo.wait_state(name, "queued") for name in ("grace", "linus")}

    demo.kill()
    for one in (grace, linus):
        expect(one.page.locator("#progress-message")).to_contain_text("The hub does not answer")
    grace.shot("restart-hub-away")
    demo.start()

    # From here on nobody touches a page.
    for one, words in ((grace, "You are next in the queue"), (linus, "You are number 2 in the queue")):
        expect(one.page.locator("#progress-message")).to_contain_text(words)
    grace.shot("restart-goes-on")
    for name, lease in before.items():
        assert demo.wait_state(name, "queued").id == lease.id

    # The session that ran was adopted: its page answers, and releasing it lets the next one in.
    ada.page.reload()
    ada.lands()
    ada.status().get_by_role("button", name="Release now").click()
    grace.lands()
    assert demo.wait_state("grace", "active").id == before["grace"].id
    expect(linus.page.locator("#progress-message")).to_contain_text("You are next in the queue")
