"""What all handlers of the service have in common: who asks, what a body may be, how an error is answered."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from jupyterhub.services.auth import HubOAuthenticated, UserNotAllowed
from tornado import web
from tornado.log import app_log

from ..errors import GPUPoolError, LeaseConflict, Rejected, Unavailable
from ..model import Lease
from ..pool import GPUPool
from . import shapes, telling
from .shapes import Person
from .stream import Feed

MAX_BODY = 64 * 1024
"""Bytes of a request's body that are looked at; nothing that the service takes is larger."""

DRAINED = 64 * 1024 * 1024
"""Bytes of a body that are read and dropped, so that its sender gets a sentence and no broken connection."""

RETRY_AFTER = 5
"""Seconds after which asking again may help, for the header of that name."""

LEASE = r"([0-9A-Za-z_-]{1,64})"
"""What the id of a lease looks like in an address.  Anything else is not one, and gets the same answer."""

UNKNOWN_LEASE = "There is no lease of yours with this id."

SENTENCES = {
    400: ("bad-request", "This request cannot be read: its address or one of its parameters is malformed."),
    403: ("forbidden", "This is not allowed to you."),
    404: ("not-found", "There is nothing at this address."),
    405: ("method-not-allowed", "{method} is not possible at this address."),
    500: ("internal", "The service has failed; its log says why. Sessions are not touched by this."),
}

H = TypeVar("H", bound="Base")


def signed_in(verb: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Let a verb of a handler run only when ``self.person`` is known, and turn everybody else away."""

    @functools.wraps(verb)
    async def guarded(self: Base, *args: str) -> None:
        person = await self.identify()
        if person is None:
            self.turn_away()
            return
        self.person = person
        await verb(self, *args)

    return guarded


@web.stream_request_body
class Base(HubOAuthenticated, web.RequestHandler):
    """A handler that knows the hub's users.

    Bodies are taken in pieces, so that one that is too large is answered and not just cut off; who asks is
    found out after the body has come, because the ``_xsrf`` of a form is in it.
    """

    allowed: tuple[str, ...] = ("GET",)
    person: Person | None = None

    def initialize(self) -> None:
        self._body = bytearray()
        self.body_too_long = False

    def prepare(self) -> None:
        """Raise the limit of this connection before the body comes."""
        self.request.connection.set_max_body_size(DRAINED)  # type: ignore[union-attr]

    def data_received(self, chunk: bytes) -> None:
        """Keep the body as far as it may be long."""
        self.body_too_long = self.body_too_long or len(self._body) + len(chunk) > MAX_BODY
        if not self.body_too_long:
            self._body += chunk

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.clear_header("Server")

    # --- the application's parts -------------------------------------------------------------------

    @property
    def pool(self) -> GPUPool:
        pool: GPUPool = self.settings["pool"]
        return pool

    @property
    def feed(self) -> Feed:
        feed: Feed = self.settings["feed"]
        return feed

    # --- who asks ----------------------------------------------------------------------------------

    async def identify(self) -> Person | None:
        """Ask the hub, or its cached answer, who this is; None for nobody.

        Raises Rejected for somebody without the right to use the service, Unavailable when the hub errs.
        """
        self.current_user = None  # else tornado would ask the hub a second time, and hold the loop for it
        try:
            model = await self.hub_auth.get_user(self, sync=False)
            model = self.check_hub_user(model) if model else None
        except UserNotAllowed:
            message = (
                "You are known to the hub, but have no right to use this service: "
                f"one of the scopes {', '.join(sorted(self.hub_scopes or ()))} is needed."
            )
            raise Rejected(message, reason="forbidden", status=403) from None
        except web.HTTPError as problem:
            message = "The hub cannot be asked who you are; try again in a moment."
            raise Unavailable(message, reason="hub") from problem
        if not model:
            return None
        self.current_user = model
        user = model.get("kind", "user") == "user"
        return Person(
            name=model["name"] if user else None,
            actor=model["name"] if user else f"service {model['name']}",
            groups=tuple(model.get("groups") or ()),
            admin=bool(model.get("admin")),
        )

    def turn_away(self) -> None:
        """Answer somebody who is not known."""
        raise Rejected(
            "Nobody is logged in with this request. Log in through the hub and send the page's _xsrf token, "
            "or send a hub token in the header 'Authorization: token …'.",
            reason="not-authenticated",
            status=403,
        )

    def known(self) -> Person:
        """Who asks, in a verb that is :func:`signed_in`."""
        assert self.person is not None
        return self.person

    # --- leases ------------------------------------------------------------------------------------

    async def lease_of_person(self, key: str) -> Lease:
        """The lease, if it is the person's own or the person is an admin; else there is none."""
        person = self.known()
        lease: Lease | None = await self.pool.ask("lease", key)
        if lease is not None and not person.admin:
            owner = await self.pool.ask("owner_of", lease.id)
            if owner is None or not person.is_called(owner):
                lease = None
        if lease is None:
            raise Rejected(UNKNOWN_LEASE, reason="not-found", status=404)
        return lease

    async def own_lease(self, key: str) -> Lease:
        """The lease, if it is the person's own; else there is none, not even for an admin."""
        lease = await self.lease_of_person(key)
        owner = await self.pool.ask("owner_of", lease.id)
        if owner is None or not self.known().is_called(owner):
            raise Rejected(UNKNOWN_LEASE, reason="not-found", status=404)
        return lease

    async def whole_lease(self, key: str) -> shapes.Shape:
        """A lease of the person with all that was told and done, as ``api/leases/{id}`` and its page show it."""
        lease = await self.lease_of_person(key)
        shape = shapes.one(lease, await self.feed.fresh())
        ending = await self.pool.ask("ending_of", lease.id)
        again = telling.again(lease)
        return {
            **shape,
            "log": await self.pool.ask("log_of", lease.id) or None,
            "deliveries": telling.told(await self.pool.ask("deliveries_of", lease.id)),
            "saved": telling.saved(ending),
            "script": telling.script(ending, lease),
            "again": again and f"{self.hub_auth.hub_host}{self.hub_auth.hub_prefix}{again}",
        }

    async def seen(self, lease: Lease, warning: str, by: str) -> None:
        """Write that a warning has reached its person, who has it before their eyes."""
        if await self.pool.ask("deliver", lease.id, warning, by, self.known().actor):
            self.settings["count_notice"](by, "delivered")
            await self.feed.refresh()

    async def extend(self, lease: Lease) -> None:
        """Extend a lease in the person's name."""
        await self.pool.ask("extend", lease.id, self.known().actor)
        await self.feed.refresh()

    async def release(self, lease: Lease) -> None:
        """End a lease in the person's name."""
        if lease.closed_at is not None:
            raise Rejected("This lease is closed already.", reason="closed", status=409)
        await self.settings["release"](lease, self.known().actor)
        await self.feed.refresh()

    # --- what comes in -----------------------------------------------------------------------------

    def query(self, *names: str) -> dict[str, str]:
        """The parameters of the address, each at most once and none but these."""
        found = {}
        for name, values in self.request.query_arguments.items():
            if name == "_xsrf":
                continue
            if name not in names:
                raise _bad(f"The address has the parameter {short(name)}; allowed are: {listing(names)}.")
            if len(values) > 1:
                raise _bad(f"The address has the parameter {name!r} {len(values)} times; once is allowed.")
            try:
                found[name] = values[0].decode()
            except UnicodeDecodeError:
                raise _bad(f"The parameter {name!r} is not text in UTF-8.") from None
        return found

    def body(self) -> bytes:
        """The body.  Raises Rejected when it was longer than the service takes."""
        if self.body_too_long:
            message = f"The body is too long: at most {MAX_BODY} bytes are allowed."
            raise Rejected(message, reason="body-too-long")
        return bytes(self._body)

    def read_form(self) -> list[tuple[str, str]]:
        """The fields of a form, and its ``_xsrf`` to where the hub's check looks for it."""
        try:
            fields = parse_qsl(self.body().decode(), keep_blank_values=True, max_num_fields=20)
        except ValueError:
            raise _bad("The form cannot be read.") from None
        for name, value in fields:
            if name == "_xsrf":
                self.request.arguments.setdefault("_xsrf", []).append(value.encode())
        return fields

    # --- errors ------------------------------------------------------------------------------------

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with the sentence of our own errors, and with none of anybody else's words."""
        problem = (kwargs.get("exc_info") or (None, None, None))[1]
        if isinstance(problem, LeaseConflict):  # its own words are for the log
            status, reason = problem.status, problem.reason
            message = "This session has just changed. Look at it again, and repeat what you wanted."
        elif isinstance(problem, GPUPoolError):
            status, reason, message = problem.status, problem.reason, problem.message
        else:
            status = status_code if status_code in SENTENCES else (400 if status_code < 500 else 500)
            reason, message = SENTENCES[status]
            message = message.format(method=self.request.method)
        if status == 405:
            message += f" Possible: {', '.join(self.allowed)}."
            self.set_header("Allow", ", ".join(self.allowed))
        if isinstance(problem, Unavailable):
            self.set_header("Retry-After", str(RETRY_AFTER))
        self.set_status(status)
        self.answer_error(status, reason, message)

    def answer_error(self, status: int, reason: str, message: str) -> None:
        """Write an error; as JSON unless the handler is a page."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(shapes.error(status, reason, message)))

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log our own errors as a line: they are answers, not failures of the service."""
        if isinstance(value, GPUPoolError):
            app_log.info("%s %s: %s", self.request.method, value.status, value.reason)
        else:
            super().log_exception(typ, value, tb)


class API(Base):
    """A handler that answers in JSON."""

    def answer(self, shape: shapes.Shape, status: int = 200) -> None:
        """Write a shape."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps(shape))


def read_json(body: bytes, allowed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a JSON object with no keys but these, each once.  Nothing at all counts as an empty one.

    Raises Rejected with a sentence that names what is wrong and what is allowed.
    """
    if not body.strip():
        return {}
    try:
        found = json.loads(body, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise _bad("The body is nested too deeply; a flat JSON object is allowed.") from None
    except ValueError:
        raise _bad("The body is not JSON; allowed are no body or a JSON object.") from None
    if not isinstance(found, dict):
        raise _bad("The body is JSON but no object; allowed are no body or a JSON object.")
    for key in found:
        if key not in allowed:
            raise _bad(f"The body has the key {short(key)}; allowed are: {listing(allowed)}.")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise _bad(f"The body has the key {short(twice)} more than once; once is allowed.")
    return found


def _no_constant(name: str) -> Any:
    raise _bad(f"The body has {name}, which is no number.")


def whole_number(name: str, text: str, most: int = 2**53) -> int:
    """A parameter that is a whole number from 0 on."""
    if text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= most:
        return int(text)
    raise _bad(f"The parameter {name!r} is {short(text)}; allowed are whole numbers from 0 to {most}.")


def seconds_since_1970(name: str, text: str) -> float:
    """A parameter that is a time in seconds since 1970."""
    whole, _, part = text.partition(".")
    digits = whole + part
    if digits.isascii() and digits.isdigit() and whole and len(whole) <= 11 and len(part) <= 9:
        value = float(text)
        if math.isfinite(value):
            return value
    allowed = "seconds since 1970, as 'next' gives them"
    raise _bad(f"The parameter {name!r} is {short(text)}; allowed are {allowed}.")


def short(text: str) -> str:
    """Somebody's text, safe to be repeated in a sentence: quoted, escaped and cut."""
    shown = ascii(text)
    return shown if len(shown) <= 60 else shown[:56] + "…'"


def listing(names: tuple[str, ...]) -> str:
    """Names for a sentence."""
    return ", ".join(repr(name) for name in names) or "none"


def _bad(message: str) -> Rejected:
    return Rejected(message, reason="bad-request")
