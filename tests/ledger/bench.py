"""The real ledger and the real sweep over many sessions; devices, backend and hub are the bench itself."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from traitlets.config import Config

from jupyterhub_gpupool.devices import Readings
from jupyterhub_gpupool.ledger import Event, Ledger
from jupyterhub_gpupool.model import (
    Device,
    Lease,
    Owner,
    Presence,
    Request,
    Sample,
    Session,
    State,
    Terms,
    Wish,
)
from jupyterhub_gpupool.pool import GPUPool
from jupyterhub_gpupool.service.hub import Server
from jupyterhub_gpupool.service.sweep import Rules, Sweep

from .conftest import WHOLE, Clock, gpu

INTERVAL = 10.0


class Counters:
    """What the sweep has counted."""

    def __init__(self) -> None:
        self.reclaims: list[str] = []
        self.waits: list[float] = []
        self.seconds: dict[tuple[str, str], float] = {}

    def verdict(self, decision: str) -> None: ...

    def reclaim(self, reason: str) -> None:
        self.reclaims.append(reason)

    def swept(self, seconds: float) -> None: ...

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def gpu_seconds(self, group: str, state: str, seconds: float) -> None:
        self.seconds[group, state] = self.seconds.get((group, state), 0.0) + seconds

    def measured(self, conditions: object) -> None: ...


class Bench:
    """A pool of whole GPUs whose people do nothing by themselves.  Whoever is not in ``busy`` is idle."""

    trusted = True

    def __init__(self, url: str, gpus: int, mode: str = "reclaim", **settings: Any) -> None:
        self.clock, self.counters = Clock(), Counters()
        self.gpus: tuple[Device, ...] = tuple(gpu(n) for n in range(gpus))
        self.busy: set[str] = set()
        self.unknown: set[str] = set()
        self.away = False  # whether the hub says nothing
        self.url = url
        self.pool = GPUPool(config=Config({"GPUPool": {"database_url": self.url, **settings}}))
        self.ledger = Ledger(self.url, self.pool.policy, clock=self.clock, on_move=self.pool._moved)
        self.pool._ledger = self.ledger
        self.ledger.sync_inventory(self.gpus)
        self.ledger.settle()
        self.ledger.register_hub("hub")
        rules = Rules(mode, INTERVAL, 30.0, 5.0, undelivered_max=0)
        self.sweep = Sweep(self.pool, self, self, self, rules, self.counters, clock=self.clock)

    def ask(self, user: str, *groups: str, wish: Wish = WHOLE, server: str = "", **terms: Any) -> Lease:
        """Ask for a GPU, and launch what was granted."""
        rules = Terms(**{"window": 0, "warn": 60, "min_age": 0, **terms})
        owner = Owner(user, sum(map(ord, user)), 1.0)
        lease = self.ledger.enqueue("hub", Request(owner, server, "gpu", wish, rules, groups))
        self.launch()
        return self.lease(lease)

    def launch(self) -> None:
        """Every session that was granted comes up."""
        for lease in self.ledger.snapshot().leases:
            if lease.state is State.STARTING:
                self.ledger.activate(lease.id, actor=lease.user)

    def lease(self, lease: Lease) -> Lease:
        found = self.ledger.lease(lease.id)
        assert found is not None
        return found

    def pass_time(self, sweeps: int = 1) -> None:
        for _ in range(sweeps):
            self.clock.forward(INTERVAL)
            if not self.away:
                self.ledger.beat("hub")
            assert asyncio.run(self.sweep.run())
            self.launch()

    def events(self, lease: Lease, *actions: str) -> list[Event]:
        found = [event for event in self.ledger.events(count=10_000) if event.lease == lease.id]
        return [event for event in found if not actions or event.action in actions]

    def close(self) -> None:
        assert self.ledger.verify() == []
        self.pool._worker.shutdown()
        self.ledger.close_database()

    # --- what the sweep asks ---

    def _live(self) -> list[Lease]:
        return [lease for lease in self.ledger.snapshot().leases if lease.state is not State.QUEUED]

    def devices(self) -> tuple[Device, ...]:
        return self.gpus

    def sample(self, slices: Mapping[str, Any], processes: Mapping[str, Any]) -> Readings:
        users = {lease.id: lease.user for lease in self._live()}
        found = {
            key: Sample()
            if users[key] in self.unknown
            else Sample(90.0 if users[key] in self.busy else 0.0, 7, 1)
            for key in slices
        }
        return Readings(leases=found, devices={})

    def look(self, names: Collection[str]) -> dict[str, Presence]:
        return dict.fromkeys(names, Presence.PRESENT)

    def list(self) -> tuple[Session, ...]:
        return tuple(
            Session(x.session, x.id, x.user, x.server, x.profile, {i.device: i.cells for i in x.slices})
            for x in self._live()
        )

    def differs(self, lease: Lease) -> tuple[str, ...] | None:
        return ()

    def foreign(self) -> tuple[Any, ...]:
        return ()

    def before_reclaim(self, name: str, *environment: Any, **more: Any) -> None:
        """Nobody has a script."""

    def remove(self, name: str, **more: Any) -> bool:
        raise AssertionError("the hub knows every server")

    async def server(self, user: str, name: str) -> Server | None:
        return Server(True, "", 0.0)

    async def stop(self, user: str, name: str) -> None:
        for lease in self._live():
            if lease.user == user and lease.state is State.STOPPING:
                self.ledger.close(lease.id, actor="hub")
