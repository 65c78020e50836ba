"""Notices as JSON to an address of the admin's: what Slack and its like take, with fields for machines."""

from __future__ import annotations

import json
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from . import NotTaken
from .rules import Notice

MOST_ANSWER = 64 * 1024
"""Bytes of an answer that are taken: nothing in it matters."""

ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""Chats read ``<!channel>`` and ``<https://…|…>`` as more than text."""


def body_of(key: str, notice: Notice) -> dict[str, Any]:
    """What is posted: ``text`` for people, everything else for machines."""
    about = f"{notice.user}: " if notice.user else ""
    text = f"{about}{notice.subject}\n{notice.text}".translate(ESCAPES)
    return {"text": text, "id": key, **notice.facts}


class Webhook:
    """One receiver.  It has a client of its own, so that one that hangs holds nobody else's requests."""

    def __init__(self, url: str, timeout: float = 20.0) -> None:
        self._url, self._timeout = url, timeout
        self._client: AsyncHTTPClient = AsyncHTTPClient(force_instance=True, max_body_size=MOST_ANSWER)

    async def send(self, key: str, notice: Notice) -> None:
        """Post a notice; any 2xx takes it.  Raises NotTaken within the timeout, never naming the address."""
        request = HTTPRequest(
            self._url,
            method="POST",
            headers={"Content-Type": "application/json"},
            body=json.dumps(body_of(key, notice)),
            connect_timeout=self._timeout,
            request_timeout=self._timeout,
            follow_redirects=False,
        )
        try:
            await self._client.fetch(request)
        except HTTPClientError as problem:
            said = "did not answer in time" if problem.code == 599 else f"answered {problem.code}"
            raise NotTaken(f"the webhook's receiver {said}") from None
        except OSError as problem:
            raise NotTaken(
                f"the webhook's receiver cannot be reached: {problem.strerror or 'no answer'}"
            ) from None
        except ValueError:
            raise NotTaken("the webhook's receiver answers with something that is not HTTP") from None

    def close(self) -> None:
        """Close its connections."""
        self._client.close()
