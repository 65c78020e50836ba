"""Who gets what next: the queue is served inside the transaction that freed something or asked.

Limits are counted and slices placed on rows that this transaction has read under the write lock.  Devices and
limits change rarely; they are kept in memory, keyed by the numbers that each change raises.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update

from .. import fairness, idleness, placement
from ..errors import Rejected
from ..model import Device, Kind, Slice, State, Terms, Wish, plain, session_name
from . import rows
from . import schema as t
from .counts import Budgets, Past
from .rules import Rules, in_force
from .store import Transaction
from .transitions import check, claim, move, set_columns
from .turns import Line, Policy


class Grants:
    """Serves the queue.  Holds devices, limits and the decayed past, each checked at every use."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.past = Past(policy.half_life)
        self._devices: tuple[int, tuple[Device, ...]] = (-1, ())
        self._rules: tuple[int, Rules] = (-1, Rules.of({}))

    def forget(self) -> None:
        """Read devices and limits again at the next use."""
        self._devices, self._rules = (-1, ()), (-1, Rules.of({}))

    def devices(self, conn: Connection, inventory: int) -> tuple[Device, ...]:
        """All devices, read again only when the inventory's number has changed."""
        number, known = self._devices
        if number != inventory:
            query = select(t.devices).order_by(t.devices.c.node, t.devices.c.idx)
            known = tuple(rows.device(row) for row in conn.execute(query))
            self._devices = inventory, known
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
        return Line(conn.execute, now, self.policy, rules, devices, self.past)

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
        waiting: Iterable[Any] = self._waiting(tx)
        if not served.line.by_arrival:
            waiting = [turn.row for turn in served.line.turns(waiting)]
        return served.run(waiting, room)

    def _waiting(self, tx: Transaction) -> Iterator[Any]:
        """The queue as it came in, read in parts: of a long one mostly the head is all that is looked at."""
        since, after = tx.now - self.policy.beat_age, 0
        while part := tx.run(_waiting, {"since": since, "after": after, "count": AT_ONCE}).all():
            yield from part
            after = part[-1].ticket


AT_ONCE = 50
"""Requests read at once; a ticket is given once, so the next part begins behind the last one's."""

_named = (
    "id", "ticket", "owner", "user", "state", "step", "profile", "wish", "terms", "groups", "reason", "requested_at",
)  # fmt: skip
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
        self.budgets = Budgets(tx.run, tx.now, self.rules)
        self.occupancy = self._occupancy()
        self.reserved = placement.Reserved()
        self.headless = True  # nobody before has to wait for what he does not own
        self.kept = False  # the pool's cap keeps somebody from a share: nobody may take more of it
        self.hopeless: set[str] = set()  # wishes found not to fit
        self.holders: Mapping[str, Sequence[placement.Holding]] | None = None
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
        shared = bool(self.line.guaranteed)
        if row.wish in self.hopeless and not shared:
            self._say(row, "")
            return False
        wish, least = self.line.wish(row.wish)
        groups = self.line.groups(row.groups)
        admitted = self.line.admit(row, groups, least)
        why = self._barred(row, groups, least, admitted)
        if why is None and row.wish in self.hopeless and not admitted.own:
            why = ""
        if why is not None:
            self._say(row, why)
            return False
        placed = placement.choose(wish, self.devices, self.occupancy, self.reserved, room=admitted.room)
        if placed is None:
            self._blocked(row, wish, admitted)
            return False
        self._grant(row, groups, placed, admitted.group)
        return True

    def _barred(
        self, row: Any, groups: Sequence[str], least: float, admitted: fairness.Admission
    ) -> str | None:
        """Why limits, rights or budgets do not let this be granted now; None: they do."""
        if not admitted.allowed:
            self.kept = self.kept or admitted.own
            return admitted.why
        if self.kept and least and not admitted.own:
            return "the rest of the pool is guaranteed to others who wait"
        if self.rules.profiles and not fairness.profiles(row.user, groups, self.rules.limits).allows(
            row.profile
        ):
            return "the limits in force no longer allow you this profile"
        if self.rules.hours and least:
            budget = self.budgets.of(row.user, groups)
            if budget.state is fairness.BudgetState.EXHAUSTED:
                return budget.message
        return None

    def _blocked(self, row: Any, wish: Wish, admitted: fairness.Admission) -> None:
        """What is free does not serve the wish: who is first, or waits for what is his own, keeps it free."""
        if placement.choose(wish, self.devices, self.occupancy, self.reserved) is not None:
            self._say(row, "what is free would take more than your limit has left")
            return
        if self._never(row, wish):
            return
        self.hopeless.add(row.wish)
        if self.headless or admitted.own:
            self.headless = self.headless and admitted.own
            self._reserve(wish)
        self._say(row, "")

    def _reserve(self, wish: Wish) -> None:
        """Keep what would serve the wish soonest, beside what is kept already."""
        if self.holders is None:
            self.holders = self._holders()
        kept, devices, occupancy, holders = self.reserved, self.devices, self.occupancy, self.holders
        if kept.devices or kept.instances:
            # A list: what placement works out for a tuple it remembers, and this one is gone in a moment.
            free = [device for device in devices if device.id not in kept.devices]
            occupancy = replace(occupancy, instances={*occupancy.instances, *kept.instances})
            holders = {
                device: [item for item in held if item.instance not in kept.instances]
                for device, held in holders.items()
            }
            more = placement.reserve(wish, free, occupancy, holders)
        else:
            more = placement.reserve(wish, devices, occupancy, holders)
        self.reserved = placement.Reserved(kept.devices | more.devices, kept.instances | more.instances)

    def _never(self, row: Any, wish: Wish) -> bool:
        """Close a request that came before the first inventory, and for which there is no such device."""
        try:
            placement.check_possible(wish, self.devices)
        except Rejected as never:
            why, now = never.message, self.tx.now
            move(self.tx, row, State.CLOSED, actor="gpupool", action="refuse", reason=why, closed_at=now)
            return True
        return False

    def _say(self, row: Any, why: str) -> None:
        if row.reason != why:
            set_columns(self.tx, row.id, reason=why)

    def _terms(self, row: Any, groups: Sequence[str]) -> tuple[Terms, dict[str, str]]:
        """The terms that the lease gets, and the column for them where a limit has changed them."""
        terms = rows.terms(row.terms)
        if not self.rules.ages:
            return terms, {}
        age = fairness.max_age(row.user, groups, self.rules.limits, terms.max_age).seconds
        if age == terms.max_age:
            return terms, {}
        terms = replace(terms, max_age=age)
        return terms, {"terms": rows.dump(plain(terms))}

    def _grant(self, row: Any, groups: Sequence[str], placed: Sequence[placement.Placed], group: str) -> None:
        tx = self.tx
        self.epoch += 1
        size = sum(item.cells / item.device.cells for item in placed)
        terms, changed = self._terms(row, groups)
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
        self.line.usage.add(row.owner, groups, group, size)
        used = dict(self.occupancy.used)
        for item in placed:
            used[item.device.id] = used.get(item.device.id, 0) + item.cells
        taken = {*self.occupancy.instances, *(item.instance for item in placed if item.instance)}
        self.occupancy = placement.Occupancy(used=used, instances=taken)
        self.holders = None

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
