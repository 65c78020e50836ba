"""Proxies whose routes come and go in turn.

jupyterhub-traefik-proxy waits until Traefik has a new route.  A route that is removed in the meantime is waited
for in vain, and where JupyterHub does so while it starts, its start fails: a session that ends just after its hub
came back would take the hub with it.
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakValueDictionary

from jupyterhub.proxy import Proxy
from jupyterhub_traefik_proxy.fileprovider import TraefikFileProviderProxy


class InTurn(Proxy):
    """In front of a proxy class: what is done to one route is done one after the other."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def _turn(self, routespec: str) -> asyncio.Lock:
        return self._turns.setdefault(routespec, asyncio.Lock())

    async def add_route(self, routespec: str, target: str, data: dict[str, Any]) -> None:
        async with self._turn(routespec):
            await super().add_route(routespec, target, data)

    async def delete_route(self, routespec: str) -> None:
        """Remove a route, if need be as soon as it has come up."""
        async with self._turn(routespec):
            await super().delete_route(routespec)


class GPUPoolTraefikProxy(InTurn, TraefikFileProviderProxy):
    """``traefik_file`` whose routes come and go in turn; it is configured as ``c.TraefikFileProviderProxy``."""
