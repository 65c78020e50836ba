"""A mail server and a webhook's receiver on loopback, real ones, that a test lets fail, hang and recover."""

from __future__ import annotations

import asyncio
import contextlib
import email
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


class Mailbox:
    """What came in, and what the server answers."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.recipients: list[list[str]] = []
        self.answer = "250 OK"
        self.rcpt = ""
        self.hangs = threading.Event()
        self.asked = 0
        self.port = 0

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.asked += 1
        if self.rcpt:
            return self.rcpt
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        while self.hangs.is_set():  # noqa: ASYNC110 - a test's thread sets it
            await asyncio.sleep(0.02)
        if self.answer.startswith("2"):
            assert isinstance(envelope.content, bytes)
            self.messages.append(email.message_from_bytes(envelope.content, policy=default))
            self.recipients.append(envelope.rcpt_tos)
        return self.answer


@contextmanager
def mail_server(**settings: Any) -> Iterator[Mailbox]:
    """A mail server on a free port; ``settings`` are those of aiosmtpd's controller."""
    box = Mailbox()
    controller = Controller(box, hostname="127.0.0.1", port=0, **settings)
    # It opens its port itself, and says which only afterwards.
    controller.port = _free_port()
    controller.start()
    box.port = controller.port
    try:
        yield box
    finally:
        box.hangs.clear()
        controller.stop()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Hook:
    """What was posted, and what the receiver answers."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.status = 200
        self.answer = b""
        self.length: int | None = None  # that the answer says to have
        self.paths: list[str] = []
        self.hangs = threading.Event()
        self.asked = 0
        self.url = ""


@contextmanager
def webhook() -> Iterator[Hook]:
    """A receiver on a free port."""
    hook = Hook()
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.asked += 1
            hook.paths.append(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            while hook.hangs.is_set() and not over.wait(0.02):
                pass
            if hook.status < 300:
                hook.bodies.append(json.loads(body))
            self.send_response(hook.status)
            if hook.status == 302:
                self.send_header("Location", f"{hook.url}elsewhere")
            length = len(hook.answer) if hook.length is None else hook.length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            with contextlib.suppress(OSError):  # who has read enough goes
                self.wfile.write(hook.answer)
                if length > len(hook.answer):
                    self.wfile.flush()
                    over.wait(20)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook.url = f"http://127.0.0.1:{server.server_port}/hooks/secret"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        over.set()
        server.shutdown()
        server.server_close()
