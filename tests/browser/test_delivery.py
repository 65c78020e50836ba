"""When a page has told somebody, and how it counts on: Chromium before the service itself, without a hub's start."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from jupyterhub_gpupool.model import Lease

from ..unit.test_service_front import warned
from ..unit.test_service_web import PREFIX, Web, a_hub, a_site
from .conftest import FLAGS, PATIENCE

__all__ = ["a_hub", "a_site"]  # fixtures

pytestmark = pytest.mark.browser

VISIBILITY = """
    window.shown = "hidden";
    Object.defineProperty(document, "visibilityState", { get: () => window.shown });
"""
SHOW = "window.shown = 'visible'; document.dispatchEvent(new Event('visibilitychange'))"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        made = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield made
        await made.close()


async def opened(site: Web, browser: Browser, path: str, *, script: bool) -> Page:
    """A page of Ada's in a tab in the background."""
    context: BrowserContext = await browser.new_context(java_script_enabled=script)
    context.set_default_timeout(PATIENCE)
    name, _, value = site.cookie("ada").partition("=")
    await context.add_cookies([{"name": name, "value": value, "domain": "127.0.0.1", "path": PREFIX}])
    page = await context.new_page()
    await page.add_init_script(VISIBILITY)
    await page.goto(f"http://127.0.0.1:{site.port}{PREFIX}{path}")
    return page


def now(site: Web, lease: Lease) -> Lease:
    found = site.ledger.lease(lease.id)
    assert found is not None
    return found


@pytest.mark.parametrize("path", ["", "leases/{}"])
async def test_a_page_in_the_background_tells_nobody_until_it_is_looked_at(
    site: Web, browser: Browser, path: str
) -> None:
    lease = warned(site)
    page = await opened(site, browser, path.format(lease.id), script=True)
    while not await page.evaluate("ownLeases.length"):  # noqa: ASYNC110 - until the script has the news
        await asyncio.sleep(0.05)
    assert now(site, lease).delivered_at is None
    stands = page.locator("[data-key] [data-show=stands]").first
    await expect(stands).to_be_visible()
    await page.evaluate(SHOW)
    countdown = page.locator("[data-key] [data-field=countdown]").first
    await expect(countdown).to_be_visible()
    await expect(stands).to_be_hidden()
    assert now(site, lease).delivered_by == "page"
    first = await countdown.text_content()
    assert first is not None and first.endswith(" s")
    await expect(countdown).not_to_have_text(first)  # it counts
    if path:
        site.ledger.begin_stop(lease.id, actor="service", reason="idle")
        site.ledger.close(lease.id, actor="service")
        await expect(page.get_by_text("No log of this session was kept.")).to_be_visible()


async def test_a_page_without_javascript_tells_by_being_opened(site: Web, browser: Browser) -> None:
    lease = warned(site)
    page = await opened(site, browser, "", script=False)
    async with asyncio.timeout(PATIENCE / 1000):
        while now(site, lease).delivered_at is None:  # noqa: ASYNC110 - until the picture was asked for
            await asyncio.sleep(0.05)
    assert now(site, lease).delivered_by == "page"
    await page.reload()
    await expect(page.locator("[data-key] [data-show=counts]").first).to_be_visible()
