"""What asks for the end of a lease besides idleness and age: a share, a drain, a budget.  Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .. import fairness, idleness
from ..idleness import Call
from ..ledger import Wanted
from ..model import Device, Lease


def calls_on(
    lease: Lease, wanted: Wanted, devices: Mapping[str, Device], now: float, *, budget_end: bool
) -> tuple[Call, ...]:
    """Say what asks for the end of this lease, with the reason for its owner and the audit trail."""
    found = []
    victim = wanted.shares.get(lease.id)
    if victim is not None:
        found.append(Call(idleness.SHARE, victim.why))
    drained = [device for item in lease.slices if (device := devices.get(item.device)) and device.drained]
    ends_at = (lease.active_at or now) + lease.terms.max_age if lease.terms.max_age else math.inf
    if any(ends_at > (device.drain_at or 0.0) for device in drained):  # else its age ends it before
        first = min(drained, key=lambda device: device.drain_at or 0.0)
        why = f": {first.drain_why}" if first.drain_why else ""
        seconds = max(0.0, (first.drain_at or 0.0) - now)
        found.append(Call(idleness.DRAIN, f"{first.id} is taken out of service{why}", seconds))
    budget = wanted.budgets.get(lease.id)
    if budget_end and budget is not None and budget.state is fairness.BudgetState.EXHAUSTED:
        found.append(Call(idleness.BUDGET, budget.message.rstrip(".")))
    return tuple(found)


def note_on(lease: Lease, wanted: Wanted) -> str:
    """What the owner should know of their budget; empty: nothing."""
    budget = wanted.budgets.get(lease.id)
    return "" if budget is None else budget.message
