"""Who gets what next: the queue is served inside the transaction that freed something or asked.

Limits are counted and slices placed on rows that this transaction has read under the write lock.  Devices and
limits change rarely; they are kept in memory, keyed by the numbers that each change raises.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update

from .. import fairness, idleness, placement
from ..errors import Rejected
from ..model import Device, Kind, Slice, State, Wish, plain, session_name
from . import rows
from . import schema as t
from .counts import Past
from .drains import known_ones
from .rules import Rules, in_force
from .store import Transaction
from .transitions import check, claim, move
from .turns import Lent, Line, Policy, waiting


class Grants:
    """Serves the queue.  Holds devices, limits and the decayed past, each checked at every use."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.past = Past(policy.half_life)
        self._devices: tuple[int, tuple[Device, ...]] = (-1, ())
        self._lent: Lent = {}
        self._rules: tuple[int, Rules] = (-1, Rules.of({}))

    def forget(self) -> None:
        """Read devices and limits again at the next use."""
        self._devices, self._lent, self._rules = (-1, ()), {}, (-1, Rules.of({}))

    def devices(self, conn: Connection, inventory: int) -> tuple[Device, ...]:
        """All devices, read again only when the inventory's number has changed."""
        number, known = self._devices
        if number != inventory:
            query = select(t.devices).where(known_ones).order_by(t.devices.c.node, t.devices.c.idx)
            known = tuple(rows.device(row) for row in conn.execute(query))
            self._devices, self._lent = (inventory, known), {}
        return known

    def rules(self, conn: Connection, version: int) -> Rules:
        """The limits in force, read again only when an edit has raised their number."""
        number, known = self._rules
        if number != version:
            known = Rules.of(in_force(conn, self.policy.limits))
            self._rules = version, known
        return known

    def line(self, conn: Connection, now: float, inventory: int, limits_version: int) -> Line:
        """The queue as it stands in a transaction."""
        rules, devices = self.rules(conn, limits_version), self.devices(conn, inventory)
        return Line(conn.execute, now, self.policy, rules, devices, self._lent, self.past)

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
        served = _Round(tx, self)
        if served.line.by_arrival:
            return served.run(waiting(tx.run, tx.now, self.policy), room)
        arrived = waiting(tx.run, tx.now, self.policy, ALL)
        return served.run((turn.row for turn in served.line.turns(arrived)), room)


ALL = 10_000
"""Requests read at once where the order is not that of arrival, so that all are looked at anyway."""

_counts = (
    select(t.leases.c.state, func.count())
    .where(t.leases.c.state.in_([State.QUEUED.value, State.STARTING.value]))
    .group_by(t.leases.c.state)
)
_set_epoch = update(t.pool)
_set_reason = update(t.leases).where(t.leases.c.id == bindparam("key")).values(reason=bindparam("why"))
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
_all_holders = (
    select(t.slices, t.leases.c.state, t.leases.c.ends_at, t.leases.c.warned_for, t.leases.c.deadline_seconds)
    .join(t.leases, t.leases.c.id == t.slices.c.lease)
    .where(t.leases.c.held == 1)
)


class _Round:
    """One pass over the queue inside one transaction."""

    def __init__(self, tx: Transaction, grants: Grants) -> None:
        self.tx, self.policy = tx, grants.policy
        self.line = grants.line(tx.conn, tx.now, tx.inventory, tx.limits_version)
        self.rules = grants.rules(tx.conn, tx.limits_version)
        self.devices = grants.devices(tx.conn, tx.inventory)
        self.occupancy = self._occupancy()
        self.reserved = placement.Reserved()
        self.headless = True  # nobody before has to wait for what he does not own
        self.kept = False  # the pool's cap keeps somebody from a share: nobody may take more of it
        self.hopeless: set[tuple[str, int]] = set()  # wishes found not to fit, and on which devices
        self.waits: dict[tuple[Any, ...], str] = {}  # why those wait who are alike; of this moment
        self.holders: Mapping[str, Sequence[placement.Holding]] | None = None
        self.said: list[dict[str, str]] = []  # why those wait who were told another reason before
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
        if self.said:
            self.tx.run(_set_reason, self.said)
        if self.epoch != self.tx.epoch:
            self.tx.run(_set_epoch, {"epoch": self.epoch})
        return granted

    def _serve(self, row: Any) -> bool:
        devices = self.line.devices(row)
        tried, shared = (row.wish, id(devices)), bool(self.line.guaranteed)
        if tried in self.hopeless and not shared:
            self._say(row, "")
            return False
        alike = (*self.line.alike(row), id(devices))
        if alike in self.waits:
            self._say(row, self.waits[alike])
            return False
        wish, least = self.line.wish(row.wish)
        admitted = self.line.admit(row)
        why = self._barred(least, admitted)
        if why is None and tried in self.hopeless and not admitted.own:
            why = ""
        if why is not None:
            if not admitted.own:
                self.waits[alike] = why
            self._say(row, why)
            return False
        placed = placement.choose(wish, devices, self.occupancy, self.reserved, room=admitted.room)
        if placed is None:
            self._blocked(row, wish, devices, admitted.own)
            return False
        self._grant(row, placed, admitted.group)
        return True

    def _barred(self, least: float, admitted: fairness.Admission) -> str | None:
        """Why this may not be granted now; None: it may."""
        if not admitted.allowed:
            if admitted.own and not self.kept:
                self.kept, self.waits = True, {}
            return admitted.why
        if self.kept and least and not admitted.own:
            return "the rest of the pool is guaranteed to others who wait"
        return None

    def _blocked(self, row: Any, wish: Wish, devices: Sequence[Device], own: bool) -> None:
        """What is free does not serve the wish: who is first, or waits for what is his own, keeps it free."""
        if placement.choose(wish, devices, self.occupancy, self.reserved) is not None:
            self._say(row, "what is free would take more than your limit has left")
            return
        if self._never(row, wish, devices):
            return
        self.hopeless.add((row.wish, id(devices)))
        if self.headless or own:
            self.headless = self.headless and own
            self._reserve(wish, devices)
        self._say(row, "")

    def _reserve(self, wish: Wish, devices: Sequence[Device]) -> None:
        """Keep what would serve the wish soonest, beside what is kept already."""
        if self.holders is None:
            self.holders = self._holders()
        kept, occupancy, holders = self.reserved, self.occupancy, self.holders
        if self.line.draining:  # what it cannot have until the drain is over, others may have until it begins
            devices = [device for device in devices if device.usable or device.id not in self.line.draining]
        if kept.devices or kept.instances:
            # A list: what placement works out for a tuple it remembers, and this one is gone in a moment.
            devices = [device for device in devices if device.id not in kept.devices]
            occupancy = replace(occupancy, instances={*occupancy.instances, *kept.instances})
            holders = {
                device: [item for item in held if item.instance not in kept.instances]
                for device, held in holders.items()
            }
        more = placement.reserve(wish, devices, occupancy, holders)
        self.reserved = placement.Reserved(kept.devices | more.devices, kept.instances | more.instances)

    def _never(self, row: Any, wish: Wish, devices: Sequence[Device]) -> bool:
        """Close a request that came before the first inventory, and for which there is no such device."""
        try:
            placement.check_possible(wish, devices)
        except Rejected as never:
            why, now = never.message, self.tx.now
            move(self.tx, row, State.CLOSED, actor="gpupool", action="refuse", reason=why, closed_at=now)
            return True
        return False

    def _say(self, row: Any, why: str) -> None:
        if row.reason != why:
            self.said.append({"key": row.id, "why": why})

    def _grant(self, row: Any, placed: Sequence[placement.Placed], group: str) -> None:
        tx = self.tx
        self.epoch += 1
        size = sum(item.cells / item.device.cells for item in placed)
        terms = self.line.terms(row)
        changed = {"terms": rows.dump(plain(terms))} if self.rules.ages else {}
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
            **changed,
        )
        claim(tx, row.id, tuple(self._slice(item) for item in placed))
        check(tx, row.id)
        self.line.granted(row, group, size)
        used = dict(self.occupancy.used)
        for item in placed:
            used[item.device.id] = used.get(item.device.id, 0) + item.cells
        taken = {*self.occupancy.instances, *(item.instance for item in placed if item.instance)}
        self.occupancy = placement.Occupancy(used=used, instances=taken)
        self.holders, self.waits = None, {}

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
            if row.warned_for in idleness.CALLED and row.deadline_seconds is not None:
                ends = min(ends, self.tx.now + row.deadline_seconds)  # who makes room is seen coming
            found[row.device].append(placement.Holding(cells=row.size, ends_at=ends, instance=row.instance))
        return found
