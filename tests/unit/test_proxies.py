"""Routes come and go in turn."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyterhub.proxy import Proxy

from jupyterhub_gpupool.proxies import GPUPoolTraefikProxy, InTurn


class Slow(Proxy):
    """A proxy that has a route only after a while, and fails where it is taken away until then."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.asked: set[str] = set()
        self.added, self.up = asyncio.Event(), asyncio.Event()

    async def add_route(self, routespec: str, target: str, data: dict[str, Any]) -> None:
        self.asked.add(routespec)
        self.added.set()
        await self.up.wait()
        if routespec not in self.asked:
            raise TimeoutError(routespec)

    async def delete_route(self, routespec: str) -> None:
        self.asked.discard(routespec)


class SlowInTurn(InTurn, Slow):
    pass


async def test_a_route_is_removed_when_it_has_come_up() -> None:
    for kind, outcome in ((Slow, TimeoutError), (SlowInTurn, type(None))):
        proxy = kind(config=None)
        adding = asyncio.create_task(proxy.add_route("/user/ada/", "http://127.0.0.1:1", {}))
        await proxy.added.wait()
        removing = asyncio.create_task(proxy.delete_route("/user/ada/"))
        # Another route waits for neither.
        await proxy.delete_route("/user/grace/")
        proxy.up.set()
        done = await asyncio.gather(adding, removing, return_exceptions=True)
        assert [type(one) for one in done] == [outcome, type(None)]
        assert proxy.asked == set()


def test_the_demo_s_proxy_is_traefik_in_turn() -> None:
    order = [kind.__name__ for kind in GPUPoolTraefikProxy.__mro__]
    assert order.index("InTurn") < order.index("TraefikFileProviderProxy")
