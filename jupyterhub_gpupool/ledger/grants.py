"""Who gets what next: the queue is served inside the transaction that freed something or asked.

Limits are counted and slices placed on rows that this transaction has read under the write lock.  The
devices themselves change rarely; they are kept in memory, keyed by the number that each change raises.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, func, select, update

from .. import fairness, placement
from ..errors import Rejected
from ..model import Device, Kind, Limit, Slice, State, Wish, session_name
from . import rows
from . import schema as t
from .store import Transaction
from .transitions import check, claim, move, set_columns


@dataclass(frozen=True, slots=True)
class Policy:
    """What a grant depends on besides the rows."""

    pool: str = "gpupool"
    """First part of every session's name."""
    limits: Mapping[str, Limit] = field(default_factory=dict)
    launches: int = 10
    """Launches under way at once; 0: no bound."""
    beat_age: float = 15.0
    """Seconds after which a hub that has not said anything is taken as away."""
    queue_keep: float = 600.0
    """Seconds for which a request keeps its place while its hub is away."""
    suspect_for: float = 600.0
    """Seconds for which nothing is granted on a device that a launch check makes suspect; 0: none is."""


class Grants:
    """Serves the queue.  Holds nothing but the list of devices, which it checks at each use."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._devices: tuple[int, tuple[Device, ...]] = (-1, ())

    def devices(self, tx: Transaction) -> tuple[Device, ...]:
        """All devices, read again only when the inventory's number has changed."""
        if self._devices[0] != tx.inventory:
            query = select(t.devices).order_by(t.devices.c.node, t.devices.c.idx)
            self._devices = (tx.inventory, tuple(rows.device(row) for row in tx.run(query)))
        return self._devices[1]

    def serve(self, tx: Transaction) -> list[str]:
        """Grant whatever can be granted now, in order; returns the leases that were."""
        if not tx.settled:
            return []
        counted = dict(tx.run(_counts).all())
        room = math.inf
        if self.policy.launches:
            room = self.policy.launches - counted.get(State.STARTING, 0)
        if room <= 0 or State.QUEUED not in counted:
            return []  # before the queue is read: it may be long
        return _Round(tx, self).run(self._waiting(tx), room)

    def _waiting(self, tx: Transaction) -> Iterator[Any]:
        """The queue in order, read in parts: of a long one mostly the head is all that is looked at."""
        since, after = tx.now - self.policy.beat_age, 0
        while part := tx.run(_waiting, {"since": since, "after": after, "count": AT_ONCE}).all():
            yield from part
            after = part[-1].ticket


AT_ONCE = 50
"""Requests read at once; a ticket is given once, so the next part begins behind the last one's."""

_named = ("id", "ticket", "owner", "user", "state", "step", "wish", "terms", "groups", "reason")
_waiting = (
    select(*(t.leases.c[name] for name in _named))
    .join(t.hubs, t.hubs.c.name == t.leases.c.hub)
    .where(
        t.leases.c.state == State.QUEUED.value,
        t.leases.c.left_at.is_(None),
        t.hubs.c.beat_at >= bindparam("since"),
        t.leases.c.ticket > bindparam("after"),
    )
    .order_by(t.leases.c.ticket)
    .limit(bindparam("count"))
)
_counts = (
    select(t.leases.c.state, func.count())
    .where(t.leases.c.state.in_([State.QUEUED.value, State.STARTING.value]))
    .group_by(t.leases.c.state)
)
_set_epoch = update(t.pool)
_used = select(t.devices.c.id, t.devices.c.used).where(t.devices.c.used > 0)
_taken = (
    select(t.slices.c.instance)
    .join(t.leases, t.leases.c.id == t.slices.c.lease)
    .where(t.leases.c.held == 1, t.slices.c.kind == Kind.MIG.value)
)
_lowest_free = (
    select(t.cell_numbers.c.n)
    .where(
        t.cell_numbers.c.n < bindparam("cells"),
        t.cell_numbers.c.n.not_in(select(t.claims.c.cell).where(t.claims.c.device == bindparam("device"))),
    )
    .order_by(t.cell_numbers.c.n)
    .limit(bindparam("count"))
)
_usage = select(func.count(), func.coalesce(func.sum(t.leases.c.gpus), 0.0)).where(t.leases.c.held == 1)
_usage_of = {
    "pool": _usage,
    "owner": _usage.where(t.leases.c.owner == bindparam("name")),
    "group": _usage.where(t.leases.c.group == bindparam("name")),
}
_all_holders = (
    select(t.slices, t.leases.c.state, t.leases.c.ends_at)
    .join(t.leases, t.leases.c.id == t.slices.c.lease)
    .where(t.leases.c.held == 1)
)


class _Round:
    """One pass over the queue inside one transaction."""

    def __init__(self, tx: Transaction, grants: Grants) -> None:
        self.tx, self.policy = tx, grants.policy
        self.devices = grants.devices(tx)
        self.occupancy = self._occupancy()
        self.reserved: placement.Reserved | None = None
        self.hopeless: set[tuple[str, bool]] = (
            set()
        )  # wishes found not to fit, before or after the reservation
        self.usage = _UsageReader(tx)
        self.epoch = tx.epoch

    def _occupancy(self) -> placement.Occupancy:
        used: dict[str, int] = dict(self.tx.run(_used).all())
        mig = any(device.instances and device.id in used for device in self.devices)
        return placement.Occupancy(used, set(self.tx.run(_taken).scalars()) if mig else set())

    def run(self, waiting: Iterable[Any], room: float) -> list[str]:
        granted: list[str] = []
        for row in waiting:
            if len(granted) >= room:
                break
            if self._serve(row):
                granted.append(row.id)
        if self.epoch != self.tx.epoch:
            self.tx.run(_set_epoch, {"epoch": self.epoch})
        return granted

    def _serve(self, row: Any) -> bool:
        key = (row.wish, self.reserved is not None)
        if key in self.hopeless:
            self._say(row, "")
            return False
        wish = rows.wish(row.wish)
        groups = rows.load(row.groups)
        least = placement.cost(wish, self.devices)
        admitted = self._admit(row, groups, least)
        if not admitted.allowed:
            self._say(row, admitted.why)
            return False
        reserved = self.reserved or placement.Reserved()
        placed = placement.choose(wish, self.devices, self.occupancy, reserved, room=admitted.room)
        if placed is None:
            if placement.choose(wish, self.devices, self.occupancy, reserved) is not None:
                self._say(row, "what is free would take more than your limit has left")
                return False
            if self._never(row, wish):
                return False
            self.hopeless.add(key)
            if self.reserved is None:
                self.reserved = placement.reserve(wish, self.devices, self.occupancy, self._holders())
            self._say(row, "")
            return False
        size = sum(item.cells / item.device.cells for item in placed)
        self._grant(row, placed, size, admitted.group)
        return True

    def _never(self, row: Any, wish: Wish) -> bool:
        """Close a request that came before the first inventory, and for which there is no such device."""
        try:
            placement.check_possible(wish, self.devices)
        except Rejected as never:
            why, now = never.message, self.tx.now
            move(self.tx, row, State.CLOSED, actor="gpupool", action="refuse", reason=why, closed_at=now)
            return True
        return False

    def _admit(self, row: Any, groups: list[str], gpus: float) -> fairness.Admission:
        usage = self.usage.of(row.owner, row.user, groups, self.policy.limits)
        return fairness.admit(row.user, groups, gpus, usage, self.policy.limits)

    def _say(self, row: Any, why: str) -> None:
        if row.reason != why:
            set_columns(self.tx, row.id, reason=why)

    def _grant(self, row: Any, placed: Sequence[placement.Placed], size: float, group: str) -> None:
        tx = self.tx
        self.epoch += 1
        terms = rows.terms(row.terms)
        move(
            tx,
            row,
            State.STARTING,
            actor="gpupool",
            action="grant",
            reason="",
            epoch=self.epoch,
            session=session_name(self.policy.pool, row.id, self.epoch),
            granted_at=tx.now,
            ends_at=tx.now + terms.max_age if terms.max_age else None,
            gpus=size,
            group=group,
        )
        claim(tx, row.id, tuple(self._slice(item) for item in placed))
        check(tx, row.id)
        self.usage.add(row.owner, group, size)
        used = dict(self.occupancy.used)
        for item in placed:
            used[item.device.id] = used.get(item.device.id, 0) + item.cells
        taken = {*self.occupancy.instances, *(item.instance for item in placed if item.instance)}
        self.occupancy = placement.Occupancy(used=used, instances=taken)

    def _slice(self, item: placement.Placed) -> Slice:
        if item.first is not None:
            numbers = tuple(range(item.first, item.first + item.cells))
        else:
            free = {"device": item.device.id, "cells": item.device.cells, "count": item.cells}
            numbers = tuple(self.tx.run(_lowest_free, free).scalars())
        return Slice(
            device=item.device.id,
            kind=item.kind,
            cells=numbers,
            of=item.device.cells,
            memory_mib=item.memory_mib,
            compute=item.compute,
            instance=item.instance,
        )

    def _holders(self) -> Mapping[str, Sequence[placement.Holding]]:
        """Who holds what until when, as far as the leases say."""
        found: dict[str, list[placement.Holding]] = defaultdict(list)
        for row in self.tx.run(_all_holders):
            ends = 0.0 if row.state == State.STOPPING else math.inf if row.ends_at is None else row.ends_at
            found[row.device].append(placement.Holding(cells=row.size, ends_at=ends, instance=row.instance))
        return found


class _UsageReader:
    """Usage of the scopes that matter, each read once in a round and kept up with its grants."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._held: dict[str, tuple[int, float]] = {}

    def of(
        self, owner: str, user: str, groups: list[str], limits: Mapping[str, Limit]
    ) -> dict[str, fairness.Usage]:
        scopes = {"pool": "pool", f"user:{user}": f"owner:{owner}"}
        scopes |= {f"group:{g}": f"group:{g}" for g in groups if f"group:{g}" in limits}
        return {
            scope: fairness.Usage(*self._read(key))
            for scope, key in scopes.items()
            if scope in limits or scope.startswith("user:")
        }

    def _read(self, key: str) -> tuple[int, float]:
        if key not in self._held:
            kind, _, name = key.partition(":")
            count, gpus = self._tx.run(_usage_of[kind], {"name": name}).one()
            self._held[key] = (int(count), float(gpus))
        return self._held[key]

    def add(self, owner: str, group: str, gpus: float) -> None:
        for key in ("pool", f"owner:{owner}", f"group:{group}"):
            if key in self._held:
                count, held = self._held[key]
                self._held[key] = (count + 1, held + gpus)


def queue_usage(tx: Transaction, owner: str, user: str, groups: Sequence[str]) -> dict[str, fairness.Usage]:
    """How many requests wait, for the pool, this owner and these groups."""
    waiting = tx.run(
        select(t.leases.c.owner, t.leases.c.groups).where(t.leases.c.state == State.QUEUED.value)
    ).all()
    of_group = dict.fromkeys(groups, 0)
    for row in waiting:
        for group in rows.load(row.groups):
            if group in of_group:
                of_group[group] += 1
    return {
        "pool": fairness.Usage(queued=len(waiting)),
        f"user:{user}": fairness.Usage(queued=sum(row.owner == owner for row in waiting)),
        **{f"group:{group}": fairness.Usage(queued=count) for group, count in of_group.items()},
    }
