"""How long places in the queue will take: read in one transaction, worked out in none, written in another.

Whoever looks at the queue reads what was last worked out; to work it out for every look would cost more than
the look.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from .. import placement
from ..fairness import waits
from ..model import Device, Kind, Lease, State, When, Wish
from ..signals import AT_WORK
from . import drains, rows
from . import schema as t
from .grants import Grants
from .store import Transaction

PAST = 1000
"""Closed leases from which is told how long sessions last."""
PLACINGS = 4000
"""Requests × devices up to which a wait is worked out; what is further behind has none."""
DRAWS = 40

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Found:
    """Waits in whole seconds, from and to; who is missing has no ground for one."""

    places: Mapping[str, Range]
    """By request."""
    offers: Mapping[str, Range]
    """By profile, for a request that came now."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the waits follow from."""

    queue: Sequence[tuple[str, waits.Wanted]]
    running: Sequence[waits.Running]
    devices: Mapping[str, tuple[str, int]]
    past: waits.Past
    free: frozenset[str]
    """Profiles of which a slice is free, with nobody before."""
    offers: Mapping[str, waits.Wanted]
    whole: bool
    """Whether the queue is all there: only then a new request's place is known."""
    known: Found


_pool = select(t.pool.c.inventory, t.pool.c.limits_version, t.pool.c.mode, t.pool.c.waits)
_queued = select(t.leases).where(t.leases.c.state == State.QUEUED.value).order_by(t.leases.c.ticket)
_held = select(t.leases).where(t.leases.c.held == 1)
_closed = (
    select(t.leases.c.profile, t.leases.c.requested_at, t.leases.c.granted_at, t.leases.c.closed_at)
    .where(t.leases.c.closed_at.is_not(None))
    .order_by(t.leases.c.closed_at.desc())
    .limit(PAST)
)


def look(conn: Connection, now: float, grants: Grants, offers: Mapping[str, Wish]) -> Seen:
    """Read everything that the waits of the queue, and of a new request for each offer, depend on."""
    pool = conn.execute(_pool).one()
    devices = grants.devices(conn, pool.inventory)
    line = grants.line(conn, now, pool.inventory, pool.limits_version)
    rows_waiting = conn.execute(_queued).all()
    places = {row.id: (row.wait_low, row.wait_high) for row in rows_waiting if row.wait_high is not None}
    asked = [turn for turn in line.turns(rows_waiting) if turn.allowed]
    most = PLACINGS // max(1, len(devices))
    wanted = _Wanted(devices, {key: at - now for key, at in line.draining.items()})
    queue = [
        (turn.row.id, item)
        for turn in asked[:most]
        if (item := wanted.of(turn.wish, turn.row.profile, line.terms(turn.row).max_age))
    ]
    held = rows.with_slices(conn, conn.execute(_held).all())
    occupancy = _occupancy(held)
    idle_ends = pool.mode == "reclaim"
    gpus = {slug: wish for slug, wish in offers.items() if wish.kind is not Kind.CPU}
    free = {
        slug for slug, wish in gpus.items() if not asked and placement.count_free(wish, devices, occupancy)
    }
    return Seen(
        queue=queue,
        running=[_running(lease, now, idle_ends) for lease in held if lease.slices],
        devices={device.id: (device.node, device.cells) for device in wanted.devices},
        past=_past(conn, now, held, rows_waiting) if queue or gpus.keys() - free else waits.Past({}),
        free=frozenset(free),
        offers={
            slug: item
            for slug, wish in gpus.items()
            if slug not in free and (item := wanted.of(wish, slug, 0.0))
        },
        whole=len(asked) <= most,
        known=Found(places, {slug: (low, high) for slug, (low, high) in rows.load(pool.waits).items()}),
    )


def _past(conn: Connection, now: float, held: Sequence[Lease], queue: Sequence[Any]) -> waits.Past:
    """How long the sessions of each profile have lasted, and what of it was seen while somebody waited."""
    closed = conn.execute(_closed).all()
    # Who waited before the first of them was closed is not all known.
    since = min(row.closed_at for row in closed) if len(closed) == PAST else -math.inf
    begun = [row for row in closed if row.granted_at is not None]
    spans = [
        (row.requested_at, row.closed_at if row.granted_at is None else row.granted_at) for row in closed
    ]
    spans += [(lease.requested_at, lease.granted_at or now) for lease in held]
    spans += [(row.requested_at, now) for row in queue]
    settle = max((lease.terms.warn for lease in held), default=0.0)
    waited = waits.together((max(start, since), end) for start, end in spans if end > max(start, since))
    demand = [(start, end) for start, end in waited if end - start > settle]  # others have nothing to watch
    lasted: dict[str, list[float]] = defaultdict(list)
    ages: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, list[waits.Spell]] = defaultdict(list)
    for row in begun:
        lasted[row.profile].append(max(0.0, row.closed_at - row.granted_at))
        seen[row.profile] += waits.watched(row.granted_at, row.closed_at, demand, settle)
    for lease in held:
        if lease.granted_at is not None:
            ages[lease.profile].append(max(0.0, now - lease.granted_at))
            seen[lease.profile] += waits.watched(lease.granted_at, now, demand, settle, ended=False)
    return waits.Past(lasted, ages, seen=seen)


class _Wanted:
    """Which devices serve a wish, worked out once for each; none that is sick, lost or drained.

    ``draining`` are those that will be: they serve who has left them by then (seconds until that, by device).
    """

    def __init__(self, devices: Sequence[Device], draining: Mapping[str, float]) -> None:
        self.devices = [device for device in drains.lent(devices, draining) if device.usable]
        self._draining = draining
        self._cells: dict[Wish, dict[str, int]] = {}

    def of(self, wish: Wish, kind: str, max_age: float) -> waits.Wanted | None:
        """A request as the waits see it; None: no device is in service that could serve it."""
        single, empty = replace(wish, count=1), placement.Occupancy({})
        if single not in self._cells:
            served = {device.id: placement.choose(single, [device], empty) for device in self.devices}
            self._cells[single] = {key: placed[0].cells for key, placed in served.items() if placed}
        lasts, cells = max_age or math.inf, self._cells[single]
        until = {key: left - lasts for key, left in self._draining.items() if key in cells}
        if until:
            cells = {key: size for key, size in cells.items() if until.get(key, 0.0) >= 0}
        count = wish.count if wish.kind is Kind.GPU else 1
        if not cells and wish.kind is not Kind.CPU:
            return None
        return waits.Wanted(cells, kind, count, lasts, until)


def _running(lease: Lease, now: float, idle_ends: bool) -> waits.Running:
    began = lease.requested_at if lease.granted_at is None else lease.granted_at
    ends = lease.terms.max_age - (now - began) if lease.terms.max_age else math.inf
    if lease.deadline_seconds is not None and lease.counting and idle_ends:
        ends = min(ends, lease.deadline_seconds)
    if idle_ends and _on_call(lease):  # not warned yet: nobody has come who wants it
        young = lease.terms.min_age - (now - (began if lease.active_at is None else lease.active_at))
        ends = min(ends, max(lease.terms.warn, young))
    if lease.state is State.STOPPING:
        ends = 0.0
    cells: dict[str, int] = {}
    for item in lease.slices:
        cells[item.device] = cells.get(item.device, 0) + len(item.cells)
    return waits.Running(cells, max(0.0, now - began), lease.profile, max(0.0, ends))


def _on_call(lease: Lease) -> bool:
    """Whether it has been idle for so long that it ends as soon as somebody waits."""
    terms = lease.terms
    idle = terms.window > 0 and lease.idle_seconds >= terms.window and lease.grace_seconds <= 0
    sooner = terms.when is When.WANTED or lease.signal in AT_WORK
    return sooner and lease.state is State.ACTIVE and idle


def _occupancy(held: Sequence[Lease]) -> placement.Occupancy:
    used: dict[str, int] = defaultdict(int)
    taken = set()
    for lease in held:
        for item in lease.slices:
            used[item.device] += len(item.cells)
            taken.add(item.instance)
    return placement.Occupancy(dict(used), taken - {""})


def work_out(seen: Seen) -> Found:
    """The waits of everybody in the queue, and of a new request for each offer.  Pure."""
    wants = [wanted for _, wanted in seen.queue]
    places = {}
    if wants:
        found = waits.expected_waits(wants, seen.running, seen.devices, seen.past, draws=DRAWS)
        for (lease, _), wait in zip(seen.queue, found, strict=True):
            if (rounded := _range(wait)) is not None:
                places[lease] = rounded
    offers: dict[str, Range] = dict.fromkeys(sorted(seen.free), (0.0, 0.0))
    if seen.whole:
        for slug, wanted in seen.offers.items():
            last = waits.expected_waits([*wants, wanted], seen.running, seen.devices, seen.past, draws=DRAWS)[
                -1
            ]
            if (rounded := _range(last)) is not None:
                offers[slug] = rounded
    return Found(places, offers)


def _range(wait: waits.Wait) -> Range | None:
    """A range that can be shown; one without an end is none."""
    if wait.low is None or wait.high is None:
        return None
    return float(round(wait.low)), float(round(wait.high))


_set_wait = (
    update(t.leases)
    .where(t.leases.c.id == bindparam("key"), t.leases.c.state == State.QUEUED.value)
    .values(wait_low=bindparam("low"), wait_high=bindparam("high"))
)


def write(tx: Transaction, before: Found, found: Found) -> None:
    """Keep what has changed.  No lease is at another version for it: nobody decides by a wait."""
    changed: list[dict[str, Any]] = []
    for lease in before.places.keys() | found.places.keys():
        if before.places.get(lease) != found.places.get(lease):
            low, high = found.places.get(lease, (None, None))
            changed.append({"key": lease, "low": low, "high": high})
    if changed:
        tx.run(_set_wait, changed)
    if before.offers != found.offers:
        tx.run(update(t.pool).values(waits=rows.dump({slug: list(r) for slug, r in found.offers.items()})))
