"""The verbs that only read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import select

from .. import fairness
from ..model import Device, Lease
from . import checks, hubs, views
from . import schema as t
from .base import Base
from .checks import Check
from .counts import Budgets
from .hubs import HubRow
from .verify import problems
from .views import Event, Snapshot, Waiting


class Reader(Base):
    """One consistent view each."""

    def snapshot(self) -> Snapshot:
        """The pool at this moment: devices, readings, open leases."""
        with self.store.read() as (conn, now):
            return views.snapshot(conn, now, self._grants)

    def budget(self, user: str, groups: Sequence[str]) -> fairness.Budget:
        """How the budget stands that decides for a person, and when a start works again where it is used up."""
        with self.store.read() as (conn, now):
            version = conn.execute(select(t.pool.c.limits_version)).scalar_one()
            return Budgets(conn.execute, now, self._grants.rules(conn, version)).of(user, groups)

    def hubs(self) -> tuple[HubRow, ...]:
        """See :func:`hubs.claims`."""
        with self.store.read() as (conn, now):
            return hubs.claims(conn, now)

    def devices(self, ids: Collection[str]) -> tuple[Device, ...]:
        """See :func:`checks.devices`."""
        with self.store.read() as (conn, _):
            return checks.devices(conn, ids)

    def check_of(self, image: str, devices: Collection[str]) -> dict[str, Check]:
        """See :func:`checks.of`: by device; those without one are missing."""
        with self.store.read() as (conn, _):
            return checks.of(conn, image, devices)

    def log_of(self, lease: str) -> str:
        """See :func:`checks.log_of`."""
        with self.store.read() as (conn, _):
            return checks.log_of(conn, lease)

    def lease(self, key: str) -> Lease | None:
        """A lease by its id."""
        with self.store.read() as (conn, _):
            return views.one(conn, key)

    def lease_of(self, hub_id: int, created: float, server: str) -> Lease | None:
        """The open lease of a person's server."""
        with self.store.read() as (conn, _):
            return views.of_server(conn, hub_id, created, server)

    def last_options(self, hub_id: int, created: float) -> dict[str, Any] | None:
        """What this person chose last."""
        with self.store.read() as (conn, _):
            return views.last_options(conn, hub_id, created)

    def watch(self, leases: Collection[str]) -> dict[str, Waiting]:
        """State and place of leases that somebody waits for."""
        with self.store.read() as (conn, now):
            return views.watch(conn, now, self._grants, leases)

    def closed(self, user: str | None, before: float | None = None, count: int = 100) -> list[Lease]:
        """Closed leases, newest first."""
        with self.store.read() as (conn, _):
            return views.closed(conn, user, before, count)

    def owner_of(self, lease: str) -> str | None:
        """The present name of a lease's owner."""
        with self.store.read() as (conn, _):
            return views.owner_of(conn, lease)

    def events(self, after: int = 0, count: int = 200) -> list[Event]:
        """The audit trail from an event on."""
        with self.store.read() as (conn, _):
            return views.events(conn, after, count)

    def verify(self) -> list[str]:
        """Everything in the ledger that breaks its own rules; empty when all is well."""
        with self.store.read() as (conn, _):
            return problems(conn)
