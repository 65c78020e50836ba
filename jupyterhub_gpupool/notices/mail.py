"""Notices by mail: one message to one person, over SMTP, with an end to every wait."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate

import aiosmtplib

from . import NotTaken
from .rules import Notice

PERMANENT = range(500, 600)


@dataclass(frozen=True, slots=True)
class Server:
    """Where mail is handed in.  ``security`` is ``starttls``, ``tls`` or ``none``."""

    host: str
    port: int
    security: str
    sender: str
    user: str = ""
    password: str = ""
    timeout: float = 20.0

    def __repr__(self) -> str:
        return f"Server({self.host}:{self.port})"  # whatever logs it does not log the password


def message_of(key: str, notice: Notice, sender: str, address: str) -> EmailMessage:
    """Write a notice as a message; ``key`` makes its id, so that a second copy can be told from a second notice.

    Raises ValueError for an address or subject that would make a header of its own.
    """
    message = EmailMessage()
    message["From"] = sender
    message["To"] = address
    message["Subject"] = notice.subject
    message["Date"] = formatdate(usegmt=True)
    message["Message-ID"] = f"<{key}@{sender.rpartition('@')[2].rstrip('>') or 'gpupool'}>"
    message["Auto-Submitted"] = "auto-generated"
    message["X-GPUPool-Event"] = notice.event
    message.set_content(notice.text + "\n")
    return message


async def send(server: Server, key: str, notice: Notice, addresses: tuple[str, ...]) -> None:
    """Hand a message in.  Raises NotTaken, within the server's ``timeout``."""
    try:
        async with asyncio.timeout(server.timeout):
            await _send(server, message_of(key, notice, server.sender, ", ".join(addresses)), addresses)
    except TimeoutError:
        raise NotTaken(f"the mail server did not answer within {server.timeout:g} s") from None
    except aiosmtplib.SMTPRecipientsRefused as refused:
        codes = [one.code for one in refused.recipients]
        said = "; ".join(f"{one.code} {one.message}" for one in refused.recipients)
        final = all(code in PERMANENT for code in codes)
        raise NotTaken(f"the mail server refuses the address: {said}", final=final) from None
    except (aiosmtplib.SMTPException, OSError) as problem:
        raise NotTaken(f"the mail server did not take it: {problem}") from None
    except ValueError as problem:
        raise NotTaken(f"no message can be made of it: {problem}", final=True) from None


async def _send(server: Server, message: EmailMessage, addresses: tuple[str, ...]) -> None:
    await aiosmtplib.send(
        message,
        sender=message["From"].addresses[0].addr_spec,
        recipients=list(addresses),
        hostname=server.host,
        port=server.port,
        username=server.user or None,
        password=server.password or None,
        use_tls=server.security == "tls",
        start_tls=server.security == "starttls",
        timeout=server.timeout,
    )
