"""The REST verbs of those who run the pool: limits and drains; and the books, of which everybody sees their own."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Any

from .. import books, fairness
from ..errors import Rejected
from ..ledger import LimitRow
from ..model import Limit
from . import tables, times
from .base import API, Base, read_json, short, signed_in
from .changes import Change, foresee

DEVICE = r"([^/]+)"
"""What the id of a device looks like in an address; whether there is one, the ledger says."""

SCOPE = r"(.+)"
"""The same for a scope: names of groups may have a slash."""


def admins_only(verb: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Let a verb of a handler run only for an admin; what is wrong with the request, nobody else is told."""

    @signed_in
    @wraps(verb)
    async def guarded(self: Base, *args: str) -> None:
        if not self.known().admin:
            raise Rejected("This is for admins.", reason="forbidden", status=403)
        await verb(self, *args)

    return guarded


def for_admins(verb: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """The same for a verb whose address has no parameters."""

    @admins_only
    @wraps(verb)
    async def bare(self: Base, *args: str) -> None:
        self.query()
        await verb(self, *args)

    return bare


class Limits(API):
    """``GET api/limits``: configured and edited ones, and who holds more than they may."""

    @for_admins
    async def get(self) -> None:
        rows: dict[str, LimitRow] = await self.pool.ask("limits")
        self.answer(tables.limits(rows, (await self.feed.fresh()).over))


class OneLimit(API):
    """``PUT`` and ``DELETE api/limits/{scope}``: edit a limit at run time, and give the configured one back."""

    allowed = ("PUT", "DELETE")

    @for_admins
    async def put(self, scope: str) -> None:
        body = read_json(self.body(), ("keys", "why"))
        keys, why = body.get("keys"), _text(body, "why")
        if not isinstance(keys, dict):
            raise _bad("The body needs 'keys', an object with the limit's keys; an empty one limits nothing.")
        try:
            limit = fairness.read_limit(scope, keys)
            found = foresee(await self.feed.refresh(), scope, limit, self.pool.offer)
            row = await self.pool.ask("set_limit", scope, keys, actor=self.known().actor, why=why)
        except ValueError as problem:
            raise _bad(str(problem), "bad-limit") from None
        await self._show(row, touched=tables.touched(found.touched), notes=list(found.notes))

    @for_admins
    async def delete(self, scope: str) -> None:
        why = _text(read_json(self.body(), ("why",)), "why")
        try:
            row = await self.pool.ask("clear_limit", scope, actor=self.known().actor, why=why)
        except ValueError as problem:
            raise _bad(str(problem), "bad-limit") from None
        await self._show(row)

    async def _show(self, row: LimitRow, **more: Any) -> None:
        await self.feed.refresh()
        self.answer({**tables.limit(row, (await self.feed.fresh()).over.get(row.scope, "")), **more})


class PreviewLimit(API):
    """``POST api/limits/{scope}/preview``: what an edit would do, or with no keys the way back.  Changes nothing."""

    allowed = ("POST",)

    @for_admins
    async def post(self, scope: str) -> None:
        keys = read_json(self.body(), ("keys",)).get("keys")
        if not (keys is None or isinstance(keys, dict)):
            raise _bad(
                "'keys' is an object with the limit's keys; without it, the configured limit is meant."
            )
        try:
            found = await foreseen(self, scope, keys)
        except ValueError as problem:
            raise _bad(str(problem), "bad-limit") from None
        self.answer(tables.change(found))


async def foreseen(handler: Base, scope: str, keys: dict[str, Any] | None) -> Change:
    """What these keys would do as the limit of a scope; None: what is configured.  Raises ValueError."""
    if keys is not None:
        limit: Limit | None = fairness.read_limit(scope, keys)
    else:
        fairness.check_scope(scope)
        rows: dict[str, LimitRow] = await handler.pool.ask("limits")
        limit = rows.get(scope, LimitRow(scope)).configured
    snapshot = await handler.feed.refresh()  # nobody decides on an old view
    return foresee(snapshot, scope, limit, handler.pool.offer, back=keys is None)


class Drain(API):
    """``POST api/devices/{id}/drain``; without an id, of the pool: ``POST api/pool/drain``."""

    allowed = ("POST",)

    @for_admins
    async def post(self, device: str | None = None) -> None:
        body = read_json(self.body(), ("at", "why"))
        at, why = body.get("at"), _text(body, "why")
        if at is not None:
            try:
                at = times.moment("'at'", at if isinstance(at, str) else repr(at))
            except ValueError as problem:
                raise _bad(str(problem)) from None
        found = await self.pool.ask("drain", device, at, actor=self.known().actor, why=why)
        await self.feed.refresh()
        self.answer({"devices": list(found)})


class Undrain(API):
    """``POST api/devices/{id}/undrain``; without an id, of the pool: ``POST api/pool/undrain``."""

    allowed = ("POST",)

    @for_admins
    async def post(self, device: str | None = None) -> None:
        why = _text(read_json(self.body(), ("why",)), "why")
        found = await self.pool.ask("undrain", device, actor=self.known().actor, why=why)
        await self.feed.refresh()
        self.answer({"devices": list(found)})


class OneDevice(API):
    """``DELETE api/devices/{id}``: forget a GPU that is lost and that nobody holds."""

    allowed = ("DELETE",)

    @for_admins
    async def delete(self, device: str) -> None:
        why = _text(read_json(self.body(), ("why",)), "why")
        await self.pool.ask("forget_device", device, actor=self.known().actor, why=why)
        await self.feed.refresh()
        self.answer({"devices": [device]})


class Usage(API):
    """``GET api/usage?by=&from=&to=``: one's own GPU-hours, everybody's for an admin."""

    @signed_in
    async def get(self) -> None:
        query = self.query(*ASKED)
        try:
            by, start, end = asked(query)
        except ValueError as problem:
            raise _bad(str(problem)) from None
        self.answer(tables.usage(by, start, end, await entries_of(self, by, start, end)))


ASKED = ("by", "from", "to")
"""What a question about the books may name."""


def asked(query: Mapping[str, str]) -> tuple[str, float, float]:
    """Read a question about the books: by what, from when, to when.  Raises ValueError with a sentence."""
    by = books.check_by(query.get("by", "user"))
    start, end = times.period(query.get("from", ""), query.get("to", ""), time.time())
    books.days(start, end)
    return by, start, end


async def entries_of(handler: Base, by: str, start: float, end: float) -> list[books.Entry]:
    """The person's own books, everybody's for an admin."""
    person = handler.known()
    if not person.admin and person.name is None:  # a service that is no admin has no sessions
        return []
    user = None if person.admin else person.name
    found: list[books.Entry] = await handler.pool.ask("usage", by, start, end, user)
    return found


def routes(api: str) -> list[tuple[Any, ...]]:
    """The addresses of these below ``…/api/``, which is given as a regular expression."""
    return [
        (f"{api}limits", Limits),
        (f"{api}limits/{SCOPE}/preview", PreviewLimit),  # a name that ends so is written with %2F
        (f"{api}limits/{SCOPE}", OneLimit),
        (f"{api}devices/{DEVICE}/drain", Drain),
        (f"{api}devices/{DEVICE}/undrain", Undrain),
        (f"{api}devices/{DEVICE}", OneDevice),
        (f"{api}pool/drain", Drain),
        (f"{api}pool/undrain", Undrain),
        (f"{api}usage", Usage),
    ]


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad(f"{key!r} is {short(repr(value))}; allowed is a text.")
    return value


def _bad(message: str, reason: str = "bad-request") -> Rejected:
    return Rejected(message, reason=reason)
