"""Who is to make room, and whose budget is used up: what a sweep asks before it judges."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from .. import fairness, idleness, placement, signals
from ..model import Lease, State, When
from . import rows
from . import schema as t
from .counts import Budgets
from .grants import ALL, Grants
from .turns import Line, Turn, waiting

AHEAD = 3
"""Requests at the head of the queue for which idle slices are taken back."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What others need of the leases there are."""

    shares: Mapping[str, fairness.Victim] = field(default_factory=dict)
    """Leases that borrow what a group wants back."""
    idle: Mapping[str, fairness.Victim] = field(default_factory=dict)
    """Idle leases, of those that are taken back only, or sooner, for somebody who waits."""
    unmet: Mapping[str, str] = field(default_factory=dict)
    """Requests that nobody can make room for, with the reason."""
    budgets: Mapping[str, fairness.Budget] = field(default_factory=dict)
    """By lease, where a budget is running out or used up."""


def wanted(conn: Connection, now: float, grants: Grants) -> Wanted:
    """Look at everybody who waits and everybody who holds; nothing is read that no rule asks for."""
    pool = conn.execute(select(t.pool)).one()
    rules = grants.rules(conn, pool.limits_version)
    # Whose hub is away is not granted anything: nobody makes room for them.
    queue = list(waiting(conn.execute, now, grants.policy, ALL)) if pool.settled_at is not None else []
    if not queue and not rules.hours:
        return Wanted()
    held = rows.with_slices(conn, conn.execute(_held).all())
    budgets = _budgets(Budgets(conn.execute, now, rules), held) if rules.hours else {}
    line = grants.line(conn, now, pool.inventory, pool.limits_version)
    claimable = bool(line.guaranteed)
    takeable = any(_may_be_wanted(lease) for lease in held)
    if not queue or not (claimable or takeable):
        return Wanted(budgets=budgets)
    turns = line.turns(queue)
    devices = grants.devices(conn, pool.inventory)
    cap = rules.limits[fairness.POOL].gpus if fairness.POOL in rules.limits else None
    fits = _Fits(line, held, turns, math.inf if cap is None else cap)
    facts = [fairness.Held.of(lease) for lease in held]
    room = fairness.Room()
    if claimable:
        claims = [turn.queued for turn in turns if turn.queued.own]
        chosen = _warned(held, idleness.SHARE)
        room = fairness.make_room(claims, facts, line.guaranteed, now, fits, chosen)
    others = fairness.Room()
    if takeable and not room.victims:
        others = _idle_ones(turns, held, facts, line, now, fits, float(len(devices)))
    return Wanted(
        shares={victim.lease: victim for victim in room.victims},
        idle={victim.lease: victim for victim in others.victims},
        unmet=dict(room.unmet),
        budgets=budgets,
    )


_held = select(t.leases).where(t.leases.c.held == 1)


def _may_be_wanted(lease: Lease) -> bool:
    may = lease.terms.when is When.WANTED or lease.signal in signals.AT_WORK
    return may and lease.gpus > 0 and lease.idle_seconds >= lease.terms.window > 0


def _warned(held: Collection[Lease], rule: str) -> frozenset[str]:
    return frozenset(lease.id for lease in held if lease.warned_for == rule)


def _idle_ones(
    turns: Sequence[Turn],
    held: Sequence[Lease],
    facts: Sequence[fairness.Held],
    line: Line,
    now: float,
    fits: fairness.Fits,
    size: float,
) -> fairness.Room:
    """Choose among the idle ones for the head of the queue, as far as the limits let it be served."""
    wants = [turn.queued for turn in turns if turn.allowed and turn.queued.gpus > 0][:AHEAD]
    kept = {lease.id for lease in held if lease.grace_seconds > 0}
    facts = [item for item in facts if item.lease not in kept]  # what was extended is not to be had
    parts = fairness.portions(facts, line.guaranteed, size)
    return fairness.victims(wants, facts, parts, now, fits, _warned(held, idleness.IDLE))


class _Fits:
    """Whether requests would fit if some leases were gone; what is stopping counts as gone."""

    def __init__(self, line: Line, held: Sequence[Lease], turns: Sequence[Turn], cap: float) -> None:
        self._line = line
        self._held = [lease for lease in held if lease.state is not State.STOPPING]
        self._turns = {turn.queued.lease: turn for turn in turns}
        self._cap = cap

    def __call__(self, wants: Sequence[fairness.Queued], gone: frozenset[str]) -> bool:
        used: dict[str, int] = {}
        taken: set[str] = set()
        total = 0.0
        for lease in self._held:
            if lease.id not in gone:
                total += lease.gpus
                for item in lease.slices:
                    used[item.device] = used.get(item.device, 0) + len(item.cells)
                    taken |= {item.instance} - {""}
        for want in wants:
            occupancy = placement.Occupancy(used, taken)
            turn = self._turns[want.lease]
            placed = placement.choose(turn.wish, self._line.devices(turn.row), occupancy)
            total += want.gpus
            if placed is None or total > self._cap + 1e-9:
                return False
            for one in placed:
                used[one.device.id] = used.get(one.device.id, 0) + one.cells
                taken |= {one.instance} - {""}
        return True


def _budgets(budgets: Budgets, held: Sequence[Lease]) -> dict[str, fairness.Budget]:
    found = {}
    for lease in held:
        if lease.gpus > 0:
            stands = budgets.of(lease.user, lease.groups)
            if stands.state is not fairness.BudgetState.OK:
                found[lease.id] = stands
    return found
