"""Notices as JSON to an address of the admin's: what Slack and its like take, with fields for machines."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from . import NotTaken
from .rules import Notice

MOST_ANSWER = 16 * 1024
"""Bytes of an answer that are read: nothing in it matters."""

PERSON = "{user}"
"""Stands in an address for the person's name: each has a receiver of their own."""

ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""Slack reads ``<!channel>`` and ``<https://…|…>`` as more than text, and Mattermost reads entities as Slack does."""

GAP = "\u200b"
"""Nothing to be seen, and the end of every name and address."""

LIVELY = re.compile(
    r"@(?=\w)"  # @channel, @here, @all, @everyone, somebody's name
    r"|:(?=//)|(?<=mailto):|(?<=[\w-])\.(?=[^\W\d])"  # https://…, lab.example, also without a scheme
    r"|\](?=[(\[:])"  # [text](…), [text][…], [name]: …
    r"|(?<!\w)~(?=\w)"  # a channel's name
)
"""Ends of what Slack or Mattermost make a mention or a link of in plain text."""


def _tame(text: str, link: object) -> str:
    """Text that no chat makes more of; only the pool's own link at the end of a line stays one."""
    lines = []
    for one in text.split("\n"):
        own = f" {link}" if link and one.endswith(f" {link}") else ""
        lines.append(LIVELY.sub(rf"\g<0>{GAP}", one.removesuffix(own)) + own)
    return "\n".join(lines).translate(ESCAPES)


def body_of(key: str, notice: Notice) -> dict[str, Any]:
    """What is posted: ``text`` for people, everything else for machines."""
    about = f"{notice.user}: " if notice.user else ""
    text = f"{about}{notice.subject}\n{notice.text}"
    return {"text": _tame(text, notice.facts.get("url")), "id": key, **notice.facts}


class Webhook:
    """A receiver.  It has a client of its own, so that one that hangs holds nobody else's requests."""

    def __init__(self, url: str, timeout: float = 20.0) -> None:
        self._url, self._timeout = url, timeout
        self._client: AsyncHTTPClient = AsyncHTTPClient(force_instance=True, max_body_size=MOST_ANSWER)

    async def send(self, key: str, notice: Notice) -> None:
        """Post a notice; any 2xx takes it, whatever else is answered.

        Raises NotTaken within the timeout, never naming the address.
        """
        answered: list[int] = []

        def head(line: str) -> None:
            if line.startswith("HTTP/"):
                answered.append(int(line.split()[1]))

        if PERSON in self._url and not notice.user.strip("."):  # ".." would be another address on its way
            raise NotTaken(f"no webhook's address can be made of the name {notice.user!a}", final=True)
        request = HTTPRequest(
            self._url.replace(PERSON, quote(notice.user, safe="")),
            method="POST",
            headers={"Content-Type": "application/json"},
            body=json.dumps(body_of(key, notice)),
            connect_timeout=self._timeout,
            request_timeout=self._timeout,
            follow_redirects=False,
            header_callback=head,
        )
        try:
            await self._client.fetch(request)
        except HTTPClientError as problem:
            # 599: the rest of the answer is too long or does not come. The last status is the answer's.
            status = answered[-1] if answered and answered[-1] >= 200 else problem.code
            if 200 <= status < 300:
                return
            said = "did not answer in time" if status == 599 else f"answered {status}"
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
