"""The pages: the status of the pool, the audit trail, and the forms behind their buttons.

They are whole without JavaScript; ``static/gpupool.js`` only keeps them up to date.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tornado import web

from ..cells import cell_numbers
from ..errors import Rejected
from ..ledger import Snapshot
from ..ledger.text import short_image
from ..model import Lease
from . import shapes, telling
from .base import Base, seconds_since_1970, signed_in, whole_number
from .standing import standing
from .words import device_in_words, duration

TEMPLATES = Path(__file__).parent.parent / "templates" / "service"

EVENTS = 100
"""Events on one page of the audit trail."""

ENDED = 50
"""Ended sessions on one page."""

MODES = {
    "observe": "the use is watched; nobody is warned and nothing is stopped",
    "warn": "whoever leaves a GPU idle is warned; nothing is stopped",
    "reclaim": "whoever leaves a GPU idle is warned, and the session is stopped when the warning has run out",
}


def percent(value: float | None) -> str:
    """A utilization in words."""
    return "unknown" if value is None else f"{value:.0f} %"


def memory(mib: float | None) -> str:
    """MiB in words."""
    if mib is None:
        return "unknown"
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def figure(value: float | None, unit: str = "") -> str:
    """A figure with its unit in words."""
    return "unknown" if value is None else f"{value:.0f} {unit}".rstrip()


def clock(iso: str | None) -> str:
    """A time for readers without JavaScript, which makes it local."""
    return "unknown" if iso is None else f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M:%S} UTC"


def bars(cells: str) -> list[tuple[int, int]]:
    """Cells as bars: the first one and how many."""
    found: list[tuple[int, int]] = []
    for part in filter(None, cells.split(",")):
        numbers = cell_numbers(part)
        found.append((numbers[0], len(numbers)))
    return found


@functools.cache
def environment() -> Environment:
    """The templates, escaping everything and refusing names that do not exist."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"duration": duration, "percent": percent, "memory": memory, "clock": clock, "bars": bars}
    made.filters |= {"figure": figure, "condition": device_in_words, "short": short_image}
    return made


class Page(Base):
    """A handler that answers with HTML."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        hub = self.hub_auth.hub_host
        theirs = f" {hub}" if hub else ""
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'self'; style-src 'self'{theirs}; font-src 'self'{theirs}; "
            f"img-src 'self' data:{theirs}; object-src 'none'; base-uri 'none'; form-action 'self'; "
            "frame-ancestors 'none'",
        )

    def turn_away(self) -> None:
        """Send readers to the hub's login; a form that is not known to come from our page is refused."""
        if self.request.method in ("GET", "HEAD"):
            self.redirect(self.get_login_url())
            return
        raise Rejected(
            "This form does not come from a page of yours that is still valid. "
            "Go back, reload the page and try again.",
            reason="not-authenticated",
            status=403,
        )

    def show(self, template: str, **values: Any) -> None:
        """Write a page."""
        hub = self.hub_auth
        self.set_header("Content-Type", "text/html; charset=utf-8")
        page = environment().get_template(template)
        text = page.render(
            person=self.person,
            xsrf=self._token_of_page(),
            prefix=hub.base_url,
            hub=f"{hub.hub_host}{hub.hub_prefix}",
            version=self.settings["version"],
            **values,
        )
        self.write(text.encode("utf-8", "replace"))

    def _token_of_page(self) -> str:
        """The token that this page's forms send back; the first page of a login also sets its cookie."""
        token = self.xsrf_token if self.person else ""
        return token.decode() if isinstance(token, bytes) else token

    def untold(self, snapshot: Snapshot, only: str = "") -> list[Lease]:
        """The person's own sessions with a warning that has reached nobody yet.

        That this page is fetched is no delivery: it may open in a tab in the background.  Its script says so once
        somebody can see it, and where no script runs, the browser by a picture that only such a page shows.
        """
        mine = [lease for lease in snapshot.leases if self.known().is_called(lease.user)]
        return [
            lease
            for lease in mine
            if only in ("", lease.id) and telling.warned(lease) and lease.delivered_at is None
        ]

    def titles(self) -> Mapping[str, str]:
        """What the profiles are called."""
        return {slug: str(profile.display_name) for slug, profile in self.pool.offer.items()}

    def answer_error(self, status: int, reason: str, message: str) -> None:
        self.show("error.html", status=status, reason=reason, message=message)
        self.finish()


class Status(Page):
    """The pool at a glance: one's own sessions, the devices, the queue."""

    @signed_in
    async def get(self) -> None:
        self.query()
        snapshot, person = await self.feed.fresh(), self.known()
        listed = shapes.leases(snapshot, person)["leases"]
        pool = shapes.pool(snapshot, person)
        self.show(
            "status.html",
            now=shapes.iso(snapshot.now),
            untold=self.untold(snapshot),
            own=[shape for shape in listed if person.is_called(shape["user"])],
            others=[shape for shape in listed if not person.is_called(shape["user"])],
            devices=pool["devices"],
            gpus=pool["gpus"],
            service=pool["service"],
            modes=MODES,
            titles=self.titles(),
            queue=shapes.queue(snapshot, person)["queue"],
            me=standing(person, await self.budget(snapshot), self.feed.over, self.feed.usage, snapshot.now),
        )


async def closed_leases(handler: Base, before: float | None, count: int) -> list[Lease]:
    """The person's own closed leases, newest first; everybody's for an admin."""
    person = handler.known()
    if not person.admin and person.name is None:
        return []
    found: list[Lease] = await handler.pool.ask(
        "closed", None if person.admin else person.name, before, count
    )
    return found


class Ended(Page):
    """One's own ended sessions by pages, everybody's for an admin."""

    @signed_in
    async def get(self) -> None:
        query = self.query("before")
        before = seconds_since_1970("before", query["before"]) if "before" in query else None
        shape = shapes.closed(await closed_leases(self, before, ENDED), ENDED)
        self.show("ended.html", titles=self.titles(), **shape)


class OneSession(Page):
    """A session with its launch check, and with the end of its log once it has ended."""

    @signed_in
    async def get(self, key: str) -> None:
        await self.lease_of_person(key)
        self.query()
        snapshot = await self.feed.fresh()
        shape = await self.whole_lease(key)
        self.show(
            "session.html",
            lease=shape,
            title=self.titles().get(shape["profile"], shape["profile"]),
            untold=self.untold(snapshot, key),
            mode=snapshot.mode,
        )


class AuditTrail(Page):
    """The audit trail by pages, for admins."""

    @signed_in
    async def get(self) -> None:
        if not self.known().admin:
            raise Rejected("The audit trail is for admins.", reason="forbidden", status=403)
        after = whole_number("after", self.query("after").get("after", "0"))
        found = await self.pool.ask("events", after, EVENTS)
        shape = shapes.events(found, after)
        self.show("events.html", after=after, more=len(found) == EVENTS, **shape)


class ExtendForm(Page):
    """The button "Extend"."""

    allowed = ("POST",)

    async def post(self, key: str) -> None:
        self.read_form()
        await self._extend(key)

    @signed_in
    async def _extend(self, key: str) -> None:
        await self.extend(await self.lease_of_person(key))
        self.redirect(self.hub_auth.base_url, status=303)


class ReleaseForm(Page):
    """The buttons "Release now" and "Leave the queue"."""

    allowed = ("POST",)

    async def post(self, key: str) -> None:
        self.read_form()
        await self._release(key)

    @signed_in
    async def _release(self, key: str) -> None:
        await self.release(await self.lease_of_person(key))
        self.redirect(self.hub_auth.base_url, status=303)


class NotFound(Page):
    """Any other address."""

    async def _missing(self) -> None:
        raise web.HTTPError(404)

    get = head = post = put = patch = delete = options = _missing
