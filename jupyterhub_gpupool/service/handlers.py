"""The REST interface: JSON in the shapes of :mod:`.shapes`, each caller seeing only what they may."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

from jupyterhub.services.auth import HubOAuthCallbackHandler
from tornado import web
from tornado.iostream import StreamClosedError

from ..errors import GPUPoolError, Rejected
from ..fairness import Budget, BudgetState
from ..model import State
from ..pool import available
from . import admin, admin_pages, choices, front, pages, shapes, usage_pages
from .base import (
    API,
    LEASE,
    UNKNOWN_LEASE,
    read_json,
    seconds_since_1970,
    short,
    signed_in,
    whole_number,
)
from .standing import standing
from .stream import Feed, Watch

PAGE = 100
"""Closed leases in one answer."""

EVENTS = 200
"""Events in one answer."""

KEEP_ALIVE = 15.0
"""Seconds after which a stream without news says that it still lives."""

STREAM_LIFE = 600.0
"""Seconds after which a stream ends and the page connects anew: so long a right that was taken away lasts."""

RECONNECT = 2000
"""Milliseconds after which a page whose stream ended connects again."""

BUDGET_LIFE = 30.0
"""Seconds for which a stream goes by what it has read of the budget."""

STATIC = Path(__file__).parent.parent / "static"


class Availability(API):
    """``GET api/availability``."""

    @signed_in
    async def get(self) -> None:
        self.query()
        person, snapshot = self.known(), await self.feed.fresh()
        name, groups = person.name or "", list(person.groups)
        found = available(self.pool, snapshot, name, groups, person.admin, await self.budget(snapshot))
        self.answer(shapes.availability(self.pool.offer, found))


class Pool(API):
    """``GET api/pool``."""

    @signed_in
    async def get(self) -> None:
        self.query()
        self.answer(shapes.pool(await self.feed.fresh(), self.known()))


class Queue(API):
    """``GET api/queue``."""

    @signed_in
    async def get(self) -> None:
        self.query()
        self.answer(shapes.queue(await self.feed.fresh(), self.known()))


class Leases(API):
    """``GET api/leases``: open ones, or closed ones by pages."""

    @signed_in
    async def get(self) -> None:
        query, person = self.query("state", "before"), self.known()
        state = query.get("state", "open")
        if state not in ("open", "closed"):
            raise _bad(f"The parameter 'state' is {short(state)}; allowed are 'open' and 'closed'.")
        if state == "open":
            if "before" in query:
                raise _bad("The parameter 'before' is for closed leases only: add state=closed.")
            self.answer(shapes.leases(await self.feed.fresh(), person))
            return
        before = seconds_since_1970("before", query["before"]) if "before" in query else None
        self.answer(shapes.closed(await pages.closed_leases(self, before, PAGE), PAGE))


class OneLease(API):
    """``GET`` and ``DELETE api/leases/{id}``.  Of somebody else's lease no verb says anything."""

    allowed = ("GET", "DELETE")

    @signed_in
    async def get(self, key: str) -> None:
        await self.lease_of_person(key)
        self.query()
        self.answer(await self.whole_lease(key))

    @signed_in
    async def delete(self, key: str) -> None:
        lease = await self.lease_of_person(key)
        self.query()
        read_json(self.body())
        await self.release(lease)
        left = await self.lease_of_person(key)
        # 202: the session is being stopped, its slice is held until that is proved.
        self.answer(shapes.one(left, await self.feed.fresh()), 200 if left.state is State.CLOSED else 202)

    @signed_in
    async def _other(self, key: str) -> None:
        await self.lease_of_person(key)
        raise web.HTTPError(405)

    head = post = put = patch = options = _other


class Extend(API):
    """``POST api/leases/{id}/extend``."""

    allowed = ("POST",)

    @signed_in
    async def post(self, key: str) -> None:
        lease = await self.lease_of_person(key)
        self.query()
        read_json(self.body())
        await self.extend(lease)
        self.answer(shapes.one(await self.lease_of_person(key), await self.feed.fresh()))

    @signed_in
    async def _other(self, key: str) -> None:
        await self.lease_of_person(key)
        raise web.HTTPError(405)

    get = head = put = patch = delete = options = _other


class Events(API):
    """``GET api/events``: the audit trail, for admins."""

    @signed_in
    async def get(self) -> None:
        if not self.known().admin:
            raise Rejected("The audit trail is for admins.", reason="forbidden", status=403)
        after = whole_number("after", self.query("after").get("after", "0"))
        self.answer(shapes.events(await self.pool.ask("events", after, EVENTS), after))


class Stream(API):
    """``GET api/stream``: server-sent events, each when what it shows has changed, all at the beginning."""

    _watch: Watch | None = None
    _budget: Budget = Budget()
    _budget_at = -math.inf
    _budget_seen: tuple[Any, ...] = ()

    @signed_in
    async def get(self) -> None:
        self.query()
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("X-Accel-Buffering", "no")
        feed: Feed = self.feed
        try:
            self.write(f"retry: {RECONNECT}\n\n")
            await self.flush()
            with feed.watch(KEEP_ALIVE) as self._watch:
                await self._follow(feed, self._watch)
        except StreamClosedError:
            return

    async def _follow(self, feed: Feed, watch: Watch) -> None:
        sent: dict[str, str] = {}
        wrote_at = began = time.monotonic()
        async for _ in watch:
            found = await self._now(feed)
            news = {name: text for name, text in found.items() if sent.get(name) != text}
            lines = [f"event: {name}\ndata: {text}\n\n" for name, text in news.items()]
            sent |= news
            if not lines and time.monotonic() - wrote_at >= KEEP_ALIVE:
                lines = [": still here\n\n"]
            if lines:
                wrote_at = time.monotonic()
                self.write("".join(lines))
                await self.flush()
            if time.monotonic() - began >= STREAM_LIFE:
                return

    async def _now(self, feed: Feed) -> dict[str, str]:
        """What the person should know now: the state, or why it is not known; null ends a problem."""
        try:
            standing = await self._standing(feed)
        except GPUPoolError as problem:
            return {"problem": json.dumps(shapes.error(problem.status, problem.reason, problem.message))}
        return {**feed.rendered(self.known()), "me": json.dumps(standing), "problem": "null"}

    async def _standing(self, feed: Feed) -> shapes.Shape:
        """How the person stands; a budget that is used up is asked for only now and then."""
        if feed.problem is not None:
            raise feed.problem
        view = await feed.fresh(math.inf)
        seen = view.budget(self.known().name or "", self.known().groups)
        old = time.monotonic() - self._budget_at >= BUDGET_LIFE
        if old or (seen.state, seen.scope, seen.hours) != self._budget_seen:
            self._budget, self._budget_at = await self.budget(view), time.monotonic()
            self._budget_seen = seen.state, seen.scope, seen.hours
        budget = self._budget if seen.state is BudgetState.EXHAUSTED else seen
        return standing(self.known(), budget, feed.over, feed.usage, view.now)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self._watch is not None:
            self._watch.close()


class Health(API):
    """``GET health``: 200 while sweeps succeed, 503 with the reason when not.  For anyone, without names."""

    allowed = ("GET", "HEAD")

    def get(self) -> None:
        well, message = self.settings["health"]()
        status = 200 if well else 503
        self.answer(shapes.error(status, "ok" if well else "unhealthy", message), status)

    head = get


class Missing(API):
    """Any other address below ``api/``."""

    @signed_in
    async def _missing(self) -> None:
        below = self.request.path.rpartition("/api/")[2]
        if below.startswith("leases/"):
            raise Rejected(UNKNOWN_LEASE, reason="not-found", status=404)
        raise web.HTTPError(404)

    get = head = post = put = patch = delete = options = _missing


class Static(web.StaticFileHandler):
    """Style and script of the pages; they tell nobody anything."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.clear_header("Server")


def routes(prefix: str) -> list[tuple[Any, ...]]:
    """All addresses of the service below its prefix, such as ``/services/gpupool/``."""
    bare = re.escape(prefix.rstrip("/"))
    base, api = f"{bare}/", f"{bare}/api/"
    return [
        (base, pages.Status),
        (f"{base}events", pages.AuditTrail),
        (f"{base}leases", pages.Ended),
        (f"{base}notices", choices.NoticesPage),
        (f"{base}leases/{LEASE}", pages.OneSession),
        (f"{base}leases/{LEASE}/extend", pages.ExtendForm),
        (f"{base}leases/{LEASE}/release", pages.ReleaseForm),
        (f"{base}oauth_callback", HubOAuthCallbackHandler),
        *admin_pages.routes(base),
        *usage_pages.routes(base),
        (f"{base}static/(.*)", Static, {"path": str(STATIC)}),
        (f"{base}health", Health),
        (f"{api}availability", Availability),
        (f"{api}pool", Pool),
        (f"{api}queue", Queue),
        (f"{api}leases", Leases),
        (f"{api}leases/{LEASE}", OneLease),
        (f"{api}leases/{LEASE}/extend", Extend),
        (f"{api}events", Events),
        (f"{api}stream", Stream),
        *front.routes(base, api),
        *admin.routes(api),
        (f"{api}.*", Missing),
        (bare, web.RedirectHandler, {"url": f"{prefix.rstrip('/')}/"}),
        (r".*", pages.NotFound),
    ]


def _bad(message: str) -> Rejected:
    return Rejected(message, reason="bad-request")
