"""The few calls of the hub's REST API that the service needs.  It stops servers only through these."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from ..errors import Unavailable
from ..signals import moment

REQUEST_TIMEOUT = 20.0
"""Seconds for one answer of the hub; it holds a DELETE for up to ten."""


@dataclass(frozen=True, slots=True)
class Server:
    """What the hub says of a server that it knows as active."""

    ready: bool
    pending: str
    started: float | None
    """Seconds since 1970; the hub sets it when the start begins."""
    url: str = ""
    """Where people find it: its path, or an address that ends with it."""
    last_activity: float | None = None
    """Seconds since 1970."""


class HubClient(Protocol):
    """What a sweep asks of the hub."""

    async def server(self, user: str, name: str) -> Server | None: ...

    async def stop(self, user: str, name: str) -> None: ...


class Hub:
    """A hub, by its REST API.  Scopes: ``read:servers`` for :meth:`server`, ``delete:servers`` for :meth:`stop`."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._client = AsyncHTTPClient()

    async def server(self, user: str, name: str) -> Server | None:
        """The server if the hub knows it as active; None when it does not.  Raises Unavailable."""
        answer = await self._call("GET", f"users/{quote(user, safe='')}")
        if answer is None:
            return None
        servers: dict[str, dict[str, Any]] = answer.get("servers") or {}
        model = servers.get(name)
        if model is None or model.get("stopped"):
            return None
        started = model.get("started")
        return Server(
            ready=bool(model.get("ready")),
            pending=model.get("pending") or "",
            started=_seconds(started) if started else None,
            url=str(model.get("url") or ""),
            last_activity=moment(model.get("last_activity")),
        )

    async def stop(self, user: str, name: str) -> None:
        """Ask the hub to stop a server, or to cancel its start.  Repeatable.  Raises Unavailable."""
        path = f"users/{quote(user, safe='')}/server"
        if name:
            path = f"users/{quote(user, safe='')}/servers/{quote(name, safe='')}"
        await self._call("DELETE", path)

    async def _call(self, method: str, path: str) -> dict[str, Any] | None:
        request = HTTPRequest(
            f"{self._url}/{path}",
            method=method,
            headers={"Authorization": f"token {self._token}"},
            request_timeout=REQUEST_TIMEOUT,
        )
        try:
            answer = await self._client.fetch(request)
        except HTTPClientError as problem:
            if problem.code in (400, 404):  # 400: already stopping; the next sweep looks again
                return None
            said = f"answers {problem.code} to {method} {path}"
            raise Unavailable(f"The hub {said}.", reason="hub") from problem
        except OSError as problem:
            raise Unavailable(f"The hub does not answer: {problem}.", reason="hub") from problem
        if not answer.body:
            return {}
        return dict(json.loads(answer.body))


def _seconds(text: object) -> float:
    """An ISO 8601 time of the hub, which is UTC also where it does not say so."""
    found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
