"""The configuration of notices: ``c.GPUPoolNotices``."""

from __future__ import annotations

import os
from email.errors import MessageError
from email.headerregistry import Address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from traitlets import (
    Bool,
    Callable,
    CaselessStrEnum,
    Dict,
    Float,
    Integer,
    List,
    TraitError,
    Unicode,
    Union,
    default,
    validate,
)
from traitlets.config import LoggingConfigurable

from . import functions
from .mail import Server
from .rules import CHANNELS, DEVICE, EVENTS, MAIL, WARNING, WEBHOOK, AddressOf, Rules, check_address
from .webhook import PERSON

MAIL_PASSWORD, WEBHOOK_URL = "GPUPOOL_MAIL_PASSWORD", "GPUPOOL_WEBHOOK_URL"
ENVIRONMENT = (MAIL_PASSWORD, WEBHOOK_URL)
"""Secrets that the hub's environment may hold; ``configure`` hands them to the service alone."""

PORTS = {"starttls": 587, "tls": 465, "none": 25}


class GPUPoolNotices(LoggingConfigurable):
    """Mail and webhook: who is told what. Without a server and a receiver only the pages tell."""

    mail_server = Unicode(
        help="""Host of the mail server that takes the pool's messages. Empty: no mail is sent.
        Example: ``"smtp.lab.example"``.""",
    ).tag(config=True)

    mail_port = Integer(
        0,
        min=0,
        max=65535,
        help="""Port of the mail server. 0: the usual one of ``mail_security``: 587, 465 or 25. Example: ``2525``.""",
    ).tag(config=True)

    mail_security = CaselessStrEnum(
        list(PORTS),
        "starttls",
        help="""``starttls``: the connection must become encrypted before anything is said; ``tls``: it is from the
        beginning; ``none``: it never is, which allows no login.""",
    ).tag(config=True)

    mail_user = Unicode(
        help="""Login at the mail server. Empty: no login. Example: ``"gpupool"``.""",
    ).tag(config=True)

    mail_password_file = Unicode(
        help="""File whose first line is the password of ``mail_user``; only the service's account should be able
        to read it. Empty: the hub's environment variable ``GPUPOOL_MAIL_PASSWORD``. Never logged. Example:
        ``"/etc/gpupool/mail-password"``.""",
    ).tag(config=True)

    mail_from = Unicode(
        help="""Sender of the messages; needed with ``mail_server``.
        Example: ``"GPU pool <gpupool@lab.example>"``.""",
    ).tag(config=True)

    mail_address = Union(
        [Unicode(), Callable()],
        default_value="",
        help="""Where a person gets their mail; needed with ``mail_server``. Either a template in which ``{user}`` is
        the hub's user name. Or a function of a module that the service can import, as itself or as
        ``"module:function"``: it takes the user name and returns the address, and ``None`` for somebody who has
        none. It runs in the service, for each message, and may take ``timeout`` seconds; where it raises, the
        message is tried again later. Who has no address, because the function returns None or because of characters
        in the name, is not mailed, and a warning does not count as delivered by that. An address that a person has
        chosen themself (``mail_domains``) goes before. Example: ``"{user}@lab.example"``; ``"{user}"`` where the
        names are addresses; ``"lab_people:address_of"``.""",
    ).tag(config=True)

    mail_domains = List(
        Unicode(),
        help="""Domains in which people may choose a mail address of their own. Empty: they may not; ``["*"]``: any,
        which lets them have the pool's mail sent to foreign people. Example: ``["lab.example"]``.""",
    ).tag(config=True)

    admins = List(
        Unicode(),
        help="""Mail addresses of those who run the pool, told of GPUs that are not well. Example:
        ``["gpu-admins@lab.example"]``.""",
    ).tag(config=True)

    webhook_url = Unicode(
        help="""Address to which notices are posted as JSON: ``text`` as Slack and Mattermost take it, beside it
        ``id``, ``event``, ``user``, ``lease``, ``reason`` … for machines. Whoever knows such an address can write
        there, so ``webhook_url_file`` or the hub's environment variable ``GPUPOOL_WEBHOOK_URL`` are better places.
        With ``{user}`` behind the host, each person has an address of their own, in which it is their user name.
        Empty: none. Example: ``"https://chat.lab.example/hooks/…"``; ``"https://ntfy.lab.example/gpupool-{user}"``.""",
    ).tag(config=True)

    webhook_counts = Bool(
        False,
        help="""Whether a warning counts as delivered to its person, and its countdown begins, once the one receiver
        of the whole pool has taken it. That says nothing of whether this person ever sees it; an address with
        ``{user}`` is a person's own, and always counts. Example: ``True`` where a chat-bot behind the address
        writes to each person.""",
    ).tag(config=True)

    webhook_url_file = Unicode(
        help="""File whose first line is ``webhook_url``. Example: ``"/etc/gpupool/webhook"``.""",
    ).tag(config=True)

    events = Dict(
        help="""Channels (``"mail"``, ``"webhook"``) by event: ``warning`` (a session will be stopped), ``reclaimed``
        (it was), ``started`` (after waiting), ``budget`` (80 % of the GPU-hours are used), ``unwell`` (the GPU of
        a session is sick, lost or out of its reach), ``device`` (a GPU is not well or not clean; for ``admins``).
        People choose among these on their page. Example: ``{"warning": ["mail"]}``.""",
    ).tag(config=True)

    mandatory = List(
        Unicode(),
        [WARNING],
        help="""Events that people cannot choose not to be told. Whoever hears of no warning keeps an idle GPU until
        ``GPUPoolService.undelivered_max``. Example: ``[]``.""",
    ).tag(config=True)

    started_after = Float(
        300,
        min=0,
        help="""Seconds that somebody must have waited in the queue to be told that the session has started.
        0: whenever one starts. Example: ``60``.""",
    ).tag(config=True)

    per_hour = Integer(
        20,
        min=0,
        help="""Notices to one person by one channel in an hour; further ones wait. 0: no bound.""",
    ).tag(config=True)

    retry = Float(
        30,
        help="""Seconds after which a notice that was not taken is tried again; twice as long each time, up to an
        hour. A warning is tried for as long as it is in force, others ten times. Must be positive.""",
    ).tag(config=True)

    timeout = Float(
        20,
        help="""Seconds that a mail server or a receiver may take for one notice. Must be positive.""",
    ).tag(config=True)

    most_waiting = Integer(
        1000,
        min=1,
        help="""Notices that may wait to be told; further ones are dropped, and the lease's page says so.""",
    ).tag(config=True)

    public_url = Unicode(
        help="""Address of the hub as people open it, for the links in notices. Empty: the hub's own
        ``JupyterHub.public_url``, and no links without that. With ``JupyterHub.subdomain_host`` the service has a
        host of its own, which the hub tells it, and this is not needed. Example: ``"https://hub.lab.example"``.""",
    ).tag(config=True)

    @default("events")
    def _default_events(self) -> dict[str, list[str]]:
        return {event: list(CHANNELS) for event in (*EVENTS, DEVICE)}

    @validate("events")
    def _valid_events(self, proposal: Any) -> dict[str, list[str]]:
        allowed = (*EVENTS, DEVICE)
        for event, channels in proposal.value.items():
            if event not in allowed:
                raise TraitError(
                    f"GPUPoolNotices.events names {event!r:.60}; allowed are {', '.join(allowed)}."
                )
            if not isinstance(channels, list | tuple) or not set(map(str, channels)) <= set(CHANNELS):
                raise TraitError(
                    f"GPUPoolNotices.events[{event!r}] is {channels!r:.60}; allowed is a list of "
                    f"{' and '.join(map(repr, CHANNELS))}."
                )
        return dict(proposal.value)

    @validate("mandatory")
    def _valid_mandatory(self, proposal: Any) -> list[str]:
        wrong = [event for event in proposal.value if event not in EVENTS]
        if wrong:
            raise TraitError(
                f"GPUPoolNotices.mandatory names {wrong[0]!r:.60}; allowed are {', '.join(EVENTS)}."
            )
        return list(proposal.value)

    @validate("retry", "timeout")
    def _positive(self, proposal: Any) -> float:
        if not 0 < proposal.value <= 3600:
            raise TraitError(
                f"GPUPoolNotices.{proposal.trait.name} is {proposal.value!r}; allowed are seconds above 0, "
                "up to 3600."
            )
        return float(proposal.value)

    @validate("mail_domains")
    def _valid_domains(self, proposal: Any) -> list[str]:
        return [str(domain).lower() for domain in proposal.value]

    def check(self) -> None:
        """Check what only makes sense together.  Raises TraitError with a sentence."""
        if self.mail_server:
            self._check_mail()
        elif callable(self.mail_address):
            self.known_address()
        if self.webhook_url_file or self.webhook_url:
            self.webhook()

    def _check_mail(self) -> None:
        try:
            Address(addr_spec=self._sender_spec())
        except (MessageError, ValueError, IndexError):
            raise TraitError(
                f"GPUPoolNotices.mail_from is {self.mail_from!r:.80}; with mail_server it must be an address such as "
                "'GPU pool <gpupool@lab.example>'."
            ) from None
        self.known_address()
        if self.mail_user and self.mail_security == "none":
            raise TraitError(
                "GPUPoolNotices.mail_user needs mail_security 'starttls' or 'tls': a password is not sent "
                "in the clear."
            )
        self.server()
        for address in self.admins:
            try:
                check_address(address, ("*",))
            except ValueError as problem:
                raise TraitError(f"GPUPoolNotices.admins: {problem}") from None

    def _sender_spec(self) -> str:
        from .mail import message_of
        from .rules import Notice

        return str(message_of("key", Notice(), self.mail_from, self.mail_from)["From"].addresses[0].addr_spec)

    def known_address(self) -> str | AddressOf:
        """The template or the function that makes a person's address.  Raises TraitError for what is neither."""
        known = self.mail_address
        if isinstance(known, str) and PERSON in known:
            return known
        try:
            return functions.named(known) if isinstance(known, str) else functions.checked(known)
        except ValueError as problem:
            raise TraitError(
                f"GPUPoolNotices.mail_address is {known!r:.80}; with mail_server it must hold '{{user}}', such as "
                f"'{{user}}@lab.example', or be a function that the service can import: {problem}."
            ) from None

    def server(self) -> Server | None:
        """The mail server; None: no mail.  Raises TraitError when the password's file cannot be read."""
        if not self.mail_server:
            return None
        password = ""
        if self.mail_user:
            password = self._secret("mail_password_file") or os.environ.get(MAIL_PASSWORD, "")
        return Server(
            host=self.mail_server,
            port=self.mail_port or PORTS[self.mail_security],
            security=self.mail_security,
            sender=self.mail_from,
            user=self.mail_user,
            password=password,
            timeout=self.timeout,
        )

    def webhook(self) -> str:
        """The receiver's address; empty: none.  Raises TraitError for what is no such address."""
        url = self._secret("webhook_url_file") or self.webhook_url or os.environ.get(WEBHOOK_URL, "")
        try:
            parts = urlsplit(url)
            good = not url or (parts.scheme in ("http", "https") and bool(parts.hostname))
            good = good and PERSON not in parts.netloc
        except ValueError:
            good = False
        if not good:  # its value is a secret
            raise TraitError(
                "GPUPoolNotices.webhook_url is no address that begins with https:// or http:// and has '{user}' "
                "behind its host, if at all."
            )
        return url

    def _secret(self, name: str) -> str:
        path = getattr(self, name)
        if not path:
            return ""
        try:
            return (Path(path).read_text(encoding="utf-8").splitlines() or [""])[0].strip()
        except (OSError, UnicodeDecodeError) as problem:
            said = getattr(problem, "strerror", None) or "it is not text"
            raise TraitError(f"GPUPoolNotices.{name}: {path} cannot be read: {said}.") from None

    def rules(self, **more: Any) -> Rules:
        """What is told by the channels that there are; ``more`` are the other fields of :class:`Rules`."""
        url = self.webhook()
        own = PERSON in url  # each person has a receiver of their own, and those who run the pool have none
        there = {MAIL: bool(self.mail_server), WEBHOOK: bool(url)}
        for_admins = {MAIL: bool(self.admins), WEBHOOK: not own}
        events = {
            event: tuple(c for c in channels if there[c] and (event != DEVICE or for_admins[c]))
            for event, channels in self.events.items()
        }
        counted = (MAIL, WEBHOOK) if own or self.webhook_counts else (MAIL,)
        return Rules(
            events=events,
            mandatory=tuple(self.mandatory),
            started_after=self.started_after,
            counted=counted,
            **more,
        )
