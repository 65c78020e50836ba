"""The REST verbs of front ends: JupyterLab's extension and the pages' script, in their person's name."""

from __future__ import annotations

import base64
import json
from typing import Any

from ..errors import Rejected
from ..ledger.endings import PATH, PATHS
from ..notices import SEEN_BY
from . import shapes
from .base import API, LEASE, read_json, short, signed_in

NOTHING = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""A picture of one transparent point."""


class Session(API):
    """``GET api/session``: who is logged in here, and the token that their further requests need.

    A front end on the hub's origin calls it by ``fetch`` with mode ``no-cors``: then the login needs no token.
    Without a login it leads through the hub's, which asks nothing of somebody who is logged in there, and back.
    Only pages of this origin may read the answer; nothing lets those of others.
    """

    def turn_away(self) -> None:
        """Lead through the login, but for a request that would not be known afterwards either."""
        if self.request.headers.get("Sec-Fetch-Mode", "no-cors") not in ("no-cors", "navigate") or not _ours(
            self
        ):
            super().turn_away()
        self.redirect(self.get_login_url())

    @signed_in
    async def get(self) -> None:
        self.query()
        if not _ours(self):
            message = "Only a page of this hub may ask for this."
            raise Rejected(message, reason="not-same-origin", status=403)
        snapshot = await self.feed.fresh()
        self.answer(
            {
                "user": self.known().name,
                "xsrf": self._token(),
                "prefix": self.hub_auth.base_url,
                "version": self.settings["version"],
                "now": shapes.iso(snapshot.now),
                "mode": snapshot.mode or None,
            }
        )

    def _token(self) -> str | None:
        """The token, with its cookie where the browser has lost it; None for a program, which needs none."""
        if getattr(self, "_token_authenticated", False):
            return None
        token = self.xsrf_token
        if token not in (self.get_cookie("_xsrf") or "").encode().split(b";"):
            self.set_cookie("_xsrf", token, path=self.hub_auth.base_url)
        return token.decode() if isinstance(token, bytes) else str(token)


class Seen(API):
    """``POST api/leases/{id}/seen``: a warning is before its person's eyes."""

    allowed = ("POST",)

    @signed_in
    async def post(self, key: str) -> None:
        lease = await self.own_lease(key)
        self.query()
        body = read_json(self.body(), ("warning", "by"))
        warning, by = body.get("warning"), body.get("by")
        if not isinstance(warning, str):
            raise _bad("The body needs 'warning', the id of the warning as the lease names it.")
        if by not in SEEN_BY:
            raise _bad(f"'by' is {short(json.dumps(by))}; allowed are {' and '.join(map(repr, SEEN_BY))}.")
        await self.seen(lease, warning, by)
        self.answer(shapes.one(await self.lease_of_person(key), await self.feed.fresh()))


class SeenWithoutScript(API):
    """``GET leases/{id}/seen.gif?warning=…``: a warning is before its person's eyes, in a page without JavaScript.

    Only a browser that runs no script asks for this picture of a page, and only when a person opens that page.
    """

    @signed_in
    async def get(self, key: str) -> None:
        lease = await self.own_lease(key)
        warning = self.query("warning").get("warning", "")
        if getattr(self, "_token_authenticated", False) or not self._shown():
            message = "Only a page of this hub that a person looks at shows this picture."
            raise Rejected(message, reason="not-shown", status=403)
        await self.seen(lease, warning, "page")
        self.set_header("Content-Type", "image/gif")
        self.write(NOTHING)

    def _shown(self) -> bool:
        """Whether the browser asks for a picture of a page of ours, and not ahead of its person."""
        said = self.request.headers
        ahead = any("prefetch" in said.get(name, "").lower() for name in ("Sec-Purpose", "Purpose", "X-Moz"))
        ours = said.get("Sec-Fetch-Site", "same-origin") == "same-origin"
        return ours and not ahead and said.get("Sec-Fetch-Dest", "image") == "image"


class Saved(API):
    """``POST api/leases/{id}/saved``: what a front end has saved before the end."""

    allowed = ("POST",)

    @signed_in
    async def post(self, key: str) -> None:
        lease = await self.own_lease(key)
        self.query()
        body = read_json(self.body(), ("documents", "failed"))
        await self.pool.ask("saved", lease.id, _paths(body, "documents"), _paths(body, "failed"))
        self.answer(shapes.one(await self.lease_of_person(key), await self.feed.fresh()))


def _paths(body: dict[str, Any], name: str) -> list[str]:
    found = body.get(name, [])
    if not isinstance(found, list) or len(found) > PATHS:
        raise _bad(f"{name!r} must be a list of at most {PATHS} paths.")
    for path in found:
        if not isinstance(path, str) or len(path) > PATH:
            raise _bad(f"{name!r} holds something that is no path of at most {PATH} characters.")
    return found


def routes(base: str, api: str) -> list[tuple[Any, ...]]:
    """The addresses of these below the service's prefix and ``…/api/``, which are given as regular expressions."""
    return [
        (f"{base}leases/{LEASE}/seen.gif", SeenWithoutScript),
        (f"{api}session", Session),
        (f"{api}leases/{LEASE}/seen", Seen),
        (f"{api}leases/{LEASE}/saved", Saved),
    ]


def _ours(handler: API) -> bool:
    """Whether a page of this very origin asks, or nobody's: not one of a person's session on a host of its own."""
    return handler.request.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")


def _bad(message: str) -> Rejected:
    return Rejected(message, reason="bad-request")
