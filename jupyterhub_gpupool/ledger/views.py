"""What others read: one consistent view of the pool, the queue, closed leases, the audit trail."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, select

from .. import fairness, placement
from ..conditions import UNKNOWN, Condition
from ..model import Device, Lease, Limit, State
from . import rows
from . import schema as t
from .counts import hours_used
from .drains import known_ones
from .grants import Grants


@dataclass(frozen=True, slots=True)
class Reading:
    """The last look at a device."""

    utilization: float | None
    memory_used_mib: int | None
    sampled_at: float | None
    condition: Condition = UNKNOWN


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The pool at one moment."""

    now: float
    version: int
    settled: bool
    mode: str
    swept_at: float | None
    sweep_seconds: float | None
    devices: tuple[Device, ...]
    readings: dict[str, Reading]
    leases: tuple[Lease, ...]
    """All open leases, queued ones last and in order."""
    limits: Mapping[str, Limit] = field(default_factory=dict)
    """The limits in force."""
    guaranteed: Mapping[str, float] = field(default_factory=dict)
    """GPU-equivalents that are guaranteed now, by group."""
    used: Mapping[str, float] = field(default_factory=dict)
    """GPU-hours used in its window by each scope that has a budget and has used some."""
    waits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """How long each request will still wait, from and to; missing: there is no ground for it."""
    offers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The same for a request that came now, by profile."""

    @property
    def queue(self) -> tuple[Lease, ...]:
        """The requests that wait, in order."""
        return tuple(lease for lease in self.leases if lease.state is State.QUEUED)

    @property
    def occupancy(self) -> placement.Occupancy:
        """What is held, as placement wants it."""
        used: dict[str, int] = {}
        taken: set[str] = set()
        for lease in self.leases:
            for item in lease.slices:
                used[item.device] = used.get(item.device, 0) + len(item.cells)
                if item.instance:
                    taken.add(item.instance)
        return placement.Occupancy(used=used, instances=taken)

    @property
    def holds(self) -> list[fairness.Holds]:
        """What is held, as limits count it."""
        return [
            fairness.Holds(lease.user, lease.groups, lease.group, lease.gpus)
            for lease in self.leases
            if lease.state is not State.QUEUED
        ]

    @property
    def usage(self) -> dict[str, fairness.Usage]:
        """What each scope has now."""
        queued = [(lease.user, lease.groups) for lease in self.queue]
        return fairness.tally(self.holds, self.limits, queued)

    @property
    def over(self) -> dict[str, str]:
        """The scopes that hold more than they may, in words."""
        return fairness.over_limits(self.usage, self.limits)

    def budget(self, user: str, groups: Collection[str]) -> fairness.Budget:
        """How the budget stands that decides for a person; ``left`` is inf where nobody limits."""
        return fairness.budget(user, groups, self.used, self.limits, self.now)

    @property
    def places(self) -> dict[str, int]:
        """Lease → place in the queue, from 1."""
        return {lease.id: n for n, lease in enumerate(self.queue, 1)}


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the audit trail."""

    seq: int
    at: float
    actor: str
    action: str
    lease: str | None
    user: str | None
    device: str | None
    from_state: str | None
    to_state: str | None
    reason: str


def in_order(conn: Connection, now: float, grants: Grants, waiting: Sequence[Any]) -> list[Any]:
    """Rows of the queue that are in the order of arrival, in the order of the policy."""
    pool = conn.execute(_numbers).one()
    line = grants.line(conn, now, pool.inventory, pool.limits_version)
    return list(waiting) if line.by_arrival else [turn.row for turn in line.turns(waiting)]


_numbers = select(t.pool.c.inventory, t.pool.c.limits_version)


def snapshot(conn: Connection, now: float, grants: Grants) -> Snapshot:
    """Read everything that is open."""
    pool = conn.execute(select(t.pool)).one()
    rules = grants.rules(conn, pool.limits_version)
    devices = conn.execute(
        select(t.devices).where(known_ones).order_by(t.devices.c.node, t.devices.c.idx)
    ).all()
    open_rows = conn.execute(
        select(t.leases).where(t.leases.c.open_key == 1).order_by(t.leases.c.held.desc(), t.leases.c.ticket)
    ).all()
    held = [row for row in open_rows if row.held]
    waiting = in_order(conn, now, grants, [row for row in open_rows if not row.held])
    return Snapshot(
        now=now,
        version=pool.version,
        settled=pool.settled_at is not None,
        mode=pool.mode,
        swept_at=pool.swept_at,
        sweep_seconds=pool.sweep_seconds,
        devices=tuple(rows.device(row) for row in devices),
        readings={row.id: _reading(row) for row in devices},
        leases=tuple(rows.with_slices(conn, [*held, *waiting])),
        limits=rules.limits,
        guaranteed=rules.guaranteed(now),
        used=hours_used(conn.execute, now, rules) if rules.hours else {},
        waits={row.id: (row.wait_low, row.wait_high) for row in waiting if row.wait_high is not None},
        offers={slug: (low, high) for slug, (low, high) in rows.load(pool.waits).items()},
    )


def _reading(row: Any) -> Reading:
    errors = None if row.ecc_errors is None else int(row.ecc_errors)
    told = Condition(row.power_watts, row.temperature_celsius, errors)
    return Reading(row.utilization, row.memory_used_mib, row.sampled_at, told)


# Built once: every poll of the hub asks, and building a statement costs more than SQLite takes to run it.
_by_id = select(t.leases).where(t.leases.c.id == bindparam("key"))
_of_server = (
    select(t.leases)
    .join(t.owners, t.owners.c.id == t.leases.c.owner)
    .where(
        t.owners.c.hub_id == bindparam("hub_id"),
        t.owners.c.created == bindparam("created"),
        t.leases.c.server == bindparam("server"),
        t.leases.c.open_key == 1,
    )
)


def one(conn: Connection, lease: str) -> Lease | None:
    """A lease by its id."""
    row = conn.execute(_by_id, {"key": lease}).one_or_none()
    return rows.with_slices(conn, [row])[0] if row else None


def of_server(conn: Connection, hub_id: int, created: float, server: str) -> Lease | None:
    """The open lease of a person's server."""
    asked = {"hub_id": hub_id, "created": created, "server": server}
    row = conn.execute(_of_server, asked).one_or_none()
    return rows.with_slices(conn, [row])[0] if row else None


def last_options(conn: Connection, hub_id: int, created: float) -> dict[str, Any] | None:
    """What this person chose last, from their last lease."""
    text = conn.execute(
        select(t.leases.c.options)
        .join(t.owners, t.owners.c.id == t.leases.c.owner)
        .where(t.owners.c.hub_id == hub_id, t.owners.c.created == created)
        .order_by(t.leases.c.ticket.desc())
        .limit(1)
    ).scalar_one_or_none()
    return dict(rows.load(text)) if text else None


_asked = (
    "id", "reason", "ticket", "owner", "user", "profile", "wish", "groups", "requested_at", "wait_low", "wait_high",
)  # fmt: skip
_queue = (
    select(*(t.leases.c[name] for name in _asked))
    .where(t.leases.c.state == State.QUEUED.value)
    .order_by(t.leases.c.ticket)
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What somebody who waits wants to know."""

    state: State
    place: int | None
    ahead: int
    why: str
    lease: Lease | None = field(default=None, compare=False)
    """The lease itself, where this was told by the move and not read."""
    place_wait: tuple[float, float] | None = field(default=None, compare=False)
    """Seconds, from and to, that it will still wait; None: there is no ground to say.  It is no news by itself."""


def watch(conn: Connection, now: float, grants: Grants, leases: Collection[str]) -> dict[str, Waiting]:
    """State and place of these leases, by one read of the queue."""
    queue = in_order(conn, now, grants, conn.execute(_queue).all())
    found = {
        row.id: Waiting(
            State.QUEUED,
            place,
            place - 1,
            row.reason,
            place_wait=None if row.wait_high is None else (row.wait_low, row.wait_high),
        )
        for place, row in enumerate(queue, 1)
        if row.id in leases
    }
    missing = [lease for lease in leases if lease not in found]
    for start in range(0, len(missing), 500):
        part = missing[start : start + 500]
        for row in conn.execute(
            select(t.leases.c.id, t.leases.c.state, t.leases.c.reason).where(t.leases.c.id.in_(part))
        ):
            found[row.id] = Waiting(State(row.state), None, 0, row.reason)
    return found


def closed(conn: Connection, user: str | None, before: float | None, count: int) -> list[Lease]:
    """Closed leases, newest first; of one user by the owner's present name, or of everybody.

    ``count`` of them, and those closed at the same time as the last one.
    """
    query = select(t.leases).where(t.leases.c.state == State.CLOSED.value)
    if user is not None:
        query = query.join(t.owners, t.owners.c.id == t.leases.c.owner).where(t.owners.c.name == user)
    page = query if before is None else query.where(t.leases.c.closed_at < before)
    found = conn.execute(page.order_by(t.leases.c.closed_at.desc()).limit(count)).all()
    if len(found) == count:  # leases closed in one transaction have one time: no page ends among them
        last = found[-1].closed_at
        found = [row for row in found if row.closed_at != last]
        found += conn.execute(query.where(t.leases.c.closed_at == last)).all()
    return rows.with_slices(conn, found)


def owner_of(conn: Connection, lease: str) -> str | None:
    """The present name of a lease's owner; None when the lease or the user is gone."""
    return conn.execute(
        select(t.owners.c.name)
        .join(t.leases, t.leases.c.owner == t.owners.c.id)
        .where(t.leases.c.id == lease)
    ).scalar_one_or_none()


def events(conn: Connection, after: int, count: int) -> list[Event]:
    """The audit trail from an event on."""
    query = select(t.events).where(t.events.c.seq > after).order_by(t.events.c.seq).limit(count)
    return [
        Event(
            row.seq,
            row.at,
            row.actor,
            row.action,
            row.lease,
            row.user,
            row.device,
            row.from_state,
            row.to_state,
            row.reason,
        )
        for row in conn.execute(query)
    ]
