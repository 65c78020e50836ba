"""Spawners without a session of their own, so that a figure holds the hub's and the pool's work alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any

from jupyterhub.proxy import Proxy
from jupyterhub.spawner import Spawner
from traitlets import Unicode

from jupyterhub_gpupool.model import Lease, Presence, Session
from jupyterhub_gpupool.sessions import Foreign, Sessions
from jupyterhub_gpupool.spawners.base import GPUPoolMixin


class Null(Spawner):
    """Returns a server that runs already: a session that costs nothing."""

    address = Unicode("http://127.0.0.1:1", help="Address of the server that everybody gets.").tag(
        config=True
    )
    running = False

    async def start(self) -> str:
        self.running = True
        return self.address

    async def stop(self, now: bool = False) -> None:
        self.running = False

    async def poll(self) -> int | None:
        return None if self.running else 0


class Waiting(Spawner):
    """Waits in ``start()`` for ever: what a hub with 300 spawns under way costs by itself."""

    async def start(self) -> None:
        await asyncio.Event().wait()

    async def stop(self, now: bool = False) -> None:
        """Nothing was started."""

    async def poll(self) -> int | None:
        return 0


class NullSessions:
    """A backend that always answers: what was asked for is there."""

    trusted = False

    def look(self, names: Collection[str]) -> dict[str, Presence]:
        return dict.fromkeys(names, Presence.PRESENT)

    def list(self) -> tuple[Session, ...] | None:
        return ()

    def remove(self, name: str, *, timeout: float, keep: Callable[[str], None] | None = None) -> bool:
        return True

    def differs(self, lease: Lease) -> tuple[str, ...] | None:
        return ()

    def foreign(self) -> tuple[Foreign, ...]:
        return ()


class PooledNull(GPUPoolMixin, Null):
    """The same with the pool in front."""

    @cached_property
    def _sessions(self) -> Sessions:
        return NullSessions()

    async def _end(self, lease: Lease, now: bool) -> bool:
        await Null.stop(self, now)
        return True

    async def _attach(self, session: Session) -> Any:
        self.running = True


class NoProxy(Proxy):
    """Keeps the routes and serves none: the hub is asked at its own address."""

    should_start = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._routes: dict[str, dict[str, Any]] = {}

    async def add_route(self, routespec: str, target: str, data: Any) -> None:
        self._routes[routespec] = {"routespec": routespec, "target": target, "data": data}

    async def delete_route(self, routespec: str) -> None:
        self._routes.pop(routespec, None)

    async def get_all_routes(self) -> dict[str, dict[str, Any]]:
        return self._routes
